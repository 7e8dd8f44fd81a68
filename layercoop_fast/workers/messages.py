"""Messages between driver and workers: a line of JSON, then arrays as `.npy`. Nothing in them is ever executed.

| kind | to | carries |
|---|---|---|
| open | worker | the game to measure from now on and a name for it (`workers/remote.py`), the token ids |
| ready | driver | that name, the worker's fingerprints, machine, host, and how many states it may store |
| pilot | both | an order to time one unit and one head; the seconds of each |
| measure | worker | the masks of a task, bool [M, n] |
| rows | driver | rows of its task's masks, their numbers, evaluations since the last message, whether that is all |
| error | driver | what went wrong, in one line, and the exit status that suits it |
"""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Message(NamedTuple):
    """One message."""

    kind: str
    about: dict[str, Any]
    arrays: dict[str, Array]


def pack(kind: str, about: dict[str, Any] | None = None, **arrays: Array) -> bytes:
    """A message as bytes; arrays are of plain dtypes."""
    buffer = io.BytesIO()
    buffer.write(json.dumps({"kind": kind, "about": about or {}, "arrays": list(arrays)}).encode() + b"\n")
    for array in arrays.values():
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack(message: bytes) -> Message:
    """The message that `pack` made."""
    buffer = io.BytesIO(message)
    head = json.loads(buffer.readline())
    arrays = {name: np.lib.format.read_array(buffer, allow_pickle=False) for name in head["arrays"]}
    return Message(head["kind"], head["about"], arrays)

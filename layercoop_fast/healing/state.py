"""The state of a run, in one safetensors file that is replaced whole: a kill loses what came after the latest one.

It holds the fp32 values and moments of what is trained, the best weights so far, and as JSON in the header where the
run is: step, tokens, seconds, the curve, and what the run is, so that it is not taken up by another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from layercoop_fast.engine.weight_files import DTYPES
from layercoop_fast.errors import RequestError
from layercoop_fast.export.streaming import write_tensors
from layercoop_fast.files import written_whole
from layercoop_fast.inputs.libraries import library_reads
from layercoop_fast.inputs.safetensors import Header, read_header
from layercoop_fast.inputs.text import is_flat, parse_json

_ABOUT = "layercoop_heal"
# Seconds from one state to the next, at least. The state of a large model takes long to write: at least so many times
# as long lies between two, so that writing takes less than a tenth of a run.
SECONDS_BETWEEN = 45.0
TIMES_ITS_COST = 10
_AGAIN = "begin again with force=True and without resume="


def state_file(out: Path) -> Path:
    """Where the state of a run that writes the folder `out` is."""
    return out.absolute().parent / f"{out.name}.healing.safetensors"


def write_state(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Replace the state. Raises `RunError` where the system refuses; the one before stays then.

    `tensors` are of any shapes [...], on any device; `about` is what JSON can hold.
    """
    with written_whole(file, force=True) as place:
        text = json.dumps(about, allow_nan=False)
        write_tensors(place, tensors, list(tensors), tensors.__getitem__, {_ABOUT: text})


def read_state(file: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors [...] and what is told about them.

    `expected` are tensors of the names, shapes and dtypes that there must be, [...]. Raises `RequestError` where the
    file is damaged or is the state of another model.
    """
    header = read_header(file)
    about = _about(file, header)
    found = {name: (info.shape, DTYPES.get(info.dtype)) for name, info in header.tensors.items()}
    if found != {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()}:
        raise RequestError(f"{file} does not hold what this run trains: {_AGAIN}")
    with library_reads(str(file)), safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in expected}, about


def read_run(file: Path) -> dict[str, Any]:
    """What the run is whose state a file holds, from its header alone. Raises `RequestError` as `read_state` does."""
    run = _about(file, read_header(file)).get("run")
    if not isinstance(run, dict):
        raise RequestError(f"{file} does not say what its run is: {_AGAIN}")
    return run


def _about(file: Path, header: Header) -> dict[str, Any]:
    about = parse_json(header.metadata.get(_ABOUT, "null"), str(file))
    if not isinstance(about, dict) or not is_flat(about):
        raise RequestError(f"{file} is not the state of a run: {_AGAIN}")
    return about


def same_run(file: Path, told: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `RequestError` unless a stopped run was asked for the same as this one."""
    differing = sorted(name for name in here if told.get(name) != here[name])
    if differing:
        raise RequestError(
            f"{file} is the state of a run with another {' and another '.join(differing)}: give what that run was "
            f"given, or {_AGAIN}"
        )

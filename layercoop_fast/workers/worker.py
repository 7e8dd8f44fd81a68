"""A worker: opens a masked model as it is told, measures the masks of a task, and sends scores as they come.

A local process (`workers/process.py`) runs `serve`, and a Ray actor does in a thread of its own.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layercoop_fast import _C
from layercoop_fast.engine.loading import DTYPES, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import LayercoopError, RunError
from layercoop_fast.files import reason
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masked.model import MEMORY_SHARE, MaskedModel, Work
from layercoop_fast.masked.players import Players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks
from layercoop_fast.texts.items import text_of
from layercoop_fast.workers.messages import Array, Message, pack, unpack

# Scores wait this long at most before they are sent: besides a chunk, this is the work that the loss of a worker costs.
STREAM_SECONDS = 0.5
# Views that stay open: a search uses some five, its model on all windows and on parts of them.
_MOST_OPEN = 8

Send = Callable[[bytes], None]


def serve(receive: Callable[[], bytes], send: Send, *, machine: str = "") -> None:
    """Answer messages for ever. `machine` is what the driver's shares of memory call this machine."""
    models = OpenModels(machine)
    while True:
        message = unpack(receive())
        try:
            if message.kind == "open":
                models.open(message)
                send(_ready(models.current, message.about["game"]))
            elif message.kind == "pilot":
                unit, head = models.current.pilot()
                send(pack("pilot", {"unit": unit, "head": head}))
            else:
                _measure(models.current, message.arrays["masks"], send)
        except Exception as error:  # whatever it is, the driver decides what follows
            models.free()
            status = error.status if isinstance(error, LayercoopError) else RunError.status
            line = "out of memory" if isinstance(error, MemoryError) else reason(error)
            send(pack("error", {"status": status, "line": f"{line} (on {platform.node()})"}))


class OpenModels:
    """The views of a model that the driver has had opened, and which of them is in use.

    A search measures on some of the windows, with a teacher and without, in turn. So the last few views stay open, and
    those that differ from the first one in nothing else share its model, blocks and head.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._first: tuple[dict[str, Any], MaskedModel] | None = None
        self._open: dict[str, MaskedModel] = {}
        self._current: MaskedModel | None = None

    @property
    def current(self) -> MaskedModel:
        """What was opened last."""
        if self._current is None:
            raise RunError("no game is open")
        return self._current

    def open(self, message: Message) -> None:
        """Measure what the message describes from now on."""
        self.free()
        self._current = None
        name = message.about["game"]
        model = self._open.pop(name, None) or self._view(message)
        if model is None:
            self._first = None  # another model may need the room
            self._open.clear()
            model = open_model(message, self._machine)
            self._first = _what_views_share(message), model
        self._open[name] = self._current = model
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def free(self) -> None:
        """Give the memory of stored states back: only one view at a time may have it."""
        if self._current is not None:
            self._current.windows.free()

    def _view(self, message: Message) -> MaskedModel | None:
        """What the message describes as a view of the first one; None where it is something else."""
        if self._first is None or self._first[0] != _what_views_share(message):
            return None
        first = self._first[1]
        text = text_of(message.about, message.arrays["ids"], first.skeleton.device)
        same = text.fingerprint == first.text.fingerprint
        return first.on(None if same else text, teacher=message.about["teacher"])


def _what_views_share(message: Message) -> dict[str, Any]:
    """What must be the same for one model to be a view of another (`MaskedModel.on`)."""
    shared = {key: value for key, value in message.about.items() if key not in ("game", "teacher", "domains")}
    return {**shared, "tokens": message.arrays["ids"].shape[1:]}


def open_model(message: Message, machine: str) -> MaskedModel:
    """The model that the driver describes (`workers/remote.py`), on its very token ids."""
    about = message.about
    torch.set_num_threads(about["threads"])
    _C.set_num_threads(about["threads"])
    opening = about["checkpoint"]
    checkpoint = open_checkpoint(
        opening["name"],
        dtype=opening["dtype"] if opening["dtype"] in DTYPES else getattr(torch, opening["dtype"]),
        device=opening["device"],
        trust_remote_code=opening["trust_remote_code"],
    )
    skeleton = Skeleton(checkpoint.model, opening["blocks"])
    players = about["players"]
    halves = Sublayers(skeleton) if players["halves"] else None
    share = about["shares"].get(machine, 1)
    memory = about["memory"] or free_memory(skeleton.device) * MEMORY_SHARE
    return MaskedModel.of(
        skeleton,
        Players(skeleton, players["kind"], players["groups"], halves),
        text_of(about, message.arrays["ids"], skeleton.device),
        teacher=about["teacher"],
        memory=int(memory // (share if about["memory"] or skeleton.device.type == "cpu" else 1)),
        block_path=about["block_path"],
        score_every=about["score_every"],
    )


def _ready(model: MaskedModel, name: str) -> bytes:
    device = model.skeleton.device
    return pack(
        "ready",
        {
            "game": name,
            "fingerprints": model.fingerprints,
            "machine": {
                "processor": _processor(),
                "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
            },
            "host": platform.node(),
            "states": model.limits(short=True)[0],
        },
    )


def _measure(model: MaskedModel, masks: Masks, send: Send) -> None:
    """Measure the masks of a task, bool [M, n]. Chunks are short, since the loss of a worker costs one."""
    stream = _Stream(send, len(model.window_tokens))
    model.measure(masks, stream.add, stream.count, short=True)
    stream.flush(finished=True)


class _Stream:
    """Sends scores every `STREAM_SECONDS`, and when told to."""

    def __init__(self, send: Send, n_windows: int) -> None:
        self._send = send
        self._n_windows = n_windows
        self._rows: list[int] = []
        self._nll: list[Array] = []
        self._kl: list[Array] = []
        self._evaluations = self._teacher = 0
        self._sent = time.monotonic()

    def add(self, row: int, scores: Scores) -> None:
        self._rows.append(row)
        self._nll.append(scores.nll)
        self._kl.append(scores.kl)

    def count(self, work: Work) -> None:
        self._evaluations += work.evaluations
        self._teacher += work.teacher
        if time.monotonic() - self._sent >= STREAM_SECONDS:
            self.flush(finished=False)

    def flush(self, *, finished: bool) -> None:
        about = {"evaluations": self._evaluations, "teacher": self._teacher, "finished": finished}
        rows = np.array(self._rows, dtype=np.int64)
        nll, kl = (np.array(values, dtype=np.float64).reshape(-1, self._n_windows) for values in (self._nll, self._kl))
        self._send(pack("rows", about, rows=rows, nll=nll, kl=kl))
        self._rows, self._nll, self._kl, self._evaluations, self._teacher = [], [], [], 0, 0
        self._sent = time.monotonic()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

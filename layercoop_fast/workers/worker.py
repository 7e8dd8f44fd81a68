"""A worker: opens a game as it is told, measures the masks of a task, and sends numbers as they come.

One of the local processes (`workers/process.py`) runs `serve`, or a Ray actor does in a thread of its own. Nothing else
imports this module.
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
from layercoop_fast.game.cost_forecast import time_pilot
from layercoop_fast.game.item_utility import ChoiceUtility
from layercoop_fast.game.model_game import DEFAULT_MEMORY_SHARE, STATES_WITH_STORE, ModelGame
from layercoop_fast.game.staged import view_of
from layercoop_fast.game.utility import Utility
from layercoop_fast.masked.forward import free_memory, play
from layercoop_fast.masked.plan import build_plan
from layercoop_fast.masked.players import Players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masked.scoring import InOrder, scores_behind
from layercoop_fast.masks.types import Masks
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.items import Items
from layercoop_fast.workers.messages import Array, Message, pack, unpack

# Numbers wait this long at most before they are sent: the work that the loss of a worker can cost, beside a chunk.
STREAM_SECONDS = 0.5
# Games that stay open beside each other: a search has some five, the game itself and parts of it.
_MOST_GAMES = 8

Send = Callable[[bytes], None]


def serve(receive: Callable[[], bytes], send: Send, *, machine: str = "") -> None:
    """Answer messages for ever. `machine` is what the driver's shares of memory call this one."""
    games = Games(machine)
    while True:
        message = unpack(receive())
        try:
            if message.kind == "open":
                games.open(message)
                send(_ready(games.current, message.about["game"]))
            elif message.kind == "pilot":
                unit, head = time_pilot(games.current)
                send(pack("pilot", {"unit": unit, "head": head}))
            else:
                _measure(games.current, message.arrays["masks"], send)
        except Exception as error:  # whatever it is, the driver decides what follows
            games.free()
            status = error.status if isinstance(error, LayercoopError) else RunError.status
            line = "out of memory" if isinstance(error, MemoryError) else reason(error)
            send(pack("error", {"status": status, "line": f"{line} (on {platform.node()})"}))


class Games:
    """The games that the driver has had opened, and which of them is played.

    A search plays its game on some of the windows, and with other utilities, in turn; so the last few stay open, and
    where only those two differ from the first one its model, blocks and head are shared.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._first: tuple[dict[str, Any], ModelGame] | None = None
        self._open: dict[str, ModelGame] = {}
        self._current: ModelGame | None = None

    @property
    def current(self) -> ModelGame:
        """The game that was opened last."""
        if self._current is None:
            raise RunError("no game is open")
        return self._current

    def open(self, message: Message) -> None:
        """Play the game that the message describes from now on."""
        self.free()
        self._current = None
        name = message.about["game"]
        game = self._open.pop(name, None) or self._view(message)
        if game is None:
            self._first = None  # another model may need the room
            self._open.clear()
            game = open_game(message, self._machine)
            self._first = _what_views_share(message), game
        self._open[name] = self._current = game
        if len(self._open) > _MOST_GAMES:
            del self._open[next(iter(self._open))]

    def free(self) -> None:
        """Give the memory of stored states back: that of one game at a time is reckoned with."""
        if self._current is not None:
            self._current.windows.free()

    def _view(self, message: Message) -> ModelGame | None:
        """The game as a view of the first one; None where it is none."""
        if self._first is None or self._first[0] != _what_views_share(message):
            return None
        first = self._first[1]
        calibration: Calibration | Items = first.calibration
        if message.about["choices"] is None:
            ids = torch.from_numpy(message.arrays["ids"]).to(first.skeleton.device)
            if not torch.equal(ids, calibration.ids):
                calibration = Calibration(ids, "from the driver", Domains.of(message.about["domains"]))
        return view_of(first, calibration, _utility(message))


def _what_views_share(message: Message) -> dict[str, Any]:
    """What must be the same for one game to be a view of another (`game/staged.py`)."""
    shared = {
        key: value for key, value in message.about.items() if key not in ("game", "utility", "teacher", "domains")
    }
    return {**shared, "tokens": message.arrays["ids"].shape[1:]}


def _utility(message: Message) -> Utility | ChoiceUtility:
    """The game's utility by name; workers hand in losses, and the driver makes worths of them."""
    about = message.about
    if about["choices"] is None:
        return Utility(about["utility"], about["teacher"], lambda nll, kl, full: nll)
    return ChoiceUtility(about["utility"], lambda log_probs, layout: log_probs)


def open_game(message: Message, machine: str) -> ModelGame:
    """The game that the driver describes (`game/remote.py`), on its very token ids."""
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
    memory = about["memory"] or free_memory(skeleton.device) * DEFAULT_MEMORY_SHARE
    calibration: Calibration | Items
    if about["choices"] is None:
        ids = torch.from_numpy(message.arrays["ids"]).to(skeleton.device)
        calibration = Calibration(ids, "from the driver", Domains.of(about["domains"]))
    else:
        calibration = Items.of(about["choices"], skeleton.device)
    return ModelGame(
        checkpoint,
        calibration,
        skeleton=skeleton,
        utility=_utility(message),
        players=Players(skeleton, players["kind"], players["groups"], halves),
        memory=int(memory // (share if about["memory"] or skeleton.device.type == "cpu" else 1)),
        block_path=about["block_path"],
        score_every=about["score_every"],
    )


def _ready(game: ModelGame, name: str) -> bytes:
    device = game.skeleton.device
    return pack(
        "ready",
        {
            "game": name,
            "fingerprints": game.fingerprints,
            "machine": {
                "processor": _processor(),
                "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
            },
            "host": platform.node(),
            "states": _limits(game)[0],
        },
    )


def _measure(game: ModelGame, masks: Masks, send: Send) -> None:
    """Measure the masks of a task, bool [M, n]."""
    stream = _Stream(send, len(game.window_tokens))
    if game.utility.needs_teacher and game.keep_teacher():
        stream.teacher = game.players.n_units
    states, max_rows = _limits(game)
    plan = build_plan(game.players.unit_masks(masks), states)

    def take(number: int, scores: Scores) -> None:
        stream.add(int(plan.unique_rows[number]), scores.nll, scores.kl)

    scored = InOrder(game.scorer, take, scores_behind(game.windows))
    play(game.windows, plan, scored.begin, units=game.units, max_rows=max_rows, on_progress=stream.count)
    scored.finish()
    stream.flush(finished=True)


def _limits(game: ModelGame) -> tuple[int, int]:
    """States and rows of a call, as `ModelGame.limits`: chunks stay short, since the loss of a worker costs one."""
    states, max_rows = game.limits()
    return min(states, STATES_WITH_STORE), max_rows


class _Stream:
    """Sends numbers every `STREAM_SECONDS`, and when told to."""

    def __init__(self, send: Send, n_windows: int) -> None:
        self._send = send
        self._n_windows = n_windows
        self._rows: list[int] = []
        self._nll: list[Array] = []
        self._kl: list[Array] = []
        self._evaluations = 0
        self._sent = time.monotonic()
        self.teacher = 0

    def add(self, row: int, nll: Array, kl: Array) -> None:
        self._rows.append(row)
        self._nll.append(nll)
        self._kl.append(kl)
        self.count(0)

    def count(self, evaluations: int) -> None:
        self._evaluations += evaluations
        if time.monotonic() - self._sent >= STREAM_SECONDS:
            self.flush(finished=False)

    def flush(self, *, finished: bool) -> None:
        about = {"evaluations": self._evaluations, "teacher": self.teacher, "finished": finished}
        rows = np.array(self._rows, dtype=np.int64)
        nll, kl = (np.array(values, dtype=np.float64).reshape(-1, self._n_windows) for values in (self._nll, self._kl))
        self._send(pack("rows", about, rows=rows, nll=nll, kl=kl))
        self._rows, self._nll, self._kl, self._evaluations, self.teacher = [], [], [], 0, 0
        self._sent = time.monotonic()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

"""A process that plays a small game into stores, in children that a test may kill, limit or let finish.

Everything slow is loaded once, in the parent; a child is a fork of it and begins to measure at once.

    with Player() as player:
        child = player.start(store, out, first=0, last=100)     # plays MASKS[0:100]
        os.kill(child, signal.SIGKILL)
        assert player.wait(child) == -signal.SIGKILL

A child that finishes writes its worths to `out`; one that fails with one of the package's errors writes the message
there as text and exits with that error's status. The protocol is lines of JSON on standard input and output.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

L, WINDOWS, TOKENS = 12, 2, 20
MASKS = np.unique(np.random.default_rng(5).random((300, L)) < 0.6, axis=0)
NOBODY = 65534


class Player:
    """The test's end of the process; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def start(self, store: Path, out: Path, **options: Any) -> int:
        """Fork a child that plays; returns its process id. Options: see `_play`."""
        return self._ask({"start": {"store": str(store), "out": str(out), **options}})

    def wait(self, child: int) -> int:
        """The child's exit status, or minus the signal that ended it."""
        return self._ask({"wait": child})

    def play(self, store: Path, out: Path, **options: Any) -> int:
        """Start a child and wait for it."""
        return self.wait(self.start(store, out, **options))

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _play(
    store: str,
    out: str,
    *,
    first: int = 0,
    last: int = len(MASKS),
    commit_seconds: float = 0.0,
    file_bytes: int | None = None,
    as_nobody: bool = False,
) -> int:
    """Play MASKS[first:last] with `store` and save the worths as `out`; returns the exit status.

    Args:
        commit_seconds: how long masks wait for their commit.
        file_bytes: a limit to the size of files, which stands in for a full disk.
        as_nobody: give up root's right to write anywhere.
    """
    import layercoop_fast.game.known_scores
    from layercoop_fast.errors import LayercoopError

    layercoop_fast.game.known_scores.COMMIT_SECONDS = commit_seconds
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if as_nobody and os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        game = _game(store)
        game.evaluate(MASKS[first:last]).save(Path(out), force=True)
        game.close()
    except LayercoopError as error:
        Path(out).write_text(str(error), encoding="utf-8")
        return error.status
    return 0


def _game(store: str | None) -> Any:
    import torch
    from tiny_models import tiny_model, tiny_tokenizer

    from layercoop_fast.engine.loading import Checkpoint
    from layercoop_fast.game.model_game import ModelGame
    from layercoop_fast.texts.calibration import Calibration

    ids = torch.randint(3, 256, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(0))
    checkpoint = Checkpoint(tiny_model("llama", L), tiny_tokenizer(), "llama")
    return ModelGame(checkpoint, Calibration(ids, "test"), store=store)


def _serve() -> None:
    _game(None).evaluate(MASKS[:2])  # whatever is loaded at first use is loaded here
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if answer == 0:
                status = 70
                try:
                    status = _play(**question["start"])
                finally:
                    sys.stderr.flush()
                    os._exit(status)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()

"""What one game knows: in memory, and in its part of a store where there is one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.store import Store, mask_key
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks
from layercoop_fast.spans import STORE, timed

# Measured masks wait this long for their commit at most, once the next one is there: the work a kill can cost.
COMMIT_SECONDS = 0.5
# Commits wait this long at most until they are flushed to the disk: the work a power cut can cost.
SYNC_SECONDS = 30.0


class KnownScores:
    """What one game knows: in memory, and in its part of a store where there is one.

    Numbers added are known at once, and committed together when `COMMIT_SECONDS` have passed since the last commit, or
    by `commit`.
    """

    def __init__(self, store: Store | None = None, game: int = 0) -> None:
        self.store = store
        self.game = game
        self._known: dict[bytes, Scores] = {}
        self._waiting: list[tuple[bytes, Scores]] = []
        self._committed = self._synced = time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether everything added is committed (or there is no store)."""
        return not self._waiting

    def __getitem__(self, key: bytes) -> Scores:
        return self._known[key]

    def __contains__(self, key: bytes) -> bool:
        if key in self._known:
            return True
        held = None if self.store is None else self.store.scores(self.game, key)
        if held is not None:
            self._known[key] = held
        return held is not None

    def __len__(self) -> int:
        """Masks known in memory: added, or taken from the store when they were asked for."""
        return len(self._known)

    def holds(self, mask: Masks) -> bool:
        """Whether a mask, bool [n], is known, in memory or in the store."""
        return mask_key(mask) in self

    def missing(self, masks: Masks) -> tuple[Masks, int]:
        """The distinct masks of `masks`, bool [M, n], that are unknown, and how many distinct ones there are.

        The full model always counts as one of them: worths are relative to it.
        """
        everything = np.ones((1, masks.shape[1]), dtype=np.bool_)
        wanted = {mask_key(mask): mask for mask in np.concatenate([masks, everything])}
        unknown = [mask for key, mask in wanted.items() if key not in self]
        return np.array(unknown, dtype=np.bool_).reshape(len(unknown), masks.shape[1]), len(wanted)

    def scores(self, masks: Masks, n_windows: int) -> Scores:
        """The scores of masks (bool [M, n]) that are known in memory: float64 [M, n_windows]."""
        found = [self._known[mask_key(mask)] for mask in masks]
        shape = len(masks), n_windows
        return Scores(*(np.array([getattr(one, name) for one in found]).reshape(shape) for name in ("nll", "kl")))

    def masks(self, n_players: int) -> Masks:
        """The masks known in memory, bool [K, n_players]."""
        packed = np.frombuffer(b"".join(self._known), np.uint8).reshape(len(self), -(-n_players // 8))
        return np.unpackbits(packed, axis=1, count=n_players).astype(np.bool_)

    def learn(self, masks: Masks, scores: Scores) -> Masks:
        """Take in the scores, float64 [M, W], of the unknown ones of masks, bool [M, n]: which these are, bool [M]."""
        new = np.zeros(len(masks), dtype=np.bool_)
        for row, (mask, nll, kl) in enumerate(zip(masks, scores.nll, scores.kl, strict=True)):
            if not self.holds(mask):
                self.add(mask_key(mask), Scores(nll, kl))
                new[row] = True
        self.commit()
        return new

    def add(self, key: bytes, scores: Scores) -> None:
        """Take in the numbers of a mask that was not known, and commit when it is time."""
        self._known[key] = scores
        if self.store is not None:
            self._waiting.append((key, scores))
            self.commit_when_due()

    def lend(self, key: bytes, scores: Scores) -> None:
        """Take in the numbers of a mask that the store holds in another form: they are known, and not kept there."""
        self._known.setdefault(key, scores)

    def commit_when_due(self) -> None:
        """Commit what waits if `COMMIT_SECONDS` have passed since the last commit."""
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Commit what waits. When that fails, or is stopped, it is forgotten: the store alone says what was kept."""
        rows = self._waiting
        if self.store is None or not rows:
            return
        try:
            self._waiting = []
            with timed(STORE):
                self.store.add(self.game, rows)
        except BaseException:
            for key, _ in rows:
                self._known.pop(key, None)
            raise
        self._committed = time.monotonic()
        if self._committed - self._synced >= SYNC_SECONDS:
            self.store.sync()
            self._synced = self._committed

    def close(self) -> None:
        """Commit what waits and close the store; what is known in memory stays known."""
        self.commit()
        if self.store is not None:
            self.store.close()
            self.store = None


@contextmanager
def store_of_run(out: Path, *, resume: bool) -> Iterator[Path]:
    """The store of a run that writes `out`: OUT.store, there from the first commit until the block has succeeded.

    Raises `RequestError` when it is there already, left by a run that did not end, and `resume` is false.
    """
    path = out.with_name(f"{out.name}.store")
    if path.exists() and not resume:
        raise RequestError(
            f"{path} holds what a run that did not end has measured: pass resume=True to go on from there, "
            "or remove it to begin again"
        )
    try:
        yield path
    except BaseException:
        if path.exists() and _is_empty(path):
            _remove(path)
        raise
    _remove(path)


def _is_empty(path: Path) -> bool:
    with suppress(RequestError, RunError), Store(path) as store:
        return not any(game.masks for game in store.games())
    return False  # what cannot be read is not thrown away


def _remove(path: Path) -> None:
    """The file first: SQLite drops a log without a file, but would replay half of what a file without its log lost."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)

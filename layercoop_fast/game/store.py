"""The store: what games have measured, in one SQLite file that outlives the process.

A row is one mask of one game: the mean NLL (and, where it was measured, the mean KL) of each window, as float64 bytes.
For items with options each scored token is a window of its own, and the game's fingerprint of its calibration says what
belongs together (`game/item_utility.py`).
A game is its fingerprints (`ModelGame.fingerprints`: model, calibration, utility, players, dtype, numerics), so numbers
that might differ never share a name. A file may hold several games, joined by `merge`; a game that a file does
not hold is refused there, with the part that differs. (An NLL does not depend on the utility. It is part of the key all
the same: it says what is measured besides the NLL, and a `worths.npz` cannot be written without one.)

What a commit promises. The file is in WAL mode with `synchronous = NORMAL`: a commit (about 0.1 ms) hands its rows to
the kernel, so nothing committed is lost when the process dies, by kill −9 or otherwise, and a torn write is recognised
by its checksum and left out. Only a power cut can lose commits, those since the last checkpoint, which brings them to
the disk every half minute (`known_scores.SYNC_SECONDS`) and when the store is closed; the file itself stays sound.
`FULL` would spend a flush of the disk (4 ms and more) on every commit for the sake of that last half minute.

Every row and every game carries a CRC-32, and SQLite's own check runs when a file is opened, through a connection that
cannot write: a damaged file is refused and left as it is. A file may come from anywhere: its tables must be exactly
those made here, so that no view, trigger or expression in it is ever run, and every value is checked for type and
length before it is used. WAL needs shared memory: keep stores on a local disk.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import check_target, reason, written_whole
from layercoop_fast.game.worths import Worths, check_measured
from layercoop_fast.inputs.bounds import MAX_JSON_BYTES
from layercoop_fast.inputs.text import parse_json
from layercoop_fast.masked.scores import Scores
from layercoop_fast.masks.types import Masks

SCHEMA = 1
# How long to wait for another process's commit.
BUSY_SECONDS = 60.0

_APPLICATION_ID = 0x4C434653  # "LCFS", so that another program's SQLite file is told from a store
_SCHEMA_SQL = f"""
    CREATE TABLE games (
        id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never given twice, whatever is dropped
        fingerprints TEXT NOT NULL UNIQUE,      -- JSON, keys sorted
        n_players INTEGER NOT NULL,
        window_tokens BLOB NOT NULL,            -- int64 [W]
        crc INTEGER NOT NULL,
        measured INTEGER NOT NULL DEFAULT 0     -- rows ever handed in: more than there are if a mask was measured twice
    );
    CREATE TABLE scores (
        game INTEGER NOT NULL REFERENCES games (id),
        mask BLOB NOT NULL,                     -- bool [n] packed, player 0 in the highest bit
        nll BLOB NOT NULL,                      -- float64 [W]
        kl BLOB,                                -- float64 [W], NULL where it was not measured
        crc INTEGER NOT NULL,
        PRIMARY KEY (game, mask)
    ) WITHOUT ROWID;
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA user_version = {SCHEMA};
"""


@dataclass(frozen=True)
class StoredGame:
    """What a store holds of one game.

    Attributes:
        key: its number in this file.
        fingerprints: what its numbers belong to.
        n_players: players n.
        window_tokens: scored tokens of each window, length W.
        masks: masks held.
        measured: masks ever handed in; what exceeds `masks` was measured twice, by processes side by side.
        bytes: of masks and numbers.
    """

    key: int
    fingerprints: dict[str, Any]
    n_players: int
    window_tokens: tuple[int, ...]
    masks: int
    measured: int
    bytes: int


def mask_key(mask: Masks) -> bytes:
    """A mask, bool [n], as a store keeps it: ceil(n / 8) bytes, player 0 in the highest bit of the first."""
    return np.packbits(mask).tobytes()


class Store:
    """An open store file; a context manager.

    Args:
        path: the file.
        write: open it to add to it, making it (and its folder) where it is not there.

    Raises `RequestError` for a file that is not there, damaged or no store, and `RunError` when it cannot be written.
    """

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = Path(path)
        if not check_store(self.path) and not write:
            what = "is empty" if self.path.exists() else "does not exist"
            raise RequestError(f"{self.path} {what}: a store that `evaluate` wrote is needed")
        with _errors(self.path):
            if write:
                self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            self.connection = _connect(self.path, "rwc" if write else "rw")
        # Bytes of a mask and of its numbers, by game.
        self._sizes: dict[int, tuple[int, int]] = {}
        # Closed with the object even where nobody does it by hand; that last checkpoint is worth having.
        self.close = weakref.finalize(self, self.connection.close)
        if write:
            with _errors(self.path):
                self._prepare()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def games(self) -> list[StoredGame]:
        """The games held, by number."""
        with _errors(self.path):
            rows = self.connection.execute(
                "SELECT id, fingerprints, n_players, window_tokens, games.crc, measured, COUNT(mask),"
                " COALESCE(SUM(LENGTH(mask) + LENGTH(nll) + COALESCE(LENGTH(kl), 0)), 0)"
                " FROM games LEFT JOIN scores ON game = id GROUP BY id ORDER BY id"
            ).fetchall()
        return [self._game(*row) for row in rows]

    def claim(
        self, fingerprints: dict[str, Any], n_players: int, window_tokens: Sequence[int], *, add: bool = False
    ) -> int:
        """The key of a game, which is added where the store holds no game at all, or others and `add` is set.

        Raises `RequestError` when the store belongs to other games only, naming the parts in which the nearest differs.
        """
        text = _text(fingerprints)
        with _errors(self.path), self._transaction():
            games = self.games()
            for game in games:
                if _text(game.fingerprints) == text:
                    return game.key
            if not games or add:
                return self._add_game(text, n_players, np.array(window_tokens, "<i8").tobytes())
        nearest = min((differences(game.fingerprints, fingerprints) for game in games), key=len)
        raise RequestError(
            f"{self.path} belongs to another game; it differs in {', '.join(nearest)}: name another store, "
            "or ask for the game that this one holds (`layercoop-fast store info` tells)"
        )

    def scores(self, game: int, key: bytes) -> Scores | None:
        """What is held of one mask, or None."""
        with _errors(self.path):
            row = self.connection.execute(
                "SELECT mask, nll, kl, crc FROM scores WHERE game = ? AND mask = ?", (game, key)
            ).fetchone()
        return None if row is None else self._scores(game, row)

    def add(self, game: int, rows: Sequence[tuple[bytes, Scores]]) -> None:
        """Commit rows of one game; what is there already stays as it is."""
        packed = [(game, *_row(key, scores)) for key, scores in rows]
        with _errors(self.path), self._transaction():
            counted = self.connection.execute(
                "UPDATE games SET measured = measured + ? WHERE id = ?", (len(packed), game)
            )
            if counted.rowcount != 1:
                raise RunError(f"{self.path} does not hold game {game} any more: it was dropped while it was measured")
            self.connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?)", packed)

    def sync(self) -> None:
        """Bring what was committed to the disk, as far as other processes' readers allow."""
        with _errors(self.path):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def worths(self, key: int | None = None) -> Worths:
        """All masks of a game (of the only one, where `key` is None), sorted, with their worths.

        Raises `RequestError` where the utility cannot be had from its name, or needs the full model, not measured yet.
        """
        from layercoop_fast.game.utility import get_utility  # here, since it loads torch

        game = self._find(key)
        masks, scores = [], []
        for mask, row in self._rows(game.key):
            masks.append(mask)
            scores.append(row)
        n, full = game.n_players, mask_key(np.ones(game.n_players, dtype=np.bool_))
        if full not in masks:
            raise RequestError(
                f"{self.path} does not hold the full model, which worths are compared with, for game {game.key}: "
                "let the run finish (`evaluate` with resume=True)"
            )
        packed = np.frombuffer(b"".join(masks), np.uint8).reshape(len(masks), -1)
        window_nll = np.array([score.nll for score in scores])
        window_kl = np.array([score.kl for score in scores])
        utility = get_utility(game.fingerprints.get("utility", ""))
        with np.errstate(all="ignore"):  # overflow to infinity and NaN are results here
            text = game.fingerprints.get("calibration")
            worths, nll = utility.judge(window_nll, window_kl, window_nll[masks.index(full)], text)
        tokens = np.array(game.window_tokens, dtype=np.int64)
        unpacked = np.unpackbits(packed, axis=1, count=n).astype(np.bool_)
        return Worths(unpacked, worths, nll, window_nll, tokens, game.fingerprints)

    def drop(self, key: int) -> StoredGame:
        """Forget a game and give its room back; returns what it was."""
        game = self._find(key)
        with _errors(self.path):
            with self._transaction():
                self.connection.execute("DELETE FROM scores WHERE game = ?", (key,))
                self.connection.execute("DELETE FROM games WHERE id = ?", (key,))
            self.connection.execute("VACUUM")
        return game

    def take(self, other: Store) -> tuple[int, float]:
        """Add every game and row of another store, in one transaction.

        Returns how many of its masks were here already, and the largest difference between the two mean NLLs of one:
        0.0 on a CPU, where equal fingerprints mean equal bits.
        """
        repeats, largest = 0, 0.0
        own = {_text(game.fingerprints): game.key for game in self.games()}
        with _errors(self.path), self._transaction():
            for game in other.games():
                text = _text(game.fingerprints)
                if text not in own:
                    own[text] = self._add_game(text, game.n_players, np.array(game.window_tokens, "<i8").tobytes())
                for mask, scores in other._rows(game.key):
                    held = self.scores(own[text], mask)
                    if held is None:
                        row = (own[text], *_row(mask, scores))
                        self.connection.execute("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", row)
                    else:
                        repeats += 1
                        largest = float(np.fmax(largest, abs(held.nll.mean() - scores.nll.mean())))
                self.connection.execute(
                    "UPDATE games SET measured = measured + ? WHERE id = ?", (game.measured, own[text])
                )
        return repeats, largest

    def _find(self, key: int | None) -> StoredGame:
        games = {game.key: game for game in self.games()}
        if key is None and len(games) == 1:
            return next(iter(games.values()))
        if key not in games:
            held = ", ".join(map(str, games)) or "none"
            asked = f"no game {key}" if key is not None else f"{len(games)} games, so key= is needed"
            raise RequestError(f"{self.path} holds {asked}; its keys: {held}")
        return games[key]

    def _rows(self, game: int) -> Iterator[tuple[bytes, Scores]]:
        """Masks of a game, in order, with their numbers."""
        with _errors(self.path):
            for row in self.connection.execute(
                "SELECT mask, nll, kl, crc FROM scores WHERE game = ? ORDER BY mask", (game,)
            ):
                yield row[0], self._scores(game, row)

    def _game(
        self, key: int, text: Any, n_players: Any, window_tokens: Any, crc: Any, measured: Any, masks: int, size: int
    ) -> StoredGame:
        """A row of games, checked."""
        kinds = (type(text), type(n_players), type(window_tokens), type(measured))
        if kinds != (str, int, bytes, int) or len(window_tokens) % 8 or len(text) > MAX_JSON_BYTES:
            raise _damaged(self.path, f"a value of game {key} is of another type")
        if crc != _crc(text, n_players, window_tokens):
            raise _damaged(self.path, f"the checksum of game {key} is wrong")
        where = f"{self.path}, game {key}"
        tokens = np.frombuffer(window_tokens, "<i8")
        fingerprints = parse_json(text, f"{where}: fingerprints")
        check_measured(fingerprints, n_players, tokens, where)
        self._sizes[key] = (-(-n_players // 8), len(window_tokens))
        return StoredGame(key, fingerprints, n_players, tuple(tokens.tolist()), masks, measured, size)

    def _scores(self, game: int, row: tuple[Any, Any, Any, Any]) -> Scores:
        """A row of scores, checked."""
        mask, nll, kl, crc = row
        if not all(isinstance(one, bytes) for one in (mask, nll, b"" if kl is None else kl)):
            raise _damaged(self.path, "a value of a mask is of another type")
        if crc != _crc(mask, nll, kl):
            raise _damaged(self.path, "the checksum of a mask is wrong")
        if game not in self._sizes:
            self.games()
        if (len(mask), len(nll)) != self._sizes.get(game) or len(nll) != len(nll if kl is None else kl):
            raise _damaged(self.path, "a mask or its numbers are not as long as those of its game")
        values = np.frombuffer(nll, "<f8")
        return Scores(values, np.full_like(values, np.nan) if kl is None else np.frombuffer(kl, "<f8"))

    def _add_game(self, text: str, n_players: int, window_tokens: bytes) -> int:
        row = (text, n_players, window_tokens, _crc(text, n_players, window_tokens))
        added = self.connection.execute(
            "INSERT INTO games (fingerprints, n_players, window_tokens, crc) VALUES (?, ?, ?, ?)", row
        )
        key = int(added.lastrowid or 0)
        self._sizes[key] = (-(-n_players // 8), len(window_tokens))
        return key

    def _prepare(self) -> None:
        """WAL mode and the tables, in a file that may be new, and that another process may be preparing now."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            # Two that change the mode at once are told "locked" straight away, whatever the timeout.
            try:
                self.connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            if self.connection.execute("PRAGMA user_version").fetchone() == (0,):
                for statement in _SCHEMA_SQL.split(";"):
                    self.connection.execute(statement)
            # BEGIN IMMEDIATE puts up with a file that cannot be written; a statement that writes no row does not.
            self.connection.execute("UPDATE games SET measured = measured WHERE FALSE")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")


def check_store(path: Path) -> bool:
    """Refuse a file that is damaged, not a store, or of another schema, without changing it.

    Returns whether there is a store: a run that was killed at its very beginning leaves a file without tables.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder: a store is a file")
    if not path.exists():
        return False
    had_log = _log(path).exists()
    try:
        return _examine(path)
    except RequestError:
        # SQLite leaves what a reader makes; the next to open a sound store clears that away. A log that holds something
        # was not made by this reader.
        if not had_log and not (_log(path).exists() and _log(path).stat().st_size):
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise


def _examine(path: Path) -> bool:
    """`check_store` of a file, through a connection that cannot change it."""
    # A run killed while it made the file leaves a journal, which must be rolled back before anything can be read.
    half_made = path.with_name(f"{path.name}-journal").exists()
    with _errors(path):
        connection = _connect(path, "rw" if half_made else "ro")
        try:
            connection.execute("BEGIN")  # one state of the file for all questions: another process may be making it
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            tables = _tables(connection)
            if tables and application != _APPLICATION_ID:
                raise RequestError(f"{path} is an SQLite file of another program, not a store")
            if schema not in (SCHEMA, 0):
                raise RequestError(f"{path} is a store of schema {schema}: this version reads schema {SCHEMA}")
            # Before anything of the file is evaluated: a check of its rows runs the expressions of its tables.
            if tables and (tables != _own_tables() or schema == 0):
                raise RequestError(f"{path} has other tables than a store: it was made or changed by another program")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    if verdict != "ok":
        raise _damaged(path, str(verdict))
    return bool(tables)


def _tables(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    """What a file's schema holds, tables, indices, views and triggers: kind, name, table and SQL of each, sorted.

    Comments and blanks are left out of the SQL, so that none of them can make a difference.
    """
    # A store has five; more need not be read to be told apart.
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 16").fetchall()
    return sorted(tuple(" ".join(re.sub(r"--[^\n]*", "", str(part)).split()) for part in row) for row in rows)


@cache
def _own_tables() -> list[tuple[str, ...]]:
    """What the schema of a store holds."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA_SQL)
        return _tables(connection)


def merge(sources: Sequence[Path], target: Path, *, force: bool = False) -> dict[str, Any]:
    """Join stores into a new one, written whole or not at all; the sources stay as they are.

    Returns `games`, `masks`, `repeats` (masks held by more than one source, of which the first counts) and
    `largest_difference` between two mean NLLs of one mask.

    Raises `RequestError` for a file that is not a sound store of this schema, or a target that exists (unless `force`).
    """
    check_target(target, force=force)
    if _log(target).exists():
        # It would be replayed into the new file.
        raise RequestError(
            f"{target} cannot be written: {_log(target).name} next to it says that a store of that name is in use, or "
            "that its run was killed (`layercoop-fast store info` clears that up); name another out="
        )
    repeats, largest = 0, 0.0
    with written_whole(target, force=force) as made, ExitStack() as stack:
        opened = [stack.enter_context(Store(source)) for source in sources]
        joined = stack.enter_context(Store(made, write=True))
        for store in opened:
            more, difference = joined.take(store)
            repeats, largest = repeats + more, max(largest, difference)
        games = joined.games()
    masks = sum(game.masks for game in games)
    return {"games": len(games), "masks": masks, "repeats": repeats, "largest_difference": largest}


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The parts in which two games' fingerprints differ, "numerics.threads (2 there, 1 here)" for example."""
    there, here = dict(_parts(stored)), dict(_parts(asked))
    return [
        f"{name} ({_short(there.get(name))} there, {_short(here.get(name))} here)"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _parts(fingerprints: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested dict, "numerics.threads" for what is under both names."""
    for name, value in fingerprints.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    """A value as an error line can hold it: of a digest, its beginning."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors as errors of the package."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise RunError(
            f"{path} cannot be read or written: {reason(error)}; everything committed to it before is kept"
        ) from error
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise _damaged(path, reason(error)) from error
    except MemoryError as error:
        raise _damaged(path, "a value of it does not fit into memory") from error


def _damaged(path: Path, how: str) -> RequestError:
    return RequestError(
        f"{path} is damaged ({' '.join(how.split())}) and was left as it is: bring back a copy of it, or move it away "
        "to measure again"
    )


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a file: "ro" leaves it as it is, "rw" folds in the log of a run that was killed, "rwc" may make it."""
    options = f"mode={mode}"
    if mode != "rwc" and not os.access(path.absolute().parent, os.W_OK):
        # A reader too makes files next to the store; where it may not, a writer may not either.
        options = "mode=ro" if _log(path).exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun and ended by hand
        check_same_thread=False,  # a finaliser may run in any thread; a store is used by one at a time
    )
    # Nothing of the file's own schema may call a function that has effects, whatever it says.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.text_factory = lambda content: content.decode("utf-8", "replace")
    return connection


def _log(path: Path) -> Path:
    """The write-ahead log of a store: there while it is open, and after a kill."""
    return path.with_name(f"{path.name}-wal")


def _row(key: bytes, scores: Scores) -> tuple[bytes, bytes, bytes | None, int]:
    nll = scores.nll.astype("<f8").tobytes()
    kl = None if np.isnan(scores.kl).all() else scores.kl.astype("<f8").tobytes()
    return key, nll, kl, _crc(key, nll, kl)


def _crc(*parts: object) -> int:
    """CRC-32 over the parts and their lengths."""
    crc = 0
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        crc = zlib.crc32(data, zlib.crc32(len(data).to_bytes(8, "little"), crc))
    return crc


def _text(fingerprints: dict[str, Any]) -> str:
    return json.dumps(fingerprints, sort_keys=True)

"""Stores that others made: nothing in them runs, and what is odd in them is said in one line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.store import Store, _crc, mask_key, merge
from layercoop_fast.masked.scores import Scores

PRINTS = {"model": "a" * 64, "utility": "nll", "players": "layers", "numerics": {"threads": 2}}


def make(path: Path) -> Path:
    with Store(path, write=True) as store:
        key = store.claim(PRINTS, 9, [7, 7])
        store.add(key, [(mask_key(np.ones(9, bool)), Scores(np.ones(2), np.full(2, np.nan)))])
    return path


def changed(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)
    return path


def refused(path: Path, sound: Path, message: str) -> None:
    for write in (False, True):
        with pytest.raises(RequestError, match=message):
            with Store(path, write=write) as store:
                store.worths(1)
    with pytest.raises(RequestError, match=message):
        merge([sound, path], path.with_name("joined"))
    assert not path.with_name("joined").exists()


# Each would run when the package reads, writes or checks the file.
SCHEMAS = {
    "a view in place of a table": ("ALTER TABLE games RENAME TO g", "CREATE VIEW games AS SELECT * FROM g"),
    "a trigger": ("CREATE TRIGGER t AFTER UPDATE ON games BEGIN DELETE FROM scores; END",),
    "a trigger on rows": ("CREATE TRIGGER t BEFORE DELETE ON scores BEGIN SELECT RAISE(ABORT, 'kept'); END",),
    "an index of an expression": ("CREATE INDEX i ON scores (hex(nll))",),
    "a column that is computed": ("ALTER TABLE games ADD COLUMN x AS (hex(zeroblob(9)))",),
    "a table more": ("CREATE TABLE x (y)",),
    "a table less": ("DROP TABLE scores",),
}


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_other_tables_than_ours_are_refused_unread(statements: tuple[str, ...], tmp_path: Path) -> None:
    path = changed(make(tmp_path / "a"), *statements)
    refused(path, make(tmp_path / "sound"), "has other tables than a store")


def test_a_schema_that_differs_by_comments_and_blanks_is_ours(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'games'").fetchone()
        text = text.replace("\n", "  -- said otherwise\n")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'games'", (text,))
    with Store(path) as store:
        assert len(store.worths().masks) == 1


def test_expressions_of_a_file_may_call_nothing_with_effects(tmp_path: Path) -> None:
    with Store(make(tmp_path / "a"), write=True) as store:
        assert store.connection.execute("PRAGMA trusted_schema").fetchone() == (0,)


_ITEMS = {name: [2] for name in ("options", "labels", "tokens", "characters")}
ROWS: dict[str, tuple[Any, Any, Any, str]] = {
    "no object": ("[]", 9, [7, 7], "fingerprints are no JSON object"),
    "no JSON": ("{", 9, [7, 7], "fingerprints is not JSON"),
    "many levels": ("[" * 10**5, 9, [7, 7], "it has too many levels"),
    "a utility that is none": (json.dumps({**PRINTS, "utility": [1]}), 9, [7, 7], "fingerprint of utility is not text"),
    "a number that is none": ('{"numerics": {"a": 1e999}}', 9, [7, 7], "Out of range float values"),
    "many players": (json.dumps(PRINTS), 2**40, [7, 7], "is about 1099511627776 players: 1 to 65,536"),
    "other players": (json.dumps({**PRINTS, "players": "[[0], [1]]"}), 9, [7, 7], "players are not those of its masks"),
    "players as text": (json.dumps(PRINTS), b"9", [7, 7], "a value of game 1 is of another type"),
    "other windows": (json.dumps(PRINTS), 9, [7], "not as long as those of its game"),
    "windows of nothing": (json.dumps(PRINTS), 9, [7, 0], "1 scored token at least"),
    "texts of other windows": (
        json.dumps({**PRINTS, "calibration": {"domains": [0, 1, 5], "weights": [1, 1]}}),
        *(9, [7, 7], "texts or items are not those of its windows"),
    ),
    "items of other tokens": (
        json.dumps({**PRINTS, "calibration": _ITEMS}),
        *(9, [1, 1], "texts or items are not those of its windows"),
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_well_formed_games_that_are_none_are_refused(row: tuple[Any, Any, Any, str], tmp_path: Path) -> None:
    text, players, tokens, message = row
    blob = np.array(tokens, "<i8").tobytes()
    path = make(tmp_path / "a")
    statement = "UPDATE games SET fingerprints = ?, n_players = ?, window_tokens = ?, crc = ?"
    changed(path, statement, values=(text, players, blob, _crc(text, players, blob)))
    refused(path, make(tmp_path / "sound"), message)


@pytest.mark.parametrize(
    ("mask", "nll", "kl", "message"),
    [
        (b"\0\0\0", bytes(16), None, "not as long as those of its game"),
        (b"\0\0", bytes(15), None, "not as long as those of its game"),
        (b"\0\0", bytes(16), bytes(8), "not as long as those of its game"),
        (b"\0\0", "text", None, "a value of a mask is of another type"),
    ],
)
def test_well_formed_rows_that_are_none_are_refused(
    mask: bytes, nll: Any, kl: Any, message: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "a")
    row = (mask, nll, kl, _crc(mask, nll, kl))
    changed(path, "INSERT INTO scores VALUES (1, ?, ?, ?, ?)", values=row)
    with pytest.raises(RequestError, match=message), Store(path) as store:
        store.worths()
    with pytest.raises(RequestError, match=message):
        merge([make(tmp_path / "sound"), path], tmp_path / "joined")

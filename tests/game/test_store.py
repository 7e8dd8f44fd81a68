"""The store keeps what was measured, through kills, full disks and damage, and never mixes two games."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_player import MASKS, NOBODY, Player

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.known_scores import KnownScores, store_of_run
from layercoop_fast.game.store import Store, differences, mask_key, merge
from layercoop_fast.game.worths import Worths
from layercoop_fast.masked.scores import Scores

W = 3
TOKENS = [7] * W


def prints(**changes: Any) -> dict[str, Any]:
    numerics = {"torch": "2.0", "threads": 2}
    return {"model": "a" * 64, "utility": "nll", "players": "layers", "numerics": numerics, **changes}


def some_rows(n: int, count: int, seed: int = 0) -> list[tuple[bytes, Scores]]:
    """Distinct masks of n players, the full one among them, with random numbers."""
    rng = np.random.default_rng(seed)
    masks = np.unique(rng.random((3 * count, n)) < 0.5, axis=0)[-count:]
    masks[-1] = True
    return [(mask_key(mask), Scores(rng.random(W), np.full(W, np.nan))) for mask in masks]


def make(path: Path, n: int = 11, count: int = 40, *, seed: int = 0, **changes: Any) -> Path:
    """A store of one game."""
    with Store(path, write=True) as store:
        store.add(store.claim(prints(**changes), n, TOKENS), some_rows(n, count, seed))
    return path


def held(path: Path) -> int:
    """Masks that a store holds; 0 where there is none yet."""
    try:
        with Store(path) as store:
            return sum(game.masks for game in store.games())
    except RequestError:
        return 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 64, 67])
def test_numbers_come_back_bit_for_bit(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    masks = np.unique(np.concatenate([rng.random((5, n)) < 0.5, np.ones((1, n), bool)]), axis=0)
    numbers = rng.random((len(masks), 2, W))
    numbers[0, 0] = [np.nan, np.inf, -0.0]
    path = tmp_path / "a.store"
    with Store(path, write=True) as store:
        key = store.claim(prints(), n, TOKENS)
        store.add(key, [(mask_key(mask), Scores(*pair)) for mask, pair in zip(masks, numbers, strict=True)])
    with Store(path) as store:
        for mask, (nll, kl) in zip(masks, numbers, strict=True):
            found = store.scores(key, mask_key(mask))
            assert found is not None
            assert (found.nll.tobytes(), found.kl.tobytes()) == (nll.tobytes(), kl.tobytes())
        assert store.scores(key + 1, mask_key(masks[0])) is None
        worths = store.worths()
        (game,) = store.games()
    assert worths.masks.shape == masks.shape
    assert {mask.tobytes() for mask in worths.masks} == {mask.tobytes() for mask in masks}
    assert np.array_equal(worths.nll, worths.window_nll.mean(1), equal_nan=True)
    assert np.array_equal(worths.worths, -worths.nll, equal_nan=True)
    assert worths.window_tokens.tolist() == TOKENS
    assert worths.fingerprints == prints() == game.fingerprints
    size = len(masks) * (-(-n // 8) + 2 * 8 * W)
    assert (game.n_players, game.masks, game.measured, game.bytes) == (n, len(masks), len(masks), size)
    assert names(tmp_path) == ["a.store"]  # the log is folded in and gone


def test_an_export_needs_the_full_model_and_a_known_utility(tmp_path: Path) -> None:
    path = tmp_path / "a.store"
    with Store(path, write=True) as store:
        key = store.claim(prints(), 11, TOKENS)
        with pytest.raises(RequestError, match=r"does not hold the full model.*let the run finish"):
            store.worths()
        store.add(key, some_rows(11, 3)[:-1])
        with pytest.raises(RequestError, match="does not hold the full model"):
            store.worths(key)
    with (
        pytest.raises(RequestError, match="unknown utility 'mine'"),
        Store(make(tmp_path / "b", utility="mine")) as store,
    ):
        store.worths()


def test_the_ratio_is_to_the_full_model(tmp_path: Path) -> None:
    with Store(make(tmp_path / "a", utility="ppl_ratio")) as store:
        worths = store.worths()
    full = worths.nll[worths.masks.all(1)]
    assert worths.worths == pytest.approx(np.exp(full - worths.nll), rel=1e-14)


def test_rows_are_added_once_and_counted(tmp_path: Path) -> None:
    rows = some_rows(11, 10)
    path = make(tmp_path / "a", count=10)
    with Store(path, write=True) as store:
        changed = [(key, Scores(scores.nll + 1, scores.kl)) for key, scores in rows]
        store.add(store.claim(prints(), 11, TOKENS), changed)
        (game,) = store.games()
        assert (game.masks, game.measured) == (10, 20)
        found = store.scores(game.key, rows[0][0])
        assert found is not None
        assert np.array_equal(found.nll, rows[0][1].nll)  # what was there first stays


def test_another_game_is_refused_with_the_part_that_differs(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with Store(path, write=True) as store:
        for changes, message in [
            ({"model": "b" * 64}, r"differs in model \(aaaaaaaaaaaa\.\.\. there, bbbbbbbbbbbb\.\.\. here\): name"),
            ({"utility": "kl"}, r"differs in utility \(nll there, kl here\)"),
            ({"numerics": {"torch": "2.0", "threads": 1}}, r"differs in numerics\.threads \(2 there, 1 here\)"),
            ({"numerics": {"torch": "2.0"}}, r"differs in numerics\.threads \(2 there, nothing here\)"),
        ]:
            with pytest.raises(RequestError, match=message):
                store.claim(prints(**changes), 11, TOKENS)
        assert len(store.games()) == 1
    # Of several games the nearest is named.
    merge([path, make(tmp_path / "b", model="b" * 64, dtype="float32")], tmp_path / "c")
    with Store(tmp_path / "c", write=True) as store:
        with pytest.raises(RequestError, match=r"differs in utility \(nll there, kl here\): name"):
            store.claim(prints(utility="kl"), 11, TOKENS)
        assert store.claim(prints(), 11, TOKENS) == 1


def test_long_values_that_begin_alike_are_told_apart() -> None:
    assert differences({"players": "x" * 60 + "1"}, {"players": "x" * 60 + "2"}) != []
    assert differences(prints(), prints()) == []


def test_a_shelf_commits_in_time_and_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("layercoop_fast.game.known_scores.time.monotonic", lambda: now)
    path, rows = tmp_path / "a", some_rows(11, 6)
    store = Store(path, write=True)
    shelf = KnownScores(store, store.claim(prints(), 11, TOKENS))
    shelf.add(*rows[0])
    assert (rows[0][0] in shelf, shelf.settled, held(path)) == (True, False, 0)
    now += 0.6
    shelf.add(*rows[1])
    assert (shelf.settled, held(path)) == (True, 2)
    shelf.add(*rows[2])
    shelf.commit_when_due()
    assert (shelf.settled, held(path)) == (False, 2)
    now += 0.6
    shelf.commit_when_due()
    assert (shelf.settled, held(path)) == (True, 3)
    log = path.with_name("a-wal")
    synced = []
    monkeypatch.setattr(store, "sync", lambda: synced.append(log.stat().st_size))
    for row in rows[3:]:
        now += 20
        shelf.add(*row)
    assert len(synced) == 1
    shelf.close()
    assert (rows[5][0] in shelf, len(shelf), held(path)) == (True, 6, 6)
    assert not log.exists()


def test_a_shelf_without_a_store_is_a_memory(tmp_path: Path) -> None:
    shelf, (key, scores) = KnownScores(), some_rows(11, 1)[0]
    assert key not in shelf
    shelf.add(key, scores)
    assert shelf[key] is scores
    assert shelf.settled
    shelf.close()
    assert key in shelf


@pytest.mark.parametrize("failure", [sqlite3.OperationalError("database or disk is full"), KeyboardInterrupt()])
def test_what_could_not_be_committed_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path, rows = make(tmp_path / "a", count=10), some_rows(11, 10, seed=9)
    store = Store(path, write=True)
    shelf = KnownScores(store, store.claim(prints(), 11, TOKENS))
    connection = store.connection

    class Failing:
        in_transaction = True

        def execute(self, statement: str, *parameters: Any) -> Any:
            return connection.execute(statement, *parameters)

        def executemany(self, statement: str, rows: Any) -> Any:
            connection.executemany(statement, rows[:1])
            raise failure

    fresh = [row for row in rows if row[0] not in shelf]
    with monkeypatch.context() as patch:
        patch.setattr(store, "connection", Failing())
        shelf.add(*fresh[0])
        shelf.add(*fresh[1])
        with pytest.raises((RunError, KeyboardInterrupt)) as raised:
            shelf.commit()
    if isinstance(failure, sqlite3.Error):
        assert "database or disk is full; everything committed to it before is kept" in str(raised.value)
    assert fresh[0][0] not in shelf
    assert shelf.settled
    assert held(path) == 10
    store.close()


def test_a_game_dropped_while_it_is_played(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with Store(path, write=True) as playing:
        key = playing.claim(prints(), 11, TOKENS)
        with Store(path, write=True) as other:
            assert other.drop(key).masks == 40
            new = other.claim(prints(model="c" * 64), 11, TOKENS)
        assert new != key  # or the rows of one game would be taken for those of another
        with pytest.raises(RunError, match=r"does not hold game 1 any more: it was dropped"):
            playing.add(key, some_rows(11, 3))
    assert held(path) == 0


# --- files that are damaged, or something else ---


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        before = path.read_bytes() if path.is_file() else b""
        for write in (False, True):
            with pytest.raises(RequestError, match=message):
                Store(path, write=write)
        with pytest.raises(RequestError, match=message):
            merge([make(tmp_path / f"good {len(names(tmp_path))}"), path], tmp_path / "joined")
        assert before == (path.read_bytes() if path.is_file() else b"")
        assert not (tmp_path / "joined").exists()

    (tmp_path / "text").write_text("something else " * 999)
    refused(tmp_path / "text", r"text is damaged \(file is not a database\) and was left as it is: bring back a copy")
    refused(tmp_path, "is a folder: a store is a file")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE songs (name)")
    other.close()
    refused(tmp_path / "other", "is an SQLite file of another program, not a store")
    make(tmp_path / "future")
    with sqlite3.connect(tmp_path / "future") as future:
        future.execute("PRAGMA user_version = 9")
    future.close()
    refused(tmp_path / "future", "is a store of schema 9: this version reads schema 1")
    short = make(tmp_path / "short", count=500)
    os.truncate(short, short.stat().st_size // 2)
    refused(short, "short is damaged")


def test_what_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist: a store that `evaluate` wrote is needed"):
        Store(tmp_path / "a")
    (tmp_path / "a").touch()  # a run that was killed at once leaves no more than this
    with pytest.raises(RequestError, match="is empty"):
        Store(tmp_path / "a")
    make(tmp_path / "a")
    assert held(tmp_path / "a") == 40


def test_a_flipped_bit_is_an_error_or_changes_no_number(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", count=200)
    with Store(whole) as store:
        expected = store.worths()
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for place in rng.choice(len(data), 100, replace=False):
        broken = tmp_path / "broken"
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        broken.write_bytes(flipped)
        try:
            with Store(broken) as store:
                found = store.worths()
        except (RequestError, RunError) as error:
            errors += "broken" in str(error)
        else:
            assert np.array_equal(found.masks, expected.masks), place
            assert found.window_nll.tobytes() == expected.window_nll.tobytes(), place
            assert found.window_tokens.tolist() == TOKENS
            assert found.fingerprints == expected.fingerprints
        assert broken.read_bytes() == flipped
        assert names(tmp_path) == ["broken", "whole"]
    assert errors > 20


def test_a_torn_log_costs_its_last_commit_only(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with Store(path, write=True) as store:
        key = store.claim(prints(), 11, TOKENS)
        for row in some_rows(11, 9):
            store.add(key, [row])
        shutil.copy(path, tmp_path / "b")  # as a kill would leave the two
        shutil.copy(tmp_path / "a-wal", tmp_path / "b-wal")
    log = tmp_path / "b-wal"
    os.truncate(log, log.stat().st_size - 100)
    assert held(tmp_path / "b") == 8
    with Store(tmp_path / "b", write=True) as store:
        assert store.claim(prints(), 11, TOKENS) == key
    assert names(tmp_path) == ["a", "b"]


def test_a_kill_while_the_file_is_made_is_made_good(tmp_path: Path) -> None:
    """It leaves a rollback journal, not yet a log: an unfinished transaction that has reached the file."""
    script = (
        "import os, sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('CREATE TABLE first (a)'); connection.execute('DROP TABLE first')\n"
        "connection.execute('PRAGMA cache_size = 1'); connection.execute('BEGIN')\n"
        "for i in range(300): connection.execute(f'CREATE TABLE t{i} (a)')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    for name, write in (("a", False), ("b", True)):
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=False)
        assert (tmp_path / f"{name}-journal").stat().st_size > 0
        if write:
            make(tmp_path / name)
        else:
            with pytest.raises(RequestError, match="is empty"):
                Store(tmp_path / name)
    assert held(tmp_path / "b") == 40


# --- joining ---


def test_merging_is_the_union(tmp_path: Path) -> None:
    rows = some_rows(11, 40)
    for name, part in (("a", rows[:30]), ("b", rows[20:])):
        with Store(tmp_path / name, write=True) as store:
            store.add(store.claim(prints(), 11, TOKENS), part)
    make(tmp_path / "c", n=9, count=5, model="c" * 64)
    before = [(tmp_path / name).read_bytes() for name in "abc"]
    joined = merge([tmp_path / name for name in "abc"], tmp_path / "deep" / "all")
    assert joined == {"games": 2, "masks": 45, "repeats": 10, "largest_difference": 0.0}
    assert before == [(tmp_path / name).read_bytes() for name in "abc"]
    with Store(tmp_path / "deep" / "all") as store:
        first, second = store.games()
        assert (first.masks, first.measured, second.masks) == (40, 50, 5)
        for key, scores in rows:
            found = store.scores(first.key, key)
            assert found is not None
            assert np.array_equal(found.nll, scores.nll)
        with pytest.raises(RequestError, match="holds 2 games, so key= is needed; its keys: 1, 2"):
            store.worths()
        with pytest.raises(RequestError, match="holds no game 3; its keys: 1, 2"):
            store.worths(3)
        assert store.worths(second.key).masks.shape == (5, 9)
    assert names(tmp_path / "deep") == ["all"]


def test_merging_says_how_far_apart_repeats_are(tmp_path: Path) -> None:
    rows = some_rows(11, 4)
    for name, shift in (("a", 0.0), ("b", 0.25)):
        with Store(tmp_path / name, write=True) as store:
            moved = [(key, Scores(scores.nll + shift, scores.kl)) for key, scores in rows]
            store.add(store.claim(prints(), 11, TOKENS), moved)
    joined = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (joined["masks"], joined["repeats"]) == (4, 4)
    assert joined["largest_difference"] == pytest.approx(0.25)
    with Store(tmp_path / "c") as store:
        found = store.scores(1, rows[0][0])
        assert found is not None
        assert np.array_equal(found.nll, rows[0][1].nll)  # the first source counts


def test_merging_adds_up_what_was_ever_measured(tmp_path: Path) -> None:
    """Also what was measured twice within one store; counted once a source, on top of what the target holds."""
    rows = some_rows(11, 12)
    for name, parts in (("a", [rows[:8], rows[:5]]), ("b", [rows[6:]])):
        with Store(tmp_path / name, write=True) as store:
            for part in parts:
                store.add(store.claim(prints(), 11, TOKENS), part)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with Store(tmp_path / "c") as store:
        (game,) = store.games()
    assert (game.masks, game.measured) == (12, 8 + 5 + 6)


def test_the_largest_difference_of_repeats_counts_wherever_it_stands(tmp_path: Path) -> None:
    """Of masks in any order within a file, of files in any order, upwards or downwards."""
    rows = some_rows(11, 5)
    shifts = {"a": [0.0] * 5, "b": [0.5, -2.0, 0.25, 0.0, 1.0], "c": [0.0, 0.0, 0.125, 3.0, 0.5]}
    for name, by_mask in shifts.items():
        with Store(tmp_path / name, write=True) as store:
            moved = [(key, Scores(scores.nll + by, scores.kl)) for (key, scores), by in zip(rows, by_mask, strict=True)]
            store.add(store.claim(prints(), 11, TOKENS), moved)
    for number, (sources, largest) in enumerate(
        {("a", "b"): 2.0, ("b", "a"): 2.0, ("a", "c", "b"): 3.0, ("a", "b", "c"): 3.0, ("a", "a"): 0.0}.items()
    ):
        joined = merge([tmp_path / name for name in sources], tmp_path / f"joined {number}")
        assert joined["largest_difference"] == pytest.approx(largest), sources
        assert joined["repeats"] == 5 * (len(sources) - 1)


def test_a_difference_that_is_no_number_hides_no_other(tmp_path: Path) -> None:
    rows = some_rows(11, 3)
    for name, nlls in (("a", [1.0, 1.0, 1.0]), ("b", [1.5, np.nan, 1.25]), ("c", [np.nan, 1.75, 1.0])):
        with Store(tmp_path / name, write=True) as store:
            made = [(key, Scores(np.full(W, nll), s.kl)) for (key, s), nll in zip(rows, nlls, strict=True)]
            store.add(store.claim(prints(), 11, TOKENS), made)
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")["largest_difference"] == 0.5
    assert merge([tmp_path / "a", tmp_path / "b", tmp_path / "c"], tmp_path / "abc")["largest_difference"] == 0.75


def test_dropping_takes_all_of_one_game_and_nothing_of_another(tmp_path: Path) -> None:
    """Asked of the file itself: rows that no game claims would be in nobody's way but the disk's."""
    path, other = make(tmp_path / "a", count=500), make(tmp_path / "b", n=9, count=30, model="c" * 64)
    merge([path, other], tmp_path / "both")
    size = (tmp_path / "both").stat().st_size
    with Store(tmp_path / "both") as store:
        before = store.worths(2)
        dropped = store.drop(1)
        assert (dropped.key, dropped.masks, dropped.n_players) == (1, 500, 11)
        with pytest.raises(RequestError, match="holds no game 1; its keys: 2"):
            store.drop(1)
    with sqlite3.connect(tmp_path / "both") as raw:
        assert raw.execute("SELECT game, COUNT(*) FROM scores GROUP BY game").fetchall() == [(2, 30)]
        assert raw.execute("SELECT id FROM games").fetchall() == [(2,)]
    raw.close()
    assert (tmp_path / "both").stat().st_size < size / 2
    with Store(tmp_path / "both") as store:
        after = store.worths()
    assert np.array_equal(after.masks, before.masks)
    assert after.window_nll.tobytes() == before.window_nll.tobytes()


def test_merging_overwrites_nothing_unasked_and_no_store_in_use(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    before = two.read_bytes()
    with pytest.raises(RequestError, match="exists already"):
        merge([one, two], two)
    assert two.read_bytes() == before
    with Store(two, write=True), pytest.raises(RequestError, match="b-wal next to it says that a store of that name"):
        merge([one, two], two, force=True)
    assert two.read_bytes() == before
    merge([one, two], two, force=True)
    assert held(two) > held(one)
    assert names(tmp_path) == ["a", "b"]
    shutil.copy(one, tmp_path / "c-wal")  # what a run that was killed leaves, its file gone
    with pytest.raises(RequestError, match="c-wal next to it says"):
        merge([one, two], tmp_path / "c")


# --- the run's own store ---


def test_the_store_beside_an_output_goes_when_the_output_is_there(tmp_path: Path) -> None:
    out = tmp_path / "worths.npz"
    with store_of_run(out, resume=False) as path:
        make(path)
    assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), store_of_run(out, resume=False) as path:
        make(path)
        raise ZeroDivisionError
    assert held(tmp_path / "worths.npz.store") == 40
    with pytest.raises(RequestError, match=r"worths\.npz\.store holds what a run .*: pass resume=True to go on"):
        store_of_run(out, resume=False).__enter__()
    with store_of_run(out, resume=True) as path:
        assert held(path) == 40
    assert names(tmp_path) == []


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store_of_run(tmp_path / "worths.npz", resume=False) as path:
        Store(path, write=True).close()
        raise ZeroDivisionError
    assert names(tmp_path) == []


# --- processes that are killed, crowded or refused ---


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with Player() as player:
        yield player


@pytest.fixture(scope="module")
def whole(player: Player, tmp_path_factory: pytest.TempPathFactory) -> Worths:
    """What an undisturbed run measures."""
    folder = tmp_path_factory.mktemp("whole")
    assert player.play(folder / "store", folder / "out") == 0
    return Worths.load(folder / "out")


def wait_until_held(path: Path, masks: int) -> None:
    deadline = time.monotonic() + 60
    while held(path) < masks:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_the_same(out: Path, whole: Worths, rows: slice = slice(None)) -> None:
    """Bit for bit."""
    found = Worths.load(out)
    assert np.array_equal(found.masks, whole.masks[rows])
    assert found.window_nll.tobytes() == whole.window_nll[rows].tobytes()
    assert found.worths.tobytes() == whole.worths[rows].tobytes()


def test_three_kills_lose_nothing_committed_and_count_nothing_twice(
    player: Player, whole: Worths, tmp_path: Path
) -> None:
    store, out = tmp_path / "a.store", tmp_path / "out"
    kept = 0
    for share in (0.1, 0.4, 0.7):
        child = player.start(store, out)
        wait_until_held(store, int(share * len(MASKS)))
        os.kill(child, signal.SIGKILL)
        assert player.wait(child) == -signal.SIGKILL
        assert not out.exists()
        assert held(store) >= kept
        kept = held(store)
        assert kept < len(MASKS)
    assert player.play(store, out) == 0
    assert_the_same(out, whole)
    with Store(store) as opened:
        (game,) = opened.games()
    assert game.masks == game.measured == len(MASKS) + 1  # and the full model


def test_two_processes_share_one_store(player: Player, whole: Worths, tmp_path: Path) -> None:
    store, middle = tmp_path / "a.store", len(MASKS) // 2
    parts = {tmp_path / "a": slice(0, middle + 40), tmp_path / "b": slice(middle - 40, len(MASKS))}
    children = [player.start(store, out, first=part.start, last=part.stop) for out, part in parts.items()]
    assert [player.wait(child) for child in children] == [0, 0]
    for out, part in parts.items():
        assert_the_same(out, whole, part)
    with Store(store) as opened:
        (game,) = opened.games()
        assert game.masks == len(MASKS) + 1
        assert game.masks <= game.measured <= game.masks + 81
        union = opened.worths()
    order = np.lexsort(whole.masks.T[::-1])
    rows = ~union.masks.all(1)
    assert np.array_equal(union.masks[rows], whole.masks[order])
    assert union.window_nll[rows].tobytes() == whole.window_nll[order].tobytes()
    assert union.worths[rows].tobytes() == whole.worths[order].tobytes()


def test_a_full_disk_keeps_what_was_committed(player: Player, whole: Worths, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: it is met by the log, some commits after the start."""
    store, out = tmp_path / "a.store", tmp_path / "out"
    assert player.play(store, out, file_bytes=120_000) == RunError.status
    assert "a.store cannot be read or written: " in out.read_text()
    assert "everything committed to it before is kept" in out.read_text()
    assert 0 < held(store) < len(MASKS)
    assert player.play(store, out) == 0
    assert_the_same(out, whole)


def test_a_folder_that_may_not_be_written(player: Player, whole: Worths) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, into which nobody else may look
        folder = Path(name)
        make(folder / "a.store")
        for path, mode in ((folder / "a.store", 0o444), (folder, 0o555)):
            path.chmod(mode)
        with tempfile.TemporaryDirectory() as outside:
            Path(outside).chmod(0o777)
            out = Path(outside) / "out"
            for store in (folder / "a.store", folder / "new.store"):
                assert player.play(store, out, as_nobody=True) == RunError.status
                assert f"{store.name} cannot be read or written: " in out.read_text()
                assert "everything committed to it before is kept" in out.read_text()
                out.unlink()
        assert names(folder) == ["a.store"]
        folder.chmod(0o755)
        assert held(folder / "a.store") == 40


def test_a_store_can_be_read_where_nothing_may_be_written(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        make(folder / "a.store")
        folder.chmod(0o555)
        script = (
            "import os, sys, pathlib; from layercoop_fast.game.store import Store\n"
            f"os.geteuid() or os.setuid({NOBODY})\n"
            "with Store(pathlib.Path(sys.argv[1])) as store: assert store.games()[0].masks == 40\n"
        )
        done = subprocess.run([sys.executable, "-c", script, folder / "a.store"], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_many_processes_may_make_a_store_at_once(tmp_path: Path) -> None:
    """Forks of one that has loaded everything: they begin together, and nobody waits for five times the imports."""
    script = (
        "import os, sys, numpy as np; from layercoop_fast.game.store import Scores, Store, mask_key\n"
        "scores = Scores(np.ones(1), np.ones(1))\n"
        "waiting, shot = os.pipe()\n"
        "def play():\n"
        "    os.close(shot)\n"
        "    os.read(waiting, 1)\n"  # until the starting shot
        "    for number in range(6):\n"
        "        with Store(f'{sys.argv[1]}{number}', write=True) as store:\n"
        "            key = store.claim({'model': 'a'}, 8, [7])\n"
        "            for mask in np.eye(8, dtype=bool): store.add(key, [(mask_key(mask), scores)])\n"
        "crowd = []\n"
        "for _ in range(5):\n"
        "    crowd.append(os.fork())\n"
        "    if not crowd[-1]: break\n"
        "if not crowd[-1]:\n"
        "    play()\n"
        "else:\n"
        "    os.close(shot)\n"
        "    sys.exit(sum(os.waitpid(one, 0)[1] != 0 for one in crowd))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, tmp_path / "a"], capture_output=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    for number in range(6):
        with Store(tmp_path / f"a{number}") as store:
            (game,) = store.games()
        assert (game.masks, game.measured) == (8, 40)

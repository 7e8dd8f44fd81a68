"""Stores on the command line: runs that stop and go on, and the `store` commands."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.game.store import Store
from layercoop_fast.game.worths import Worths

L = 6
SMALL = ["--windows", "2", "--tokens", "24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("store") / "model", n_layers=L))


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    path = tmp_path / "masks.npy"
    np.save(path, np.unique(np.random.default_rng(0).random((40, L)) < 0.7, axis=0))
    return path


def counts(path: Path) -> tuple[int, int]:
    with Store(path) as store:
        (game,) = store.games()
    return game.masks, game.measured


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_measures_what_is_new(run: Any, model: str, masks: Path, tmp_path: Path) -> None:
    all_masks = np.load(masks)
    np.save(tmp_path / "half.npy", all_masks[::2])
    plain, half, full = (tmp_path / f"{name}.npz" for name in ("plain", "half", "full"))
    store = ["--store", tmp_path / "my.store"]
    assert run("evaluate", model, "--masks", masks, "--out", plain, *SMALL)[0] == 0
    assert run("evaluate", model, "--masks", tmp_path / "half.npy", "--out", half, *store, *SMALL)[0] == 0
    status, printed, errors = run("evaluate", model, "--masks", masks, "--out", full, *store, *SMALL, "--json")
    assert (status, errors) == (0, "")
    summary = json.loads(printed)
    known = len(all_masks[::2])
    assert summary["from_store"] in (known, known + 1)  # and the full model, unless it is one of the masks
    assert summary["evaluations"]["unique"] == counts(tmp_path / "my.store")[0] - summary["from_store"]
    assert Worths.load(full).window_nll.tobytes() == Worths.load(plain).window_nll.tobytes()
    assert Worths.load(full).worths.tobytes() == Worths.load(plain).worths.tobytes()
    held, measured = counts(tmp_path / "my.store")
    assert held == measured
    status, printed, _ = run("evaluate", model, "--masks", masks, "--out", full, *store, *SMALL, "--force")
    assert status == 0
    assert f"by 0 layer evaluations (naive: {all_masks.size:,}), {held} of them taken from" in printed
    assert names(tmp_path) == ["full.npz", "half.npy", "half.npz", "masks.npy", "my.store", "plain.npz"]


def test_ctrl_c_keeps_what_was_committed_and_resume_goes_on(
    run: Any, model: str, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "worths.npz"
    command = ["evaluate", model, "--masks", masks, "--out", out, *SMALL]
    reports = []

    def interrupted(_: Any, stage: str, done: int, total: int) -> None:
        kept = counts(tmp_path / "worths.npz.store")[0]
        reports.append(kept)
        if kept > 10:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("layercoop_fast.game.known_scores.COMMIT_SECONDS", 0.0)
        patch.setattr("layercoop_fast.progress.Bars.update", interrupted)
        status, _, error = run(*command)
    assert status == 1
    assert error.count("\n") == 1
    kept, measured = counts(tmp_path / "worths.npz.store")
    assert kept == measured == reports[-1]  # nothing is reported before it is committed
    assert f"stopped. The {kept} masks measured so far are kept in {out}.store: the same command with --resume" in error
    assert kept < len(np.load(masks))

    status, _, error = run(*command)
    assert (status, "pass --resume to go on from there" in error) == (2, True)
    status, printed, _ = run(*command, "--resume", "--json")
    assert status == 0
    assert json.loads(printed)["from_store"] == kept
    assert names(tmp_path) == ["masks.npy", "worths.npz"]
    again = tmp_path / "again.npz"
    assert run("evaluate", model, "--masks", masks, "--out", again, *SMALL)[0] == 0
    assert Worths.load(again).window_nll.tobytes() == Worths.load(out).window_nll.tobytes()


def test_another_game_and_damage_are_one_clear_line(run: Any, model: str, masks: Path, tmp_path: Path) -> None:
    store = tmp_path / "my.store"
    command = ["evaluate", model, "--masks", masks, "--out", tmp_path / "w.npz", "--store", store]
    assert run(*command, *SMALL)[0] == 0
    before = store.read_bytes()
    for changes, part in [
        (["--windows", "3", "--tokens", "24"], "differs in calibration ("),
        ([*SMALL, "--utility", "kl"], "differs in utility (ppl_ratio there, kl here)"),
        ([*SMALL, "--dtype", "bfloat16"], "differs in dtype (float32 there, bfloat16 here)"),
    ]:
        status, _, error = run(*command, *changes, "--force")
        assert (status, part in error, error.count("\n")) == (2, True, 1), error
    assert store.read_bytes() == before
    store.write_bytes(before[:5000])
    status, _, error = run("evaluate", "no model", *command[2:], *SMALL, "--force")  # seen before a model is loaded
    assert (status, "my.store is damaged (" in error, error.count("\n")) == (2, True, 1), error
    assert store.read_bytes() == before[:5000]


def test_shapley_and_prune_take_what_evaluate_measured(
    run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "my.store"
    everything = (np.arange(2**L)[:, None] >> np.arange(L) & 1).astype(bool)
    np.save(tmp_path / "masks.npy", everything)
    command = ["evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "w.npz"]
    assert run(*command, "--store", store, *SMALL)[0] == 0
    assert counts(store) == (64, 64)
    cost = {"params": 1, "weight_bytes": 1, "kv_bytes_per_token": 1, "peak_memory_bytes": 1}
    monkeypatch.setattr("layercoop_fast.masked.model.MaskedModel.measure", None)  # nothing may be measured any more
    assert run("shapley", model, "--budget", "30", "--samples", "50", "--store", store, *SMALL)[0] == 0

    from layercoop_fast.pruning.checkpoint_costs import Cost

    costs = [Cost(**cost, prefill_tok_s=1.0, decode_tok_s=1.0)] * 2
    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", lambda *_, **__: costs)
    arguments = ["--remove", "2", "--no-repair", "--out", tmp_path / "pruned", "--store", store, "--json", *SMALL]
    status, printed, error = run("prune", model, *arguments)
    assert (status, error) == (0, "")
    assert json.loads(printed)["evaluations"]["unique"] == 0
    assert counts(store) == (64, 64)


def test_info_export_merge_and_drop(run: Any, model: str, masks: Path, tmp_path: Path) -> None:
    a, b, joined = (tmp_path / f"{name}.store" for name in ("a", "b", "joined"))
    evaluate = ["evaluate", model, "--masks", masks, "--out"]
    assert run(*evaluate, tmp_path / "a.npz", "--store", a, *SMALL)[0] == 0
    assert run(*evaluate, tmp_path / "b.npz", "--store", b, *SMALL, "--utility", "kl")[0] == 0
    n = counts(a)[0]

    status, printed, errors = run("store", "info", a, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(printed)
    (game,) = found["games"]
    assert (found["file"], found["schema"], found["bytes"]) == (str(a), 1, a.stat().st_size)
    assert (game["key"], game["masks"], game["measured"], game["n_players"]) == (1, n, n, L)
    assert game["window_tokens"] == [23, 23]
    assert game["bytes"] == n * (1 + 2 * 8)
    assert game["fingerprints"] == Worths.load(tmp_path / "a.npz").fingerprints

    status, printed, errors = run("store", "merge", a, b, "--out", joined)
    assert (status, errors) == (0, "")
    assert f"{2 * n} masks of 2 games; 0 were held more than once" in printed
    assert run("store", "merge", a, b, "--out", joined)[0] == 2
    assert run("store", "merge", a, b, "--out", joined, "--force")[0] == 0
    status, printed, _ = run("store", "info", joined)
    assert status == 0
    assert "schema 1" in printed
    # A run goes on from the joined file, by its own game.
    assert run(*evaluate, tmp_path / "c.npz", "--store", joined, *SMALL, "--utility", "kl")[0] == 0

    status, _, error = run("store", "export", joined, "--out", tmp_path / "x.npz")
    assert (status, "holds 2 games, so --key is needed; its keys: 1, 2" in error) == (2, True)
    for key, name in ((1, "a.npz"), (2, "b.npz")):
        out = tmp_path / f"{key}.npz"
        status, printed, errors = run("store", "export", joined, "--key", key, "--out", out)
        assert (status, errors) == (0, "")
        assert f"{n} masks" in printed
        exported, measured = Worths.load(out), Worths.load(tmp_path / name)
        rows = {mask.tobytes(): row for row, mask in enumerate(exported.masks)}
        order = [rows[mask.tobytes()] for mask in measured.masks]
        assert exported.window_nll[order].tobytes() == measured.window_nll.tobytes()
        assert exported.worths[order].tobytes() == measured.worths.tobytes()
        assert exported.window_tokens.tolist() == measured.window_tokens.tolist()
        assert exported.fingerprints == measured.fingerprints
    assert run("store", "export", joined, "--key", 1, "--out", tmp_path / "1.npz")[0] == 2

    status, printed, _ = run("store", "drop", joined, "--key", 1)
    assert (status, f"game 1 with its {n} masks is gone" in printed) == (0, True)
    status, printed, _ = run("store", "info", joined, "--json")
    assert [game["key"] for game in json.loads(printed)["games"]] == [2]
    assert run("store", "drop", joined, "--key", 1)[0] == 2
    assert not list(tmp_path.glob("*-wal"))


def test_wrong_requests_of_store(run: Any, tmp_path: Path) -> None:
    missing = tmp_path / "no.store"
    for arguments, message in [
        (["info", missing], "no.store does not exist"),
        (["drop", missing, "--key", "1"], "no.store does not exist"),
        (["export", missing, "--out", tmp_path / "w.npz"], "no.store does not exist"),
        (["merge", missing, missing, "--out", tmp_path / "c"], "no.store does not exist"),
        (["merge", missing, "--out", tmp_path / "c"], "name two stores or more"),
        (["drop", missing], "--key"),
    ]:
        status, printed, error = run("store", *arguments)
        assert (status, printed, message in error, error.count("\n")) == (2, "", True, 1), error
    assert names(tmp_path) == []

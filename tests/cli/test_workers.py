"""`--workers` on the command line: requests that are wrong, and the table of cuts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

from layercoop_fast.game.worths import Worths

L = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("workers") / "model", n_layers=L)


@pytest.fixture
def refused(run: Any, model: Path, tmp_path: Path) -> Any:
    """Call `evaluate` with more arguments; assert one line and exit status 2, and return the line."""
    np.save(tmp_path / "masks.npy", np.ones((2, L), dtype=bool))

    def call(*arguments: object) -> str:
        files = ("--masks", tmp_path / "masks.npy", "--out", tmp_path / "out.npz")
        status, printed, error = run("evaluate", model, *files, *arguments)
        assert (status, printed) == (2, "")
        assert error.count("\n") == 1
        assert not (tmp_path / "out.npz").exists()
        return str(error)

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "at least 1 worker is needed"),
        (["--workers", "several"], "give a number of local processes, ray, or ray:HOST:PORT"),
        (["--tolerant"], "it belongs to --workers"),
        (["--workers", "2", "--profile", "trace.json"], "--profile watches this process"),
        (["--workers", "2", "--device", "tpu"], "ask for cpu, or cuda for a GPU each"),
    ],
)
def test_wrong_requests(refused: Any, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_ray_is_not_installed(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'layercoop-fast[ray]'" in refused("--workers", "ray")


@pytest.mark.needs("ray")
def test_an_address_without_a_cluster(refused: Any) -> None:
    assert "no Ray cluster answers at 127.0.0.1:9 (Connection refused)" in refused("--workers", "ray:127.0.0.1:9")
    assert "'nowhere' is not the address of a Ray cluster: write ray:HOST:PORT" in refused("--workers", "ray:nowhere")


@pytest.mark.slow
def test_evaluate_and_prune_with_workers(run: Any, model: Path, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((12, L)) < 0.7
    np.save(tmp_path / "masks.npy", masks)
    text = ("--windows", 2, "--tokens", 24, "--workers", 2)
    files = ("--masks", tmp_path / "masks.npy", "--out", tmp_path / "out.npz")
    status, printed, error = run("evaluate", model, *files, *text, "--json")
    assert status == 0, error
    assert json.loads(printed)["evaluations"]["masks"] == 12
    numerics = Worths.load(tmp_path / "out.npz").fingerprints["numerics"]
    assert numerics["threads"] == max(1, torch.get_num_threads() // 2)
    pruned = ("--remove", 1, "--out", tmp_path / "pruned", "--no-cost", "--store", tmp_path / "all.store")
    status, _, error = run("prune", model, *pruned, *text, "--json")
    assert status == 0, error
    assert json.loads((tmp_path / "pruned" / "layercoop.json").read_text())["fingerprints"]["numerics"] == numerics


def test_plan_says_what_a_cut_loses(run: Any) -> None:
    status, printed, _ = run("plan", "--layers", 12, "--masks", 300, "--workers", "1,2,8", "--json")
    assert status == 0
    one, two, eight = json.loads(printed)["workers"]
    assert (one["workers"], one["tasks"], one["over_one"]) == (1, 1, 1.0)
    assert 1.0 <= two["over_one"] <= eight["over_one"] < 1.3
    status, printed, _ = run("plan", "--layers", 12, "--masks", 300, "--workers", "2")
    assert status == 0
    assert "shared work that is left" in printed


@pytest.mark.parametrize("counts", ["", "2,,8", "0", "2;8", "-1"])
def test_bad_lists_of_workers(run: Any, counts: str) -> None:
    status, _, error = run("plan", "--layers", 12, "--workers", counts)
    assert status == 2
    assert "write 2,8,128" in error

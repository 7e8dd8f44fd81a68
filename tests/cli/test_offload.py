"""`--offload` on the command line: the same worths, what is read is told, and requests it cannot serve get one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny

from layercoop_fast.game.worths import Worths

L = 5
SMALL = ["--windows", "2", "--tokens", "24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("offload") / "model", n_layers=L)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    np.save(tmp_path / "masks.npy", np.random.default_rng(0).random((9, L)) < 0.6)
    return tmp_path / "masks.npy"


def test_evaluate(run: Any, model: Path, masks: Path, tmp_path: Path) -> None:
    ask = ("evaluate", model, "--masks", masks, *SMALL)
    assert run(*ask, "--out", tmp_path / "resident.npz")[0] == 0
    status, printed, error = run(*ask, "--out", tmp_path / "streamed.npz", "--offload")
    assert status == 0, error
    assert "GiB of weights to be read from files" in printed
    assert "GiB of weights from the checkpoint's files" in printed
    resident, streamed = (Worths.load(tmp_path / f"{name}.npz") for name in ("resident", "streamed"))
    assert np.array_equal(resident.window_nll, streamed.window_nll)
    assert resident.fingerprints == streamed.fingerprints
    status, printed, _ = run(*ask, "--out", tmp_path / "again.npz", "--offload", "--json")
    found = json.loads(printed)
    assert 0 < found["weights_read"] <= found["outlook"]["read_bytes"]
    assert "reading weights (waited)" in found["seconds_by_work"]


def test_prune_and_shapley(run: Any, model: Path, tmp_path: Path) -> None:
    status, _, error = run("prune", model, "--remove", 2, "--out", tmp_path / "out", "--offload", *SMALL)
    assert status == 0, error
    assert json.loads((tmp_path / "out" / "layercoop.json").read_text())["cost"] is None
    status, printed, error = run("shapley", model, "--budget", 20, "--offload", "--json", *SMALL)
    assert status == 0, error
    assert len(json.loads(printed)["values"]) == L


def test_requests_that_cannot_be_served(run: Any, model: Path, masks: Path, tmp_path: Path) -> None:
    def refused(folder: object, *more: object) -> str:
        out = tmp_path / "worths.npz"
        status, printed, error = run("evaluate", folder, "--masks", masks, "--out", out, "--offload", *SMALL, *more)
        assert (status, printed, error.count("\n")) == (2, "", 1), error
        assert not out.exists()
        return str(error)

    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    line = refused(copy)
    assert "damaged safetensors file" in line
    assert "100000" in line
    torch.save(load_file(model / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "only pickled weights" in refused(copy)
    (copy / "pytorch_model.bin").unlink()
    assert "holds no model.safetensors" in refused(copy)
    assert "would read all weights once a token" in refused(model, "--calibration", "self")
    if torch.cuda.is_available():
        assert "leave one of the two out" in refused(model, "--device", "cuda")

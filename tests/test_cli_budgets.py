"""Budgets and constraints of `prune`, as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

L = 6
SMALL = ["--windows", "2", "--tokens", "16", "--no-cost", "--no-repair", "--force"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("budgets") / "model", n_layers=L)


@pytest.fixture
def record(run: Any, model: Path, tmp_path: Path) -> Any:
    """Prune and return `layercoop.json`."""

    def call(*arguments: object) -> dict[str, Any]:
        status, _, error = run("prune", model, "--out", tmp_path / "out", *SMALL, *arguments)
        assert status == 0, error
        found: dict[str, Any] = json.loads((tmp_path / "out" / "layercoop.json").read_text())
        return found

    return call


def test_constraints(record: Any) -> None:
    limits = ["--keep", 2, "--keep-first", 1, "--keep-last", 1, "--must-go", 3]
    found = record("--remove", 2, "--method", "reverse", *limits)
    assert found["removed"] == [3, 4]
    expected = {"keep": ["2"], "keep_first": 1, "keep_last": 1, "must_go": ["3"], "stages": 1}
    assert found["constraints"] == expected
    assert record("--remove", 3, "--method", "reverse", "--stages", 3)["removed"] == [1, 3, 5]


def test_a_share_of_parameters_of_layers_and_of_halves(record: Any) -> None:
    layers = record("--drop", 0.4, "--method", "reverse")  # 2.4 of 6
    assert (layers["removed"], layers["budget"]["kind"]) == ([4, 5], "drop")
    assert layers["budget"]["reached"] == layers["budget"]["in_checkpoint"] == pytest.approx(1 / 3)
    halves = record("--drop", 0.4, "--method", "reverse", "--players", "sublayers")
    # From the end until 40 % are reached: two layers and the MLP of a third, whose weights are zeros that stay there.
    assert halves["removed"] == ["3.mlp", "4.attn", "4.mlp", "5.attn", "5.mlp"]
    assert halves["budget"]["reached"] >= 0.4 > halves["budget"]["in_checkpoint"] == pytest.approx(1 / 3)


def test_a_size_and_a_speed(record: Any, tmp_path: Path) -> None:
    sized = record("--fit", "400KB", "--method", "reverse")
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sized["budget"]["reached"] <= 400_000
    assert weights - 8_000 < sized["budget"]["reached"] < weights  # all but the header
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"players": [1, 1, 1, 1, 1, 5], "rest": 2}))
    fast = record("--speedup", 1.5, "--costs", costs, "--method", "reverse")
    assert fast["removed"] == [5]
    assert fast["budget"]["reached"] == pytest.approx(12 / 7)
    assert fast["budget"]["costs"]["source"] == "costs.json"
    measured = record("--speedup", 1.2, "--method", "coop")
    assert measured["budget"]["reached"] >= 1.2
    assert measured["details"]["nested"][-1]["removed"] == measured["removed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", 1, "--speedup", 2], "in one way"),
        (["--speedup", 0.9], "--speedup 0.9 is no gain"),
        (["--speedup", 1000], "no allowed mask meets --speedup 1000: the nearest reaches"),
        (["--speedup", 2, "--costs", "guess"], "neither prefill nor decode nor a .json file"),
        (["--remove", 2, "--costs", "decode"], "--costs belongs to --speedup"),
        (["--fit", "1GB"], "already: nothing has to go"),
        (["--fit", "1KB"], "no allowed mask meets --fit 1000: the nearest reaches"),
        (["--fit", "small"], "--fit 'small' is not a size"),
        (["--remove", 1, "--keep", "7"], "'7' is in no player: layers are 0 to 5"),
        (["--remove", 1, "--keep", "1", "--must-go", "1"], "player 1 must stay and must go"),
        (["--remove", 1, "--keep-first", 4, "--keep-last", 3], "do not fit 6 layers"),
        (["--remove", 2, "--stages", 3], "3 stages cannot keep 4 in equal parts. 3 can"),
        (["--remove", 2, "--stages", 2, "--players", "sublayers"], "--stages counts layers"),
        (["--drop", 0.3, "--players", "sublayers", "--method", "random"], "random chooses among masks of one size"),
    ],
)
def test_wrong_requests(run: Any, model: Path, tmp_path: Path, arguments: list[object], message: str) -> None:
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *SMALL, *arguments)
    assert (status, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

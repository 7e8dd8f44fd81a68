"""The command line on items with options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast import ModelGame

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", n_layers=4)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    lines = [{"question": f"{n} + {n} =", "choices": [str(2 * n), "no", "none"], "answer": n % 2} for n in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_evaluate_items(run: Run, model: Path, items: Path, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((5, 4)) < 0.7
    np.save(tmp_path / "masks.npy", masks)
    arguments = ["evaluate", model, "--masks", tmp_path / "masks.npy", "--calibration", items, "--shots", 2]
    arguments += ["--utility", "accuracy", "--store", tmp_path / "a.store"]
    status, out, error = run(*arguments, "--out", tmp_path / "a.npz", "--json")
    assert (status, error) == (0, "")
    assert json.loads(out)["worth_stderr"] >= 0
    expected = ModelGame.from_pretrained(str(model), str(items), utility="accuracy", shots=2)(masks)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["worths"], expected)
        assert set(file["worths"]) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    status, out, _ = run(*arguments, "--out", tmp_path / "b.npz")
    assert status == 0
    assert "standard error of a mask's accuracy over items" in out
    assert "taken from" in out
    status, out, _ = run("store", "info", tmp_path / "a.store")
    assert status == 0
    assert "4 items, 12 options" in out
    status, _, _ = run("store", "export", tmp_path / "a.store", "--out", tmp_path / "c.npz")
    assert status == 0


def test_prune_on_items_cut_from_a_text(run: Run, model: Path, tmp_path: Path) -> None:
    options = ["--remove", 1, "--windows", 4, "--tokens", 16, "--utility", "margin", "--heldout", "builtin-heldout"]
    options += ["--no-repair", "--samples", 0]
    status, out, _ = run("prune", model, "--out", tmp_path / "out", "--no-cost", "--json", *options)
    assert status == 0
    record = json.loads(out)
    assert record["calibration"] == {"spec": "builtin", "items": 4, "shots": 0}
    assert record["worth"]["pruned"] is not None
    assert record["heldout"]["worth"]["full"] != record["worth"]["full"]


def test_shapley_of_the_margin(run: Run, model: Path, items: Path) -> None:
    options = ["--utility", "margin_norm", "--budget", 12, "--calibration", items, "--no-share-context", "--json"]
    status, out, _ = run("shapley", model, *options)
    assert status == 0
    assert len(json.loads(out)["values"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--utility", "accuracy", "--shots", 6], "has 6 items: 6 shots leave none to score"),
        (
            ["--utility", "nll"],
            'line 1 is not a JSON object with a "text" field (items with options go with the utilities',
        ),
        (["--utility", "accuracy", "--score-every", 2], "--score-every belongs to text"),
        (["--utility", "nll", "--calibration", "builtin", "--shots", 2], "--shots are examples before items"),
    ],
)
def test_wrong_requests_are_one_line(
    run: Run, model: Path, items: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    np.save(tmp_path / "masks.npy", np.ones((1, 4), bool))
    status, out, error = run(
        "evaluate",
        model,
        "--masks",
        tmp_path / "masks.npy",
        "--out",
        tmp_path / "a.npz",
        "--calibration",
        items,
        *options,
    )
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.npz").exists()


def test_a_recurrent_model_is_one_line(run: Run, items: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "mamba", "mamba", n_layers=4)
    status, _, error = run(
        "prune", model, "--out", tmp_path / "out", "--remove", 1, "--utility", "accuracy", "--calibration", items
    )
    assert status == 2
    assert "MambaForCausalLM cannot share contexts between options" in error
    assert error.count("\n") == 1

"""Budgets and constraints of `prune`, as a user asks for them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from layercoop_fast.masks.text import mask_of

L = 6
SMALL = ["--windows", "2", "--tokens", "16", "--no-cost", "--no-repair", "--samples", "0", "--force"]


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


def test_weights_that_are_no_numbers(run: Any, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "broken", n_layers=3)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    save_file({**weights, name: weights[name] * float("nan")}, model / "model.safetensors", {"format": "pt"})
    for method in ("coop", "sleb", "reverse"):
        status, _, error = run("prune", model, "--out", tmp_path / "out", *SMALL, "--remove", 1, "--method", method)
        assert status == 1
        assert "not finite" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_nested_family(run: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    asked = ["--remove", 3, "--nested", "--heldout", "builtin-heldout", "--samples", 0, "--keep-last", 1]
    status, printed, error = run("prune", model, "--out", folder, *SMALL, *asked)
    assert status == 0, error
    found = json.loads((folder / "layercoop.json").read_text())
    sizes = found["nested"]["sizes"]
    assert [one["n_removed"] for one in sizes] == [1, 2, 3]
    assert all(set(small["removed"]) < set(large["removed"]) for small, large in itertools.pairwise(sizes))
    last = sizes[-1]
    assert last["removed"] == found["removed"]
    own = [found["ppl"]["pruned"], found["worth"]["pruned"], found["heldout"]["ppl"]["pruned"]]
    assert [last["ppl"], last["worth"], last["heldout_ppl"]] == pytest.approx(own, rel=1e-5)  # those of the folder
    assert all(one["price"] >= 0 and 5 not in one["removed"] for one in sizes)
    assert all(one["price"] == one["loss"] - one["free_loss"] for one in sizes)
    assert sum(part["masks"] for part in found["nested"]["cost"].values()) <= found["evaluations"]["unique"]
    assert "nested family, on the original weights" in printed
    assert f"generate MODEL --mask {folder}@1" in printed
    assert "Perplexity of every size" in (folder / "report.html").read_text()
    assert "--nested" in found["command"]
    # The original model serves any of the sizes.
    for one in sizes:
        assert [block for block in range(L) if not mask_of(f"{folder}@{one['n_removed']}", L)[block]] == one["removed"]
    status, out, error = run("generate", model, "-p", "Once", "-n", 1, "--json", "--mask", f"{folder}@1")
    assert status == 0, error
    assert json.loads(out)["removed"] == str(sizes[0]["removed"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", 2, "--nested", "--method", "sleb"], "--nested is a search of coop's, and the method is sleb"),
        (["--remove", 2, "--nested", "--settle", 0.1], "--settle chooses again among masks of one size"),
        (["--drop", 0.3, "--nested", "--players", "sublayers"], "say how many, --remove K"),
        (["--remove", 3, "--nested", "--budget", 8], "a budget of 9 at least, not 8"),
        (["--remove", 1, "--speedup", 2], "in one way"),
        (["--speedup", 0.9], "--speedup 0.9 is not a gain"),
        (["--speedup", 1000], "no allowed mask meets --speedup 1000: the nearest reaches"),
        (["--speedup", 2, "--costs", "guess"], "neither prefill nor decode nor a .json file"),
        (["--remove", 2, "--costs", "decode"], "--costs belongs to --speedup"),
        (["--drop", 0.99], "what can go is 5, --drop 0.8333"),
        (["--memory", "1GiB"], "a size for the weights is --fit 2GiB"),
        (["--fit", "1GB"], "already: nothing has to go"),
        (["--fit", "1KB"], "no allowed mask meets --fit 1000: the nearest reaches"),
        (["--fit", "small"], "--fit 'small' is not a size"),
        (["--remove", 1, "--keep", "7"], "'7' is in no player: they are made of 0 to 5"),
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


def test_a_settled_choice_saves_what_was_asked(record: Any) -> None:
    """Masks on the way to the target are measured too, and are no finalists: they save less."""
    options = ["--drop", 0.3, "--players", "sublayers", "--utility", "nll", "--settle", 0.01, "--most-windows", 9]
    budget = record(*options)["budget"]
    assert budget["reached"] >= budget["asked"] == 0.3


def test_groups_across_layers(record: Any, tmp_path: Path) -> None:
    """A group of which one layer is gone and of another a half is zeros counts by the parameters that are gone."""
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps([["3.attn", "3.mlp", "4.attn"], [0, 1], [2]]))
    budget = record("--drop", 0.2, "--players", groups, "--must-go", 3, "--method", "reverse")["budget"]
    assert 0 < budget["in_checkpoint"] < budget["reached"]


def test_layers_of_no_player_may_be_asked_to_stay(record: Any, run: Any, model: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps([[2], [3], [4]]))
    found = record("--remove", 1, "--players", groups, "--keep-first", 1, "--keep", 5, "--method", "reverse")
    assert found["removed"] == [4]
    status, _, error = run(
        "prune", model, "--out", tmp_path / "x", *SMALL, "--remove", 1, "--players", groups, "--must-go", 5
    )
    assert (status, "'5' is in no player" in error) == (2, True)

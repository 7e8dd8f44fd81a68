from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.comparison import compare, paired_p
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame

Run = Callable[..., tuple[int, str, str]]
SMALL = {"windows": 3, "tokens": 16, "text_windows": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("compare") / "model", n_layers=6))


@pytest.fixture(scope="module")
def record(model: str) -> dict:
    methods = ["sleb", "coop", "flap", "reverse"]
    return compare(model, texts=["builtin-heldout"], remove=[2, 1], methods=methods, **SMALL).record


def test_every_method_and_size_on_every_text(model: str, record: dict) -> None:
    assert [(row["remove"], row["method"]) for row in record["rows"]] == [
        (size, method) for size in (1, 2) for method in ("sleb", "coop", "flap", "reverse")
    ]
    json.dumps(record, allow_nan=False)
    game = ModelGame.from_pretrained(model, windows=3, tokens=16)
    unseen = ModelGame.from_pretrained(model, "builtin-heldout", windows=4, tokens=16)
    for row in [record["full"], *(row for row in record["rows"] if row["method"] != "flap")]:
        mask = np.ones((1, 6), dtype=bool)
        mask[0, row["removed"]] = False
        for one, text in zip((game, unseen), row["texts"], strict=True):
            nll = one.evaluate(mask).window_nll[0]
            assert text["nll"] == nll.mean()
            assert text["ppl"] == pytest.approx(np.exp(nll.mean()))
            assert text["ppl_stderr"] == pytest.approx(np.exp(nll.mean()) * nll.std(ddof=1) / np.sqrt(len(nll)))


def test_costs_are_of_runs_of_their_own(record: dict) -> None:
    """sleb measures 6 masks to remove one player; coop the full model, the same six, and passes of seeds."""
    by_method = {row["method"]: row for row in record["rows"] if row["remove"] == 1}
    assert by_method["reverse"]["passes"] == by_method["reverse"]["masks"] == 0
    assert by_method["sleb"]["masks"] == 6
    # The trie of all masks with one player removed: 6 + 5 + 4 + 3 + 2 + 1 blocks and no more, over the full model's 6.
    assert by_method["sleb"]["passes"] == pytest.approx(21 / 6, abs=0.01)
    assert by_method["coop"]["passes"] > by_method["sleb"]["passes"]


def test_equal_parameters_go(record: dict) -> None:
    for size in (1, 2):
        removed = {row["method"]: row["params_removed"] for row in record["rows"] if row["remove"] == size}
        assert removed["sleb"] == removed["reverse"]
        assert removed["flap"] == pytest.approx(removed["sleb"], rel=0.1)


def test_the_best_of_a_size_is_marked_on_each_text(record: dict) -> None:
    for size in (1, 2):
        rows = [row for row in record["rows"] if row["remove"] == size]
        for text in (0, 1):
            best = min(rows, key=lambda row: row["texts"][text]["nll"])
            assert best["texts"][text]["p_best"] == 1
            assert all(row["texts"][text]["as_good_as_best"] == (row["texts"][text]["p_best"] >= 0.05) for row in rows)


def test_paired_p() -> None:
    rng = np.random.default_rng(0)
    assert paired_p(np.full(12, 0.1)) < 0.002
    assert paired_p(rng.normal(0, 1, 40)) > 0.05
    assert paired_p(np.zeros(5)) == 1
    # Four windows of one sign: two of sixteen sign patterns are as extreme.
    assert paired_p(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2 / 16, abs=0.02)
    assert paired_p(np.array([1.0, np.nan])) is None
    # Under the null hypothesis it is uniform.
    p = np.array([paired_p(rng.normal(size=10), flips=199, seed=i) for i in range(300)])
    assert abs((p < 0.2).mean() - 0.2) < 0.08


def test_command_line(model: str, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "compared.json"
    arguments = ["compare", model, "--remove", "1,2", "--methods", "sleb,reverse", "--windows", 2, "--tokens", 16]
    status, printed, _ = run(*arguments, "--eval", "builtin-heldout", "--eval-windows", 2, "--out", out)
    assert status == 0
    assert "ppl ± standard error over windows (2, 2)" in printed
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["sleb", "reverse"] * 2
    assert run(*arguments, "--json", "--out", out)[0] == 2  # it is there already
    status, printed, _ = run(*arguments, "--json")
    assert json.loads(printed)["rows"][0]["removed"] == rows[0]["removed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "1,x"], "sizes like 3,6,10, not '1,x'"),
        (["--remove", "0"], "sizes like 3,6,10"),
        (["--remove", "7"], "1 to 5 can be removed, not 7"),
        (["--remove", "1", "--methods", "slab"], "did you mean 'sleb'"),
        (
            ["--remove", "1", "--utility", "margin"],
            "the utility margin is one of items with options: choose from ppl_ratio",
        ),
    ],
)
def test_bad_requests(model: str, run: Run, arguments: list[str], message: str) -> None:
    status, _, error = run("compare", model, "--windows", 2, "--tokens", 16, *arguments)
    assert status == 2
    assert message in error


def test_nothing_to_compare(model: str) -> None:
    with pytest.raises(RequestError, match="at least one size to remove and one method"):
        compare(model, remove=[])

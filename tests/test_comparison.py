from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from rich.console import Console
from tiny_models import save_tiny

from layercoop_fast import comparison
from layercoop_fast.comparison import Comparison, compare, paired_p
from layercoop_fast.errors import RequestError
from layercoop_fast.game.calibration import read_text
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.repair import fit
from layercoop_fast.repair.fit import Repaired, fit_repair
from layercoop_fast.repair.texts import default_texts
from layercoop_fast.report.compared import show_comparison
from layercoop_fast.report.html.compared import comparison_page

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


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short texts of different kinds."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("builtin", "builtin-code"):
        (folder / f"{name}.txt").write_text(read_text(name)[:2500], encoding="ascii", errors="ignore")
    return [str(folder / "builtin.txt"), str(folder / "builtin-code.txt")]


@pytest.fixture(scope="module")
def repaired(model: str, specs: list[str]) -> Comparison:
    """Whether a repair helps a model of random weights is chance: here sleb's mask gains by it, and reverse's not."""
    helps = iter([True, False])

    def fitted(*arguments: Any, **options: Any) -> Repaired:
        helped = next(helps)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit, "_no_worse", lambda after, before: helped)
            return fit_repair(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "fit_repair", fitted)
        return compare(
            model,
            calibration=specs[0],
            texts=["builtin-heldout"],
            remove=[2],
            methods=["sleb", "flap", "reverse"],
            repair=True,
            repair_text=specs,
            repair_tokens=1024,
            **SMALL,
        )


def test_with_and_without_repair(model: str, specs: list[str], repaired: Comparison) -> None:
    record = repaired.record
    json.dumps(record, allow_nan=False)
    names = [("sleb", False), ("sleb", True), ("flap", False), ("reverse", False), ("reverse", True)]
    assert [(row["method"], row["repaired"]) for row in record["rows"]] == names
    assert record["repair"]["texts"] == specs
    sleb, patched, _, reverse, left_out = record["rows"]
    for before, after in ((sleb, patched), (reverse, left_out)):
        assert after["removed"] == before["removed"]
        assert after["seconds"] > before["seconds"]
        assert after["passes"] == before["passes"]
    assert (patched["repair"]["kept"], left_out["repair"]["kept"]) == (True, False)
    game = ModelGame.from_pretrained(model, specs[0], windows=3, tokens=16)
    unseen = ModelGame.from_pretrained(model, "builtin-heldout", windows=4, tokens=16)
    mask = ~np.isin(np.arange(6), patched["removed"])
    before = unseen.evaluate(mask[None]).window_nll[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "_no_worse", lambda after, before: True)
        fitted = fit_repair(game, mask, specs, tokens=1024)
    weights = unseen.checkpoint.model.state_dict()
    for name, tensor in fitted.tensors().items():
        weights[name].copy_(tensor)
    nll = unseen.anew().evaluate(mask[None]).window_nll[0]
    assert patched["texts"][1]["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert abs(patched["texts"][1]["nll"] - sleb["texts"][1]["nll"]) > 1e-3
    assert patched["texts"][1]["p_unrepaired"] == pytest.approx(paired_p(nll - before))
    # A repair that is left out leaves the model it was.
    for after, before in zip(left_out["texts"], reverse["texts"], strict=True):
        assert (after["nll"], after["p_unrepaired"]) == (before["nll"], 1)


def test_what_is_measured_on_is_not_fitted_to(model: str) -> None:
    game = ModelGame.from_pretrained(model, windows=3, tokens=16)
    assert default_texts(game, ["builtin-code", "other.txt"]) == ["builtin", "builtin-docstrings"]


def test_repaired_models_are_judged_among_themselves(repaired: Comparison) -> None:
    for state in (False, True):
        rows = [row for row in repaired.record["rows"] if row["repaired"] == state]
        for text in range(2):
            best = min(rows, key=lambda row: row["texts"][text]["nll"])
            assert best["texts"][text]["p_best"] == 1
            assert sum(row["texts"][text]["p_best"] == 1 for row in rows) == 1


def test_both_are_shown(repaired: Comparison) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    show_comparison(repaired, console)
    printed = console.export_text()
    page = Page(comparison_page(repaired.record)).text
    for text in (printed, page):
        assert "sleb + repair" in text
        assert "flap + repair" not in text
    assert "p against itself unrepaired" in page


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


def test_a_method_that_refuses_does_not_cost_the_others_their_rows(
    model: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layercoop_fast.search.exhaustive.DEFAULT_BUDGET", 10)
    out, html = tmp_path / "compared.json", tmp_path / "compared.html"
    arguments = ["compare", model, "--remove", "1,2", "--windows", 2, "--tokens", 16]
    status, printed, _ = run(*arguments, "--methods", "exhaustive,reverse", "--out", out, "--html", html)
    reason = "exhaustive has no row at 2: exhaustive asks 15 masks"
    assert (status, reason in printed) == (0, True)
    record = json.loads(out.read_text())
    assert [(row["method"], row["remove"]) for row in record["rows"]] == [
        ("exhaustive", 1), ("reverse", 1), ("reverse", 2),
    ]  # fmt: skip
    assert [(one["method"], one["remove"]) for one in record["refused"]] == [("exhaustive", 2)]
    assert "exhaustive has no row at 2 removed" in Page(html.read_text()).text
    status, _, error = run(*arguments, "--remove", "2", "--methods", "exhaustive")
    assert (status, "exhaustive asks 15 masks" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "1,x"], "sizes like 3,6,10, not '1,x'"),
        (["--remove", "0"], "sizes like 3,6,10"),
        (["--remove", "1", "--repair-text", "builtin"], "(--repair-text) needs --repair"),
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

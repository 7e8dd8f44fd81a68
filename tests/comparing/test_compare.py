from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from rich.console import Console
from short_texts import short_texts
from tiny_models import save_tiny

from layercoop_fast.comparing import finding
from layercoop_fast.comparing.compare import Comparison, compare
from layercoop_fast.comparing.paired import paired_p
from layercoop_fast.comparing.rows import KeptRows
from layercoop_fast.comparing.table import show_comparison
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.repair import gap_by_gap
from layercoop_fast.repair.fit import Repaired, fit_repair
from layercoop_fast.repair.texts import default_texts
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
    return short_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def repaired(model: str, specs: list[str]) -> Comparison:
    """Whether a repair helps a model of random weights is chance: here sleb's mask gains by it, and reverse's not."""
    helps = iter([True, False])

    def fitted(*arguments: Any, **options: Any) -> Repaired:
        helped = next(helps)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gap_by_gap, "_no_worse", lambda after, before: helped)
            return fit_repair(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "fit_repair", fitted)
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
        patch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)
        fitted = fit_repair(game, mask, specs, tokens=1024)
    weights = unseen.checkpoint.model.state_dict()
    for name, tensor in fitted.tensors().items():
        weights[name].copy_(tensor)
    nll = unseen.view(apart=True, stored=False).evaluate(mask[None]).window_nll[0]
    assert patched["texts"][1]["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert abs(patched["texts"][1]["nll"] - sleb["texts"][1]["nll"]) > 1e-3
    assert patched["texts"][1]["p_unrepaired"] == pytest.approx(paired_p(nll - before))
    # A repair that is left out leaves the model it was.
    for after, before in zip(left_out["texts"], reverse["texts"], strict=True):
        assert (after["nll"], after["p_unrepaired"]) == (before["nll"], 1)


def test_what_is_measured_on_is_not_fitted_to(model: str) -> None:
    game = ModelGame.from_pretrained(model, windows=3, tokens=16)
    assert default_texts(game, ["builtin-code", "other.txt"]) == ["builtin", "builtin-docstrings", "self"]


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
    assert "p against the same model unrepaired" in page


def test_paired_p() -> None:
    rng = np.random.default_rng(0)
    assert paired_p(np.full(12, 0.1)) < 0.002
    assert paired_p(rng.normal(0, 1, 40)) > 0.05
    assert paired_p(np.zeros(5)) == 1
    # Four windows of one sign: two of sixteen sign patterns are as extreme.
    assert paired_p(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2 / 16, abs=0.02)
    assert paired_p(np.array([1.0, np.nan])) is None


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
    reason = "exhaustive has no row at 2: exhaustive measures 15 masks"
    assert (status, reason in printed) == (0, True)
    record = json.loads(out.read_text())
    assert [(row["method"], row["remove"]) for row in record["rows"]] == [
        ("exhaustive", 1), ("reverse", 1), ("reverse", 2),
    ]  # fmt: skip
    assert [(one["method"], one["remove"]) for one in record["refused"]] == [("exhaustive", 2)]
    assert "exhaustive has no row at 2 removed" in Page(html.read_text()).text
    status, _, error = run(*arguments, "--remove", "2", "--methods", "exhaustive")
    assert (status, "exhaustive measures 15 masks" in error) == (2, True)


def test_a_method_that_fails_loses_its_row_and_a_full_disk_ends_it_all(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RunError("all losses are not finite")

    def cannot_write(*_: Any, **__: Any) -> None:
        raise RunError("the store cannot be written") from OSError(28, "No space left on device")

    request = {"remove": [1], "methods": ["ppl", "reverse"], **SMALL}
    monkeypatch.setattr("layercoop_fast.search.ppl.search", fails)
    compared = compare(model, **request)
    assert [row.method for row in compared.rows] == ["reverse"]
    assert [one["reason"] for one in compared.about["refused"]] == ["all losses are not finite"]
    monkeypatch.setattr("layercoop_fast.search.ppl.search", cannot_write)
    with pytest.raises(RunError, match="the store cannot be written"):
        compare(model, **request)


def test_rows_are_shown_as_they_come(model: str, run: Run) -> None:
    """On standard error, the full model first, after a line that says what is ahead; standard output is the result."""
    arguments = ["compare", model, "--remove", "1,2", "--methods", "sleb,flap", "--windows", 2, "--tokens", 16]
    status, printed, said = run(*arguments, "--eval", "builtin-heldout", "--eval-windows", 2, "--json")
    record = json.loads(printed)
    assert status == 0
    lines = said.splitlines()
    # 6 + 5 masks with one and two of six layers gone, one pass of flap a size, and on the text 2 windows of 2.
    assert re.fullmatch(
        r"4 rows: at most about \d+ forward passes .* \(sleb 4, flap 2, the other texts 3\), .+", lines[0]
    )
    heads = [line.partition(":")[0] for line in lines[1:]]
    assert heads == [
        "full model", "sleb, 1 removed", "flap, 1 removed", "sleb, 2 removed", "flap, 2 removed",
    ]  # fmt: skip
    for line, row in zip(lines[2:], record["rows"], strict=True):
        for text, name in zip(row["texts"], ("builtin", "builtin-heldout"), strict=True):
            assert f"{name} {text['ppl']:.1f} ± {text['ppl_stderr']:.1f}" in line


def test_nothing_is_measured_twice(model: str) -> None:
    """Greed at two is greed at one and more; the method that has measured all of that before costs what it would."""
    both = compare(model, remove=[1, 2], methods=["sleb"], **SMALL)
    alone = compare(model, remove=[2], methods=["sleb"], **SMALL)
    assert both.about["passes_spent"] == alone.about["passes_spent"]
    assert both.rows[1].passes == alone.rows[0].passes
    assert both.rows[1].passes > both.rows[0].passes


REQUEST = {"texts": ["builtin-heldout"], "remove": [1], "methods": ["coop", "taylor", "flap"], "budget": 12}


def without_times(record: dict) -> dict:
    """A comparison without what a clock says, or how much was known before."""
    record = json.loads(json.dumps(record))
    for row in (record["full"], *record["rows"]):
        row["seconds"] = None
        if row["repair"] is not None:
            row["repair"]["seconds"] = None
    record["passes_spent"] = None
    return record


@pytest.mark.slow
def test_finished_rows_are_kept(model: str, specs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second comparison has them without a search, times included; of another request none is taken."""
    store = tmp_path / "compare.store"
    request = {**REQUEST, "calibration": specs[0], "repair": True, "repair_text": specs, "repair_tokens": 1024, **SMALL}
    first = compare(model, store=store, **request)
    assert [row.label for row in first.rows] == ["coop", "coop + repair", "taylor", "taylor + repair", "flap"]
    searched = []
    found = finding.RowFinder._found
    monkeypatch.setattr(
        finding.RowFinder, "_found", lambda table, *asked: searched.append(asked) or found(table, *asked)
    )
    again = compare(model, store=store, **request)
    assert searched == []
    assert again.about["passes_spent"] == 0
    assert {**again.record, "passes_spent": None} == {**first.record, "passes_spent": None}
    # Another text to measure on, budget, seed or method: found again, with masks taken from the store.
    plain = {**request, "repair": False, "repair_text": None, "methods": ["coop"]}
    for change in ({"texts": ["builtin-code"]}, {"seed": 1}, {"budget": 11}):
        searched.clear()
        other = compare(model, store=store, **{**plain, **change})
        assert searched == [("coop", 1)]
        assert other.rows[0].texts[1].text == other.about["texts"][1]
    searched.clear()
    compare(model, store=store, **{**plain, "remove": [2, 1], "methods": ["coop", "reverse"]})
    assert searched == [("reverse", 1), ("coop", 2), ("reverse", 2)]
    # Repairs by another text are others, of the same choices.
    with monkeypatch.context() as patch:
        patch.setattr(finding, "fit_repair", lambda *_, **__: pytest.fail("a repair is fitted"))
        with pytest.raises(pytest.fail.Exception):
            compare(model, store=store, **{**request, "methods": ["coop"], "repair_text": specs[:1]})
    with pytest.raises(RequestError, match="belongs to another game; it differs in calibration"):
        compare(model, store=store, **{**request, "calibration": "builtin-docstrings"})


def test_damaged_rows_are_found_again(model: str, tmp_path: Path) -> None:
    """A torn line costs its row, a changed digit too; a file of something else is refused and left as it is."""
    store, kept = tmp_path / "compare.store", tmp_path / "compare.store.rows"
    request = {"remove": [1], "methods": ["sleb", "ppl", "reverse"], **SMALL}
    first = compare(model, store=store, **request)
    whole = kept.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    for damaged, lost in (
        (whole[:-9], "reverse"),
        (whole.replace(lines[1], lines[1].replace(b'"masks": 6', b'"masks": 7')), "sleb"),
    ):
        kept.write_bytes(damaged)
        found = KeptRows(kept)
        assert len(found._rows) == 2
        again = compare(model, store=store, **request)
        assert without_times(again.record) == without_times(first.record)
        assert [row.method for row, old in zip(again.rows, first.rows, strict=True) if row.seconds != old.seconds] == [
            lost
        ]
        assert len(KeptRows(kept)._rows) == 3
    kept.write_bytes(whole[:5])  # killed at the very first row
    KeptRows(kept).keep({"a": 1}, {})
    assert kept.read_bytes().startswith(whole[: whole.index(b"\n")])
    kept.write_bytes(b"a diary")
    with pytest.raises(RequestError, match="does not hold the rows of a comparison"):
        compare("no such model", store=store, **request)
    assert kept.read_bytes() == b"a diary"


@pytest.mark.slow
def test_killed_and_begun_again(model: str, run: Run, tmp_path: Path) -> None:
    """kill -9 in the middle of a search, of a process of its own: the same table, and less to measure."""
    store, out = tmp_path / "compare.store", tmp_path / "compared.json"
    arguments = ["compare", model, "--remove", "1,2", "--methods", "sleb,flap,coop,evopress", "--budget", 40]
    arguments += ["--windows", 6, "--tokens", 24, "--eval", "builtin-heldout", "--eval-windows", 3]
    command = [sys.executable, "-m", "layercoop_fast", *map(str, arguments), "--store", str(store), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as killed:
        assert killed.stderr is not None
        rows = 0
        for line in killed.stderr:
            rows += "removed: ppl" in line
            if rows == 4:  # at the second size, somewhere in what follows
                killed.kill()
                break
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(KeptRows(Path(f"{store}.rows"))._rows) >= 4
    status, printed, _ = run(*arguments, "--json", "--store", store)
    resumed = json.loads(printed)
    assert status == 0
    uninterrupted = json.loads(run(*arguments, "--json")[1])
    assert without_times(resumed) == without_times(uninterrupted)
    assert resumed["passes_spent"] < 0.7 * uninterrupted["passes_spent"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "1,x"], "sizes like 3,6,10, not '1,x'"),
        (["--remove", "0"], "sizes like 3,6,10"),
        (["--remove", "1", "--repair-text", "builtin"], "(--repair-text) needs --repair"),
        (["--remove", "9" * 5000], "sizes like 3,6,10"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "slab"], "did you mean 'sleb'"),
        (["--eval", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--eval", "nonsense"], "'nonsense' is not understood"),
        (["--eval", "builtin"], "builtin is what masks are searched on"),
        (["--calibration", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--repair", "--repair-text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--store", "{folder}"], "is a folder: a store is a file"),
        (["--store", "{folder}/notes"], "notes is damaged (file is not a database)"),
        (["--store", "{folder}/out.json", "--out", "{folder}/out.json"], "are the same file"),
        (["--store", "{folder}/s", "--out", "{folder}/s.rows"], "keeps the finished rows of --store"),
        (["--budget", "0"], "the budget must be 1 to 10,000,000 masks, not 0"),
        (["--budget", "9" * 18], "the budget must be 1 to 10,000,000 masks"),
        (["--utility", "speed"], "speed"),
    ],
)
def test_refused_before_a_model_is_opened(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    """There is no such model, and that is not what is said."""
    (tmp_path / "notes").write_text("not a store, but more than a hundred bytes long: " + "so it goes on " * 9)
    arguments = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    status, _, error = run("compare", "no-such-model", "--remove", "1", *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert "no-such-model" not in error


def test_nothing_to_compare(model: str) -> None:
    with pytest.raises(RequestError, match="at least one size to remove and one method"):
        compare(model, remove=[])


def test_a_text_with_too_few_items_is_told_before_anything_is_written_or_fitted(model: str) -> None:
    stages: list[str] = []
    with pytest.raises(RequestError, match="items of 60 need"):
        compare(
            model,
            remove=[1],
            methods=["reverse"],
            repair=True,
            texts=["builtin-heldout"],
            items=90_000,
            on_progress=lambda stage, *_: stages.append(stage),
            **SMALL,
        )
    assert stages == []

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import Page
from tiny_models import save_tiny

from layercoop_fast.comparing.compare import Comparison, compare
from layercoop_fast.report.html.compared import comparison_page
from layercoop_fast.report.html.markup import number

Run = Callable[..., tuple[int, str, str]]
METHODS = ["sleb", "reverse", "flap"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("compared") / "model", n_layers=4))


@pytest.fixture(scope="module")
def compared(model: str) -> Comparison:
    texts = ["builtin-heldout"]
    return compare(model, texts=texts, remove=[1, 2], methods=METHODS, windows=3, tokens=16, text_windows=3)


def test_every_number_is_there(compared: Comparison) -> None:
    record = compared.record
    page = Page(comparison_page(record))
    shown = ["model: sleb, reverse, flap on 4 players", *METHODS]
    for row in [record["full"], *record["rows"]]:
        for one in row["texts"]:
            shown.append(f"{number(one['ppl'])} ± {number(one['ppl_stderr'], 2)}")
    shown += [number(row["passes"]) for row in record["rows"]]
    shown += [number(record["full"]["texts"][1]["ppl"] / row["texts"][1]["ppl"]) for row in record["rows"]]
    assert [text for text in shown if text not in page.text] == []
    assert sum(tag == "svg" for tag, _ in page.tags) == 8
    assert not re.search(r"<script|<link|<img|url\(|http|src=|href=", comparison_page(record))


def test_each_method_has_a_line_of_its_own(compared: Comparison) -> None:
    chart = comparison_page(compared.record).split("<svg")[1]
    assert [chart.count(f'class="series c{colour}"') for colour in range(4)] == [1, 1, 1, 0]
    assert [chart.count(f'class="key c{colour}"') for colour in range(4)] == [1, 1, 1, 0]
    assert chart.count('class="curve"') == 3


def test_notebooks_show_it(compared: Comparison) -> None:
    html = compared._repr_html_()
    assert html.startswith('<div class="lc"><style>')
    assert Page(html).text.count("What is removed, and what the search cost") == 1


def test_what_is_not_finite_is_left_out_of_charts(compared: Comparison) -> None:
    record = compared.record
    for one in record["rows"][0]["texts"]:
        one |= {"ppl": None, "ppl_stderr": None, "nll": None, "p_best": None, "as_good_as_best": None}
    record["model"] = "<b>hostile</b>"
    html = comparison_page(record)
    assert "not finite" in Page(html).text
    assert "<b>" not in html


def test_command_line(model: str, run: Run, tmp_path: Path) -> None:
    html = tmp_path / "c.html"
    command = ["compare", model, "--remove", 1, "--methods", "reverse", "--windows", 2, "--tokens", 16]
    assert run(*command, "--html", html)[0] == 0
    assert "model: reverse on 4 players (layers)" in Page(html.read_text(encoding="utf-8")).text
    status, _, error = run(*command, "--html", html)
    assert (status, "exists already" in error) == (2, True)
    status, _, error = run(*command, "--html", html, "--out", html, "--force")
    assert (status, "the same file" in error) == (2, True)

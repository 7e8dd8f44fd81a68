from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from tiny_models import save_tiny

from layercoop_fast.errors import RequestError
from layercoop_fast.pruning.checkpoint_costs import Cost
from layercoop_fast.pruning.prune import Pruned, prune
from layercoop_fast.report.html.markup import number
from layercoop_fast.report.html.page import report_page

Run = Callable[..., tuple[int, str, str]]
SMALL = {"windows": 4, "tokens": 24, "heldout": "builtin-heldout", "repair_tokens": 2000}
NEWER = ("params", "window_nll", "excerpts", "generations", "command", "repair", "budget", "nested")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder = tmp_path_factory.mktemp("report")
    model = save_tiny(folder / "model", n_layers=8)
    costs = [
        Cost(1_000_003, 4_000_012, 1280, 43_190_000, 4864.5, 107.5),
        Cost(750_001, 3_000_004, 960, 42_620_000, 7402.5, 139.7),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layercoop_fast.pruning.writing.measure_costs", lambda paths, **_: costs)
        return prune(str(model), folder / "out", remove=3, method="coop", **SMALL)


@pytest.fixture(scope="module")
def page(done: Pruned) -> Page:
    return Page((done.out / "report.html").read_text(encoding="utf-8"))


def test_one_small_file_that_loads_nothing(done: Pruned) -> None:
    html = (done.out / "report.html").read_text(encoding="utf-8")
    assert html == report_page(done.record)
    assert len(html) < 300_000
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\bon\w+=|src=|href=", html)
    assert "http" not in html
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)


def test_every_number_of_the_record_is_there(done: Pruned, page: Page) -> None:
    record, details = done.record, done.record["details"]
    shown = [record["model"].rsplit("/")[-1], record["command"], "3 of 8 players removed", details["stopped"]]
    for source in (record, record["heldout"]):
        shown += [number(source["ppl"][which]) for which in ("full", "pruned")]
        shown += [number(nll) for which in ("full", "pruned") for nll in source["window_nll"][which]]
    shown += [number(record["worth"][which]) for which in ("full", "pruned")]
    shown += [number(score) for score in record["scores"]]
    shown += [number(record["params"]["full"]), "1,000,003", "750,001", "−25.0%", "43.19", "4,864", "139.7", "960"]
    shown += [number(1000 / 107.5), number(1000 / 139.7)]
    shown += [number(abs(value), 3) for row in details["interactions"] for value in row]
    shown += [number(one["loss"] - details["loss"], 3) for one in details["alternatives"]]
    shown += [number(step["n_removed"]) for step in details["path"]]
    shown += [f"median error of the loss {number(_median_error(details['forecasts']), 3)}"]
    shown += [f"{record['evaluations'][name]:,}" for name in ("masks", "unique", "layer_evals", "token_evals")]
    shown += [number(seconds) for seconds in record["seconds"].values()]
    shown += [*record["versions"].values(), record["fingerprints"]["model"]]
    for one in record["generations"]:
        shown += [re.sub(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]", "\ufffd", text) for text in one.values()]
    missing = [text for text in shown if " ".join(text.split()) not in page.text]
    assert missing == []


def _median_error(forecasts: dict[str, list[float]]) -> float:
    errors = sorted(abs(a - b) for a, b in zip(forecasts["expected"], forecasts["measured"], strict=True))
    return errors[len(errors) // 2]


def test_every_chart_has_a_name_tooltips_and_a_table(page: Page) -> None:
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 11
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert sum(tag == "details" for tag, _ in page.tags) >= 9
    assert sum(tag == "title" for tag, _ in page.tags) > 8 * 7 + 8  # each pair and each value
    assert "Left out" not in page.text


def test_points_lie_where_their_values_are(done: Pruned) -> None:
    """The chosen point is lower than the full model's where its perplexity is, and the steps go left to right."""
    html = report_page(done.record)
    chart = html.split("Perplexity on the calibration text against players removed, coop</figcaption>")[1].split(
        "</svg>"
    )[0]
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    places = places[len(done.record["details"]["seeds"]) :]  # what other rules choose is drawn first
    ppl = [float(text.replace(",", "")) for text in re.findall(r"removed: perplexity ([\d.,]+)", chart)]
    assert len(places) == len(ppl) == 4
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    slope = (places[-1][1] - places[0][1]) / (ppl[-1] - ppl[0])
    assert slope < 0  # up is more
    for (_, y), value in zip(places, ppl, strict=True):
        assert y == pytest.approx(places[0][1] + slope * (value - ppl[0]), abs=0.6)


def test_the_front_is_what_nothing_beats(done: Pruned) -> None:
    """A chosen model that is slower and worse, but smaller, is on the front of size and not on that of speed."""
    record = copy.deepcopy(done.record)
    record["ppl"] = {"full": 10.0, "pruned": 20.0}
    record["details"]["path"] = []
    record["cost"]["pruned"]["decode_tok_s"] = 50.0
    html = report_page(record)
    by_size, by_latency = (html.split(f"{title}</figcaption>")[1].split("</svg>")[0] for title in (
        "Perplexity against size", "Perplexity against latency; hollow: not measured, interpolated"
    ))  # fmt: skip
    assert by_size.count('class="curve"') == 1
    assert by_latency.count('class="curve"') == 0
    assert Page(html).text.count(" yes chosen") == 1  # smaller, so not beaten in everything


def test_the_record_says_how_to_do_it_again(done: Pruned) -> None:
    record = done.record
    assert record["command"].startswith("layercoop-fast prune ")
    asked = " --remove 3 --windows 4 --tokens 24 --repair-tokens 2000 --heldout builtin-heldout"
    assert record["command"].endswith(asked)
    assert len(record["generations"]) == 2
    assert len(record["excerpts"]) == 4
    full, players = record["params"]["full"], record["params"]["players"]
    assert full > sum(players) > 0
    assert len(players) == 8


def test_each_text_the_repair_the_rivals_and_how_sure_it_is(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    assert {one["method"] for one in record["details"]["seeds"]} == {"ppl", "shortgpt", "angular"}
    assert "Nothing was refitted: " in Page(report_page(record)).text or record["repair"]["kept"]
    texts = [{"spec": name, "weight": 1.0, "windows": 2} for name in ("/my/novels.txt", "builtin")]
    record["calibration"] |= {"spec": "/my/novels.txt + builtin", "domains": texts}
    record["fingerprints"]["calibration"] = {"text": "0", "domains": [0, 1, 0, 1], "weights": [1.0, 1.0]}
    record["window_nll"] = {"full": [1.0] * 4, "pruned": [1.5, 3.0, 1.75, 3.5]}
    record["details"]["seeds"][0]["loss"] = 0.25
    gaps = [
        {"into": 1, "removed": [2, 3], "map": "mlp.down_proj", "strength": 0.125, "nll": {}},
        {"into": 5, "removed": [6], "strength": None, "reason": "experts share it"},
    ]
    record["repair"] |= {"kept": True, "gaps": gaps, "nll": {"code": {"before": 2.125, "after": 2.0625}}}
    step = {"windows": 7, "removed": [1, 2, 3], "loss": 0.5, "runner_up": [1, 2, 4], "runner_up_loss": 0.75}
    settled = {"level": 0.05, "finalists": 8, "stopped": "settled", "steps": [{**step, "runner_up_better": 0.03125}]}
    record["details"]["settled"] = settled
    record["budget"] |= {"kind": "drop", "asked": 0.3, "reached": 0.375}
    text = Page(report_page(record)).text
    worse = text.index("calibration (builtin) 2.25 ±")
    assert worse < text.index("calibration (novels.txt) 0.625 ±")  # the text that suffers most comes first
    assert "2 3 1 mlp.down_proj 0.125" in text
    assert "6 5 none experts share it" in text
    assert "code 2.125 2.062" in text
    assert "7 1 2 3 0.5000 1 2 4 0.7500 3%" in text
    assert "drop, asked → reached 0.3000 → 0.3750" in text
    assert f"3 removed by ppl: perplexity {number(record['ppl']['full'] * math.exp(0.25))}" in text


def test_a_hostile_record_is_text_and_nothing_else(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    bad = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x00\ud800"
    record["model"] = record["calibration"]["spec"] = record["command"] = record["excerpts"][0] = bad
    record["generations"][0]["pruned"] = record["versions"]["torch"] = record["details"]["stopped"] = bad
    html = report_page(record)
    html.encode("utf-8")
    assert {tag for tag, _ in Page(html).tags}.isdisjoint({"script", "img"})
    assert "<script" not in html
    assert "alert(1)" in Page(html).text


def test_records_without_the_newer_fields_have_a_report(done: Pruned) -> None:
    record = {name: value for name, value in done.record.items() if name not in NEWER}
    record["heldout"] = {name: value for name, value in record["heldout"].items() if name != "window_nll"}
    record["details"] = {"greedy_order": [0, 1, 2], "greedy_worths": [0.9, 0.8, 0.7]}
    record |= {"cost": None, "scores": None, "method": "sleb"}
    text = Page(report_page(record)).text
    assert text.count("Left out: ") == 6
    assert "Left out: no samples were written" in text
    assert "holds no command" in text
    assert number(record["ppl"]["full"] / 0.9) in text  # what greed saw on the way


@pytest.mark.parametrize(
    ("method", "players"),
    [
        pytest.param("sleb", "sublayers", marks=pytest.mark.slow),
        pytest.param("official", "layers", marks=pytest.mark.slow),
        ("shortgpt", "layers"),
    ],
)
def test_any_method_and_players(done: Pruned, method: str, players: str, tmp_path: Path) -> None:
    made = prune(
        done.record["model"], tmp_path / "out", remove=2, method=method, players=players, windows=2, tokens=12,
        budget=None if method in ("sleb", "shortgpt") else 20, measure_cost=False, samples=0, repair=False,
    )  # fmt: skip
    text = Page((made.out / "report.html").read_text(encoding="utf-8")).text
    assert f"2 of {16 if players == 'sublayers' else 8} players removed" in text
    assert all(str(name) in text for name in made.record["removed"])
    assert made.record["generations"] is None
    assert made.record["excerpts"] == []


def test_figures_that_are_not_finite(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    record["ppl"]["pruned"] = record["worth"]["pruned"] = record["window_nll"]["pruned"][1] = None
    assert "not finite" in Page(report_page(record)).text


def test_the_repaired_model_is_no_point_of_the_line_of_those_that_are_not(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    record["ppl"] = {"full": 10.0, "unrepaired": 20.0, "pruned": 12.0}
    record["worth"] = {"full": 1.0, "unrepaired": 0.5, "pruned": 0.75}
    record["details"]["path"] = record["details"]["path"][-1:]
    record["details"]["seeds"] = []
    html = report_page(record)
    chart = html.split("Perplexity on the calibration text against players removed, coop</figcaption>")[1]
    said = re.findall(r"<title>(\d removed[^<]*)</title>", chart.split("</svg>")[0])
    assert sorted(said) == [
        "0 removed: perplexity 10.00",
        "3 removed, repaired: perplexity 12.00",
        "3 removed: perplexity 20.00",
    ]
    text = Page(html).text
    assert ", repaired" in text
    assert "chosen, repaired" in text
    assert "The chosen model is repaired; the others on the way are as they were cut." in text


def test_what_the_search_said_of_its_own_mask_is_not_said_of_another(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    assert "Runner-up of all masks" in Page(report_page(record)).text
    step = {"windows": 4, "removed": [0, 1, 2], "loss": 0.5, "runner_up": [0, 1, 3], "runner_up_loss": 0.75}
    steps = [{**step, "runner_up_better": 0.2}, {**step, "windows": 7, "runner_up_better": 0.01}]
    settled = {"level": 0.05, "finalists": 8, "stopped": "settled", "steps": steps}
    record["details"] |= {"settled": settled}
    record["removed"] = next(list(other) for other in ([0, 1, 2], [0, 1, 3]) if other != sorted(done.record["removed"]))
    text = Page(report_page(record)).text
    assert "Runner-up of all masks" not in text
    assert "best measured mask that keeps it" not in text
    assert "1 removed: perplexity" not in text  # losses on the first windows are no perplexities on all


def test_scores_that_are_all_unknown(done: Pruned) -> None:
    record = copy.deepcopy(done.record)
    record["scores"] = [None] * len(record["scores"])
    assert "Shapley value of every player" not in Page(report_page(record)).text


def test_many_players_stay_small(done: Pruned) -> None:
    """160 layers' halves: 51,040 pairs."""
    record, n = copy.deepcopy(done.record), 320
    record |= {"n_players": n, "players": "sublayers", "scores": [0.1] * n, "removed": ["3.attn", "4.mlp"]}
    record["params"] = {"full": 10**9, "players": [10**6] * n}
    details = record["details"]
    details["values_stderr"] = [0.01] * n
    for name in ("interactions", "interactions_stderr"):
        details[name] = [[0.001 * (i - j % 7) for j in range(n - 1 - i)] for i in range(n)]
    html = report_page(record)
    Page(html)
    assert len(html) < 2_000_000


def test_notebooks_show_it(done: Pruned) -> None:
    html = done._repr_html_()
    assert html.startswith('<div class="lc"><style>')
    assert "<body" not in html
    assert Page(html).text.count("Why each player went") == 1


def test_the_command_writes_it_again(done: Pruned, run: Run, tmp_path: Path) -> None:
    written = done.out / "report.html"
    before = written.read_text(encoding="utf-8")
    written.unlink()
    status, printed, _ = run("report", done.out)
    assert (status, printed) == (0, f"written: {written}\n")
    assert written.read_text(encoding="utf-8") == before
    assert run("report", done.out, "--out", tmp_path / "r.html")[0] == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == before
    status, _, error = run("report", done.out, "--out", tmp_path / "r.html")
    assert (status, "exists already" in error) == (2, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no layercoop.json"),
        ("{", "is not JSON"),
        ("[1]", "it has no schema"),
        ('{"schema": 2}', "schema 2: this version reads 1"),
        ('{"schema": 1}', "not as `prune` writes it"),
    ],
)
def test_bad_folders(run: Run, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "layercoop.json").write_text(content)
    status, _, error = run("report", tmp_path)
    assert status == 2
    assert message in error
    assert not (tmp_path / "report.html").exists()


def test_no_folder(run: Run, tmp_path: Path) -> None:
    assert run("report", tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize(("field", "value"), [("n_players", "many"), ("ppl", 3), ("details", {"interactions": [[1]]})])
def test_fields_that_are_something_else(done: Pruned, field: str, value: Any) -> None:
    record = json.loads(json.dumps(done.record)) | {field: value}
    with pytest.raises(RequestError, match="not as `prune` writes it"):
        report_page(record)


def test_without_a_report(done: Pruned, tmp_path: Path) -> None:
    made = prune(
        done.record["model"], tmp_path / "out", remove=1, method="reverse", windows=2, tokens=12,
        measure_cost=False, samples=0, report=False, repair=False,
    )  # fmt: skip
    assert not (made.out / "report.html").exists()
    assert made.record["command"].endswith("--samples 0 --no-report")

"""Several calibration texts, chat templates and growing text, as one uses them from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.search.base import get_method

Run = Callable[..., tuple[int, str, str]]
L = 5
SMALL = ["--windows", 3, "--tokens", 24]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("domains") / "model", n_layers=L)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    for name in ("a", "b"):
        drawn = np.random.default_rng(ord(name)).integers(97 if name == "a" else 48, 110, 2000)
        (folder / f"{name}.txt").write_text("".join(map(chr, drawn)))
    return folder / "a.txt", folder / "b.txt"


def on_both(texts: tuple[Path, Path]) -> list[object]:
    return ["--calibration", f"{texts[0]}:2", "--calibration", texts[1]]


def test_prune_on_the_worst_of_two_texts_until_settled(
    run: Run, model: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["--remove", 2, "--objective", "worst", "--settle", 0.001, "--most-windows", 9, "--no-cost", "--json"]
    arguments += ["--no-repair", "--samples", 0]
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *arguments, *on_both(texts), *SMALL)
    assert status == 0, error
    record = json.loads(printed)
    assert record["fingerprints"]["utility"] == "ppl_ratio:worst"
    settled = record["details"]["settled"]
    assert [step["windows"] for step in settled["steps"]] == [6, 10, 18][: len(settled["steps"])]
    assert settled["stopped"] in ("settled", "17 windows of each text would be more than 9")
    last = settled["steps"][-1]
    assert last["removed"] == record["removed"]
    assert last["loss"] <= last["runner_up_loss"]
    assert (settled["stopped"] == "settled") == (last["runner_up_better"] <= 0.001)
    assert sum(text["windows"] for text in record["calibration"]["domains"]) == last["windows"]
    assert [text["weight"] for text in record["calibration"]["domains"]] == [2, 1]
    # What growing text says of the two is what games on each of the texts say.
    losses = []
    for removed in (last["removed"], last["runner_up"]):
        masks = np.ones((2, L), bool)
        masks[1, removed] = False
        rises = []
        for text in texts:
            game = ModelGame.from_pretrained(str(model), str(text), windows=last["windows"] // 2, tokens=24)
            full, pruned = game.evaluate(masks).nll
            rises.append(pruned - full)
        losses.append(max(rises))
    assert losses == pytest.approx([last["loss"], last["runner_up_loss"]], abs=1e-5)
    assert record["worth"]["pruned"] == pytest.approx(np.exp(-last["loss"]), rel=1e-5)


@pytest.mark.slow
def test_finalists_of_grown_text_are_repaired_and_compared(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["--remove", 2, "--settle", 0.001, "--most-windows", 9, "--finalists", 3, "--repair-tokens", 600]
    texts = ["--repair-text", "builtin", "--repair-text", "builtin-code"]
    quick = ["--no-cost", "--samples", 0, "--json"]
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *arguments, *texts, *quick, *SMALL)
    assert status == 0, error
    details = json.loads(printed)["details"]
    assert len(details["settled"]["steps"]) > 1
    assert len(details["finalists"]) == 3
    game = ModelGame.from_pretrained(str(model), windows=details["settled"]["steps"][-1]["windows"], tokens=24)
    for row in details["finalists"]:
        # The windows of both are the same, in another order.
        assert row["worth"] == pytest.approx(game(~np.isin(np.arange(L), row["removed"]))[0], rel=1e-6)


@pytest.mark.slow
def test_growing_ends_with_the_text(run: Run, model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("so it goes on and on, " * 5)
    arguments = ["--calibration", short, "--settle", 1e-9, "--remove", 1, "--no-cost", "--json", *SMALL]
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *arguments)
    assert status == 0, error
    settled = json.loads(printed)["details"]["settled"]
    assert "has 110 tokens; 5 windows of 24 need 120" in settled["stopped"] or settled["stopped"] == "settled"
    assert settled["finalists"] == L


@pytest.mark.slow
def test_a_method_that_measures_nothing_has_nothing_to_settle(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["--method", "shortgpt", "--settle", 0.05, "--remove", 1, "--no-cost", "--json", *SMALL]
    status, printed, error = run("prune", model, "--out", tmp_path / "out", *arguments)
    assert status == 0, error
    settled = json.loads(printed)["details"]["settled"]
    assert settled["steps"] == []
    assert "no other mask that may be chosen" in settled["stopped"]


def test_evaluate_and_shapley_take_texts_and_chat(
    run: Run, model: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "masks.npy", np.random.default_rng(0).random((30, L)) < 0.6)
    out = tmp_path / "w.npz"
    options = [*on_both(texts), *SMALL, "--utility", "blend:0.5", "--chat"]
    status, _, error = run("evaluate", model, "--masks", tmp_path / "masks.npy", "--out", out, *options)
    assert status == 0, error
    prints = json.loads(str(np.load(out)["fingerprints"]))
    assert prints["utility"] == "blend:0.5"
    assert prints["calibration"]["domains"] == [0, 1, 0, 1, 0, 1]
    assert prints["calibration"]["weights"] == [2, 1]
    status, printed, error = run("shapley", model, "--budget", 30, "--json", *on_both(texts), *SMALL)
    assert status == 0, error
    assert json.loads(printed)


def test_compare_on_two_texts(run: Run, model: Path, texts: tuple[Path, Path]) -> None:
    arguments = ["--remove", 1, "--methods", "coop,sleb", "--eval", "builtin", "--eval-windows", 2, "--json"]
    status, printed, error = run("compare", model, *arguments, *on_both(texts), *SMALL)
    assert status == 0, error
    rows = json.loads(printed)["rows"]
    mask = np.ones((1, L), bool)
    mask[0, rows[0]["removed"]] = False
    nll = [
        ModelGame.from_pretrained(str(model), str(text), windows=3, tokens=24).evaluate(mask).nll[0] for text in texts
    ]
    assert rows[0]["texts"][0]["nll"] == pytest.approx((2 * nll[0] + nll[1]) / 3, rel=1e-5)


@pytest.mark.parametrize("utility", ["ppl_ratio", "kl", "blend:0.5", "nll:worst"])
def test_a_search_takes_what_the_game_calls_best(model: Path, texts: tuple[Path, Path], utility: str) -> None:
    game = ModelGame.from_pretrained(
        str(model), [(str(texts[0]), 5.0), str(texts[1])], utility=utility, windows=4, tokens=24
    )
    every = np.array([[i not in (a, b) for i in range(L)] for a in range(L) for b in range(a)])
    worths = game(every)
    for method in ("coop", "evopress", "finercut"):
        choice = get_method(method)(game.view(apart=True, stored=False), 2)
        if method == "coop":
            assert game(choice.mask[None])[0] == worths.max()
            assert choice.details["runner_up_loss"] >= choice.details["loss"]
            assert 0 <= choice.details["runner_up_better"] <= 0.75
        if method == "evopress":
            divergence = game.with_utility("kl")
            assert choice.details["worth"] == pytest.approx(divergence(choice.mask[None])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "worst"], "the worst of several texts needs more than one: give another --calibration"),
        (["--objective", "best"], "unknown objective 'best': choose mean or worst"),
        (["--calibration", "a.txt:0"], "the weight of a.txt is 0"),
        (["--calibration", "builtin", "--calibration", "builtin:2"], "builtin is given twice"),
        (["--settle", 0.7], "must be a probability between 0 and 0.5"),
        (["--settle", 0.1, "--most-windows", 2], "must be at least the 3 windows of each text"),
        (["--most-windows", 5], "--most-windows belongs to --settle"),
        (["--memory", "9" * 400], "is more than any machine holds"),
        (["--settle", 0.1, "--utility", "accuracy"], "accuracy is not a mean over windows"),
        (["--utility", "accuracy", "--objective", "worst"], "accuracy is a worth of items with options"),
        (
            ["--utility", "accuracy", "--calibration", "builtin", "--calibration", "self"],
            "items with options come from",
        ),
        (["--utility", "accuracy", "--chat"], "--chat is for text"),
        (["--calibration", "self", "--chat"], "'self' is none"),
    ],
)
def test_requests_that_cannot_be_met(run: Run, model: Path, tmp_path: Path, options: list, message: str) -> None:
    status, _, error = run("prune", model, "--remove", 1, "--out", tmp_path / "out", "--no-cost", *SMALL, *options)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()

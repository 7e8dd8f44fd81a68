"""`prune` with a search among masks as they are repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_texts import short_texts
from tiny_models import save_tiny

from layercoop_fast import ModelGame, prune
from layercoop_fast.repair.repaired_model import repaired_game
from layercoop_fast.repair.run_maps import fit_run_maps
from layercoop_fast.repair.texts import load_texts

Run = Callable[..., tuple[int, str, str]]
L, REMOVED, TOKENS = 5, 2, 1024
SMALL: dict[str, Any] = {"windows": 2, "tokens": 16, "repair_tokens": TOKENS}
QUICK: dict[str, Any] = {"measure_cost": False, "samples": 0, "report": False}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short texts of different kinds."""
    return short_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("under_repairs") / "model", n_layers=L))


def test_the_mask_of_least_loss_with_its_maps_is_taken(model: str, specs: list[str], tmp_path: Path) -> None:
    asked = {"calibration": specs[0], "repair_text": specs, "remove": REMOVED, "method": "exhaustive"}
    done = prune(model, tmp_path / "out", **asked, search_repaired=True, **SMALL, **QUICK)
    game = ModelGame.from_pretrained(model, specs[0], windows=2, tokens=16)
    texts = load_texts(game, specs, TOKENS)
    maps = fit_run_maps(game, texts.fewer(16_384), REMOVED)
    masks = np.array([[unit not in gone for unit in range(L)] for gone in combinations(range(L), REMOVED)])
    text = texts.heldout(4)
    assert text.domains is not None
    assert text.domains.of_window.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(text.ids[1], texts.texts[1].choice[0])
    worths = repaired_game(game, maps, text)(masks)
    np.testing.assert_array_equal(done.choice.mask, masks[worths.argmax()])
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert record["details"]["under_repairs"] == {**maps.record, "windows": 8, "layer_tokens": maps.tokens}
    assert record["evaluations"]["masks"] >= len(masks)
    assert record["calibration"]["spec"] == specs[0]  # what is measured at the end is the text that was asked for


def test_finalists_are_those_of_the_search(model: str, specs: list[str], tmp_path: Path) -> None:
    asked = {"calibration": specs[0], "repair_text": specs, "remove": REMOVED, "finalists": 2}
    done = prune(model, tmp_path / "out", **asked, method="exhaustive", search_repaired=True, **SMALL, **QUICK)
    alone = prune(
        model,
        tmp_path / "one",
        **{**asked, "finalists": 1},
        method="exhaustive",
        search_repaired=True,
        **SMALL,
        **QUICK,
    )
    finalists = done.record["details"]["finalists"]
    assert len(finalists) == 2
    assert alone.record["removed"] in [one["removed"] for one in finalists]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-repair"], "--search-repaired chooses masks for their repair, which --no-repair leaves out"),
        (["--nested"], "--search-repaired and --nested do not go together"),
        (["--settle", "0.1"], "--search-repaired and --settle do not go together"),
        (["--workers", "2"], "--search-repaired and --workers do not go together"),
        (["--offload"], "--search-repaired and --offload do not go together"),
        (["--utility", "margin"], "--search-repaired measures on windows of text: use a text"),
    ],
)
def test_what_does_not_go_together_is_said(
    words: list[str], message: str, model: str, tmp_path: Path, run: Run
) -> None:
    status, _, shown = run("prune", model, "--out", str(tmp_path / "out"), "--remove", "1", "--search-repaired", *words)
    assert (status, shown.count("\n")) == (2, 1), shown
    assert message in shown

"""A repair as a whole is judged by windows that no choice has looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import FAMILIES, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.repair import gap_by_gap, strengths
from layercoop_fast.repair.fit import fit_repair
from layercoop_fast.texts.calibration import load_calibration, read_text


def test_the_last_word_is_had_by_the_repaired_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[list[float], list[float]]] = []
    monkeypatch.setattr(strengths, "STRENGTHS", (1.0,))
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: not judged.append((list(after), list(before))))
    text = tmp_path / "text.txt"
    text.write_text(read_text("builtin")[:2500], encoding="ascii", errors="ignore")
    model = FAMILIES["llama"](n_layers=3)
    skeleton = Skeleton(model)
    calibration = load_calibration(str(text), tiny_tokenizer(), skeleton, windows=2, tokens=16)
    game = ModelGame(Checkpoint(model, tiny_tokenizer(), "tiny"), calibration, skeleton=skeleton)
    repaired = fit_repair(game, np.array([True, False, True]), [str(text)], tokens=2 * 16 * 16)
    (said,) = repaired.record["nll"].values()
    assert judged[-1] == ([said["after"]], [said["before"]])
    assert said["after"] != said["before"]


def test_one_domain_that_loses_is_enough() -> None:
    assert gap_by_gap._no_worse([1.0, 2.0], [1.0, 2.5])
    assert not gap_by_gap._no_worse([0.5, 2.0], [1.0, 1.9])
    assert not gap_by_gap._no_worse([float("nan")], [1.0])

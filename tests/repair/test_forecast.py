"""What a repair is said to take: which work is counted, not how fast a machine is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_texts import short_texts
from tiny_models import save_tiny, tiny_model, tiny_tokenizer

from layercoop_fast import ModelGame, fit_repair, prune
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.repair import forecast
from layercoop_fast.repair.forecast import forecast_repair
from layercoop_fast.repair.texts import RepairTexts, load_texts
from layercoop_fast.texts.calibration import Calibration

MASK = np.array([True, False, True, True])


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a machine that never changes: a microsecond a token of a unit, a billion operations a second."""
    monkeypatch.setattr(MaskedModel, "pilot", lambda model: (1e-6 * model.windows.ids.numel(), 0.0))
    monkeypatch.setattr(forecast, "_rates", lambda size, device: (1e9, 1e9))


def game_of(family: str, tmp_path: Path) -> tuple[ModelGame, RepairTexts]:
    text = Calibration(torch.arange(3, 67).reshape(4, 16), "elsewhere")
    game = ModelGame(Checkpoint(tiny_model(family, 4), tiny_tokenizer(), "tiny"), text)
    return game, load_texts(game, short_texts(tmp_path), 1024)


def test_more_work_takes_longer(steady: None, tmp_path: Path) -> None:
    game, texts = game_of("llama", tmp_path)
    found = forecast_repair(game, MASK, texts)
    assert found["full"] > found["small"] > 0
    # Half of the tokens, and two gaps in place of one.
    assert forecast_repair(game, MASK, texts.fewer(texts.tokens // 2))["small"] < found["small"]
    assert forecast_repair(game, np.array([True, False, True, False]), texts)["small"] > found["small"]
    # The streams: four units of the full model and three of the pruned one, and the one before the gap once more.
    (text, _), unit = texts.texts, game.masked.players.n_units
    held = 2 * text.choice.numel()
    passes = texts.tokens * (unit + 3 + 1) + 9 * held * 3
    assert found["small"] > passes * 1e-6
    assert found["small"] < passes * 1e-6 + 0.5


@pytest.mark.parametrize(("family", "computes"), [("gpt2", {"small", "full"}), ("mixtral", set())])
def test_models_without_gates_or_maps(family: str, computes: set[str], steady: None, tmp_path: Path) -> None:
    game, texts = game_of(family, tmp_path)
    found = forecast_repair(game, MASK, texts)
    assert found.keys() == computes
    assert len(set(found.values())) <= 1  # without a gated MLP both are the same fit
    assert fit_repair(game, MASK, texts).kept is False or found


def test_it_is_said_when_a_repair_begins(tmp_path: Path) -> None:
    said: list[tuple[Any, ...]] = []
    model = str(save_tiny(tmp_path / "model", n_layers=4))
    text = short_texts(tmp_path)[0]
    small = {"calibration": text, "windows": 2, "tokens": 16, "measure_cost": False, "samples": 0, "report": False}
    prune(
        model, tmp_path / "pruned", remove=1, method="reverse", repair=True, repair_text=[text], repair_tokens=256,
        on_progress=lambda *step: said.append(step), **small,
    )  # fmt: skip
    (began, ended) = [step for step in said if step[0].startswith("fitting a repair")]
    assert began[1:] == (0, 1)
    assert ended == (began[0], 1, 1)
    assert began[0].startswith("fitting a repair (full: about ")
    assert ", small " in began[0]

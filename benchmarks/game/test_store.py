"""What keeping measured masks costs: the same evaluation with and without a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from layercoop_fast import ModelGame, stratified_masks
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.texts.calibration import load_calibration

pytestmark = pytest.mark.benchmark(group="masks measured with a store")


@pytest.fixture(scope="module")
def parts(model: str, full: bool):
    from layercoop_fast.engine.skeleton import Skeleton

    checkpoint = open_checkpoint(model)
    skeleton = Skeleton(checkpoint.model)
    text = load_calibration("builtin", checkpoint.tokenizer, skeleton, windows=4, tokens=128 if full else 64, seed=0)
    return checkpoint, skeleton, text, stratified_masks(skeleton.n_layers, 60 if full else 10, seed=0)


def test_with_a_store(clock, parts, tmp_path: Path) -> None:
    checkpoint, skeleton, text, masks = parts
    numbers = iter(range(100))

    def measure(game: ModelGame) -> None:
        game.evaluate(masks)
        game.close()

    clock(
        "ours",
        measure,
        setup=lambda: ModelGame(checkpoint, text, skeleton=skeleton, store=tmp_path / f"{next(numbers)}.store"),
    )


def test_without(clock, parts) -> None:
    checkpoint, skeleton, text, masks = parts
    clock("no store", lambda game: game.evaluate(masks), setup=lambda: ModelGame(checkpoint, text, skeleton=skeleton))

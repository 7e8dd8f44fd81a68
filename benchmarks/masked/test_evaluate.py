"""Measuring masks of the published strata from start to end: ours, skipping without sharing, and the published way."""

from __future__ import annotations

import time

import numpy as np
import pytest
from masked.bench_evaluate import planned, published, skip

from layercoop_fast import ModelGame, stratified_masks

pytestmark = pytest.mark.benchmark(group="masks measured")


@pytest.fixture(scope="module")
def game(model: str, full: bool) -> ModelGame:
    return ModelGame.from_pretrained(model, windows=10 if full else 2, tokens=128)


@pytest.fixture(scope="module")
def masks(game: ModelGame, full: bool) -> np.ndarray:
    return stratified_masks(game.n_players, 500 if full else 60)


def test_ours(clock, game: ModelGame, masks: np.ndarray, full: bool) -> None:
    clock("ours", lambda: planned(game, masks, None, time.perf_counter), rounds=1 if full else 3)


def test_skip(clock, game: ModelGame, masks: np.ndarray, full: bool) -> None:
    """On our fast blocks, on a sample that keeps as many layers on average."""
    some = masks[:: len(masks) // 10]
    scale = masks.sum() / some.sum()
    clock("skip, nothing shared", lambda: skip(game, some, time.perf_counter), rounds=1 if full else 3, scale=scale)


def test_published(clock, game: ModelGame, masks: np.ndarray, full: bool) -> None:
    """Zero the weights, run everything, restore: every mask takes as long as every other."""
    some = masks[:: len(masks) // 5]
    scale = len(masks) / len(some)
    clock("published", lambda: published(game, some, time.perf_counter), rounds=1 if full else 3, scale=scale)

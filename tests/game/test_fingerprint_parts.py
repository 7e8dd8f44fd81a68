"""Every part of a game's fingerprints that decides what its numbers are, and what a store keeps at its edges."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.known_scores import KnownScores
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.store import SCHEMA, Store, mask_key
from layercoop_fast.masked.scores import Scores
from layercoop_fast.texts.calibration import Calibration


@pytest.fixture(scope="module")
def game() -> ModelGame:
    ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    return ModelGame(Checkpoint(tiny_model("llama", 2), tiny_tokenizer(), "tiny"), Calibration(ids, "test"))


def test_the_utility_is_part_of_them(game: ModelGame) -> None:
    games = [ModelGame(game.checkpoint, game.calibration, utility=name) for name in ("nll", "kl", "blend:0.25")]
    found = [one.fingerprints["utility"] for one in games]
    assert found == ["nll", "kl", "blend:0.25"]


def test_the_dtype_and_the_config_are_part_of_them(game: ModelGame) -> None:
    model = tiny_model("llama", 2)
    assert game.fingerprints["dtype"] == "float32"
    model.config.rms_norm_eps *= 2
    other = ModelGame(Checkpoint(model, None, "tiny"), game.calibration)
    assert other.fingerprints["model"] != game.fingerprints["model"]
    half = ModelGame(Checkpoint(tiny_model("llama", 2).bfloat16(), None, "tiny"), game.calibration)
    assert half.fingerprints["dtype"] == "bfloat16"


def test_the_number_of_threads_is_part_of_them(game: ModelGame) -> None:
    assert game.fingerprints["numerics"]["threads"] == torch.get_num_threads()


def test_closing_a_shelf_commits_what_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "a", write=True)
    key = mask_key(np.array([True, False, True]))
    shelf = KnownScores(store, store.claim({"model": "a"}, 3, [7, 7]))
    shelf.add(key, Scores(np.array([1.0, 2.0]), np.full(2, np.nan)))
    assert not shelf.settled
    shelf.close()
    with Store(tmp_path / "a") as again:
        assert again.games()[0].masks == 1


def test_a_store_of_the_next_schema_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "a", write=True) as store:
        store.claim({"model": "a"}, 3, [7])
    with sqlite3.connect(tmp_path / "a") as later:
        later.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    later.close()
    with pytest.raises(RequestError, match=f"a store of schema {SCHEMA + 1}"):
        Store(tmp_path / "a", write=True)

"""CKA of a block's input and output."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.importance import residual_stream
from layercoop_fast.texts.calibration import Calibration


def test_against_the_formula_by_gram_matrices() -> None:
    """HSIC(K, L) / sqrt(HSIC(K, K) · HSIC(L, L)) with centred kernels over tokens, as it is defined."""
    ids = torch.randint(3, 259, (2, 13), generator=torch.Generator().manual_seed(0))
    game = ModelGame(Checkpoint(tiny_model("llama", 3), tiny_tokenizer(), "llama"), Calibration(ids, "t"))
    states = [hidden.flatten(0, 1).double() for hidden in residual_stream(game.masked)]
    n = len(states[0])
    centre = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((centre @ (x @ x.T) @ centre * (y @ y.T)).sum())

    wanted = [1 - hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5 for x, y in pairwise(states)]
    before = game.evaluations.token_evals
    np.testing.assert_allclose(game.cka_distances(), wanted, rtol=1e-9, atol=1e-12)
    assert game.evaluations.token_evals - before == 3 * ids.numel()

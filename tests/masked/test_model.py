"""The one loop from masks to scores, without a game around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.masked.model import MaskedModel, Work
from layercoop_fast.masked.players import make_players
from layercoop_fast.masked.scores import Scores
from layercoop_fast.texts.calibration import Calibration

L, W, T = 4, 3, 18
MASKS = np.array([[True, True, False, True], [False, True, True, True], [True] * L, [True, False, False, True]])


def model_of(**options: bool) -> MaskedModel:
    skeleton = Skeleton(tiny_model("llama", L))
    ids = torch.randint(3, 256, (W, T), generator=torch.Generator().manual_seed(0))
    return MaskedModel.of(skeleton, make_players("layers", skeleton), Calibration(ids, "test"), **options)


def scores_of(model: MaskedModel, masks: np.ndarray) -> Scores:
    """By the rows of the masks, float64 [M, W]."""
    found: dict[int, Scores] = {}
    model.measure(masks, lambda row, scores: found.update({row: scores}))
    assert sorted(found) == list(range(len(masks)))
    return Scores(*(np.array([getattr(found[row], kind) for row in range(len(masks))]) for kind in ("nll", "kl")))


def test_scores_belong_to_the_rows_of_the_masks() -> None:
    model = model_of()
    together = scores_of(model, MASKS).nll
    assert np.array_equal(together, np.concatenate([scores_of(model, mask[None]).nll for mask in MASKS]))
    assert np.isnan(scores_of(model, MASKS).kl).all()


def test_work_is_told_to_its_end() -> None:
    """Unit evaluations; the full model's run as a teacher is told once and apart."""
    model, told = model_of(teacher=True), list[Work]()
    for _ in range(2):
        model.measure(MASKS, lambda row, scores: None, told.append)
    first, second = told[: len(told) // 2 + 1], told[len(told) // 2 + 1 :]
    (plan,) = model.plans(MASKS)
    assert [sum(work.evaluations for work in call) for call in (first, second)] == [plan.scheduled] * 2
    assert (first[-1].remaining, second[-1].remaining) == (0, 0)
    assert [sum(work.teacher for work in call) for call in (first, second)] == [L, 0]


@pytest.mark.parametrize("teacher", [False, True])
def test_a_view_is_a_new_object_on_the_same_blocks(teacher: bool) -> None:
    model = model_of(teacher=teacher)
    whole = scores_of(model, MASKS)
    part = model.on(model.text.part(1, 3))
    assert part is not model
    assert part.skeleton is model.skeleton
    found = scores_of(part, MASKS)
    assert np.array_equal(found.nll, whole.nll[:, 1:])
    assert np.array_equal(found.kl, whole.kl[:, 1:], equal_nan=True)
    assert part.fingerprints["calibration"] != model.fingerprints["calibration"]
    assert part.fingerprints["numerics"] == model.fingerprints["numerics"]
    assert np.array_equal(scores_of(model.on(teacher=True), MASKS).nll, whole.nll)
    assert np.array_equal(scores_of(model, MASKS).nll, whole.nll), "the model itself is as it was"

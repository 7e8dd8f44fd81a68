"""Recurrent blocks: whose functions they run on, and that those small models are trained with are transformers' own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers.models.mamba import modeling_mamba


@pytest.fixture
def trainable_recurrences(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import recurrences

    yield recurrences.trainable_recurrences
    sys.modules.pop("recurrences")


@pytest.mark.parametrize(("family", "blocks"), [("mamba", 1), ("rwkv", 3)])
@pytest.mark.parametrize(("windows", "length"), [(1, 1), (5, 7)])  # Mamba's scan takes four windows at once
def test_loss_and_gradients(family: str, blocks: int, windows: int, length: int, trainable_recurrences: Any) -> None:
    model = tiny_model(family, blocks).double().train()
    ids = torch.arange(windows * length).reshape(windows, length) * 13 % 251
    theirs = _loss_and_gradients(model, ids)
    with trainable_recurrences():
        ours = _loss_and_gradients(model, ids)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_a_masked_pass_runs_what_transformers_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `mamba_ssm` is installed transformers puts its kernel under this name; whoever stands there is called."""
    from layercoop_fast.engine.skeleton import Skeleton

    skeleton, calls = Skeleton(tiny_model("mamba", 3)), []
    chosen = modeling_mamba.mamba_selective_scan
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", lambda *a, **k: calls.append(1) or chosen(*a, **k))
    context = skeleton.context(torch.arange(3, 9)[None])
    calls.clear()
    context.run(2, context.run(0, context.embedding))
    assert len(calls) == 2


def _loss_and_gradients(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss = (model(input_ids=ids, use_cache=False).logits ** 2).mean()
    loss.backward()
    # A single token reaches no decay: no gradient, or one of zeros.
    gradients = (torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters())
    return [
        loss.detach(),
        *(gradient.reshape(one.shape).clone() for one, gradient in zip(model.parameters(), gradients, strict=True)),
    ]

"""The fused head is used where the model's head allows it, gives its losses, and is refused elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor, nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.llama.fused_head import FusedHead, fused_head


def ids_of(skeleton: Skeleton, windows: int = 2, tokens: int = 21) -> Tensor:
    return torch.randint(3, 256, (windows, tokens), generator=torch.Generator().manual_seed(windows))


def of(family: str, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Skeleton, FusedHead | None]:
    skeleton = Skeleton(FAMILIES[family](n_layers=3, **config).to(dtype))
    return skeleton, fused_head(skeleton, ids_of(skeleton))


# What the head does after its projection: nothing, a factor (as Cohere's and Granite's), a soft cap.
HEADS = {
    "llama": (1.0, None),
    "mistral": (1.0, None),
    "qwen2": (1.0, None),
    "qwen3": (1.0, None),
    "gpt2": (1.0, None),
    "gemma2": (1.0, 30.0),
}


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("family", HEADS)
def test_losses_are_those_of_the_models_logits(family: str, dtype: torch.dtype, relative: float) -> None:
    skeleton, head = of(family, dtype)
    assert head is not None, "not active"
    assert (head.scale, head.soft_cap) == HEADS[family]
    ids = ids_of(skeleton, windows=3)
    context = skeleton.context(ids)
    targets = ids[:, 1:].reshape(-1)
    with torch.inference_mode():
        states = [context.embedding, context.run(0, context.embedding)]
        logits = [context.logits(state)[:, :-1].float().reshape(len(targets), -1) for state in states]
        rows = [head.inputs(context, state)[:, :-1].reshape(len(targets), -1) for state in states]
        found = head.losses(rows[0], targets, teacher=rows[1])
    nll = nn.functional.cross_entropy(logits[0], targets, reduction="none")
    log_q, log_p = (value.double().log_softmax(-1) for value in logits)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(found.nll, nll, rtol=relative, atol=relative)
    assert found.kl is not None
    torch.testing.assert_close(found.kl.double(), kl, rtol=relative, atol=relative)


def test_a_factor_behind_the_projection_is_found() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    forward = skeleton.model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.0625
        return output

    skeleton.model.forward = scaled  # type: ignore[method-assign]
    head = fused_head(skeleton, ids_of(skeleton))
    assert head is not None
    assert (head.scale, head.soft_cap) == (0.0625, None)


def test_what_is_not_understood_keeps_the_general_path() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    forward = skeleton.model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + 1.0
        return output

    skeleton.model.forward = shifted  # type: ignore[method-assign]
    assert fused_head(skeleton, ids_of(skeleton)) is None


def test_a_projection_of_another_kind_keeps_the_general_path() -> None:
    class Doubling(nn.Linear):
        def forward(self, value: Tensor) -> Tensor:
            return 2 * super().forward(value)

    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    old = skeleton.model.lm_head
    new = Doubling(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    skeleton.model.lm_head = new
    assert fused_head(skeleton, ids_of(skeleton)) is None


def test_the_self_check_turns_a_wrong_product_off() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    # Acts on real logits, one a word, and not on those that stand in for them.
    words = skeleton.vocab_size
    skeleton.model.lm_head.register_forward_hook(
        lambda module, args, logits: logits * (1.01 if logits.shape[-1] == words else 1)
    )
    assert fused_head(skeleton, ids_of(skeleton)) is None


def test_windows_of_one_token_have_no_losses_to_check() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    assert fused_head(skeleton, ids_of(skeleton, tokens=1)) is None

"""A block's form with gradients against torch's differentiation of the model's own block."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from layercoop_fast import Skeleton
from layercoop_fast.llama import training_block as module
from layercoop_fast.llama.training_block import TrainingBlock, training_block


def formed(skeleton: Skeleton, layer: int, tokens: int) -> TrainingBlock | None:
    ids = torch.arange(tokens)[None] % skeleton.vocab_size
    return training_block(skeleton.blocks[layer], skeleton.context(ids).call(layer), skeleton.convention)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("windows", "tokens"), [(1, 2), (3, 17), (2, 48)])
def test_results_and_gradients(dtype: torch.dtype, tolerance: float, windows: int, tokens: int) -> None:
    model = tiny_model("llama", 2).to(dtype)
    model.requires_grad_(True)
    skeleton = Skeleton(model)
    ids = torch.randint(300, (windows, tokens), generator=torch.Generator().manual_seed(1))
    call = skeleton.context(ids).call(1)
    random = torch.Generator().manual_seed(2)
    shape = (windows, tokens, model.config.hidden_size)
    hidden, slope = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
    own = dict(skeleton.blocks[1].named_parameters())
    given = hidden.clone().requires_grad_()
    whole = module._out_of_inference(call).with_hidden(skeleton.convention.takes, given)
    expected = skeleton.convention.unwrap(skeleton.blocks[1](*whole.args, **whole.kwargs))
    slopes = dict(zip(["hidden", *own], torch.autograd.grad(expected, [given, *own.values()], slope), strict=True))
    block = formed(skeleton, 1, tokens)
    assert block is not None
    other = hidden.clone().requires_grad_()
    found = block(other)
    names = ["hidden", *block.parameters]
    mine = dict(zip(names, torch.autograd.grad(found, [other, *block.parameters.values()], slope), strict=True))
    wanted = {
        "hidden": slopes["hidden"],
        "attention_norm": slopes["input_layernorm.weight"],
        "mlp_norm": slopes["post_attention_layernorm.weight"],
        "qkv": torch.cat([slopes[f"self_attn.{name}_proj.weight"] for name in "qkv"]),
        "output": slopes["self_attn.o_proj.weight"],
        "gate_up": torch.cat([slopes[f"mlp.{name}_proj.weight"] for name in ("gate", "up")]),
        "down": slopes["mlp.down_proj.weight"],
    }
    for name, one in [("result", expected), *wanted.items()]:
        result = found if name == "result" else mine[name]
        assert result.dtype == dtype
        difference = (result.double() - one.double()).norm() / one.double().norm()
        assert float(difference.detach()) < tolerance, name


def test_a_change_of_its_parameters_is_one_of_the_module() -> None:
    skeleton = Skeleton(tiny_model("llama", 1))
    block = formed(skeleton, 0, 8)
    assert block is not None
    with torch.no_grad():
        for parameter in block.parameters.values():
            parameter.mul_(2)
    fresh = tiny_model("llama", 1)
    for name, parameter in skeleton.model.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name) * (2 if ".layers." in name else 1)), name


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3", "gemma2", "gemma3", "opt"])
def test_other_blocks_have_none(family: str) -> None:
    assert formed(Skeleton(FAMILIES[family](n_layers=2)), 0, 8) is None


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_blocks_of_the_same_form_have_one(family: str) -> None:
    assert formed(Skeleton(FAMILIES[family](n_layers=2)), 0, 8) is not None


def test_a_form_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = Skeleton(tiny_model("llama", 1))
    slopes = module.rms_norm_slopes
    monkeypatch.setattr(
        module, "rms_norm_slopes", lambda *given, **named: tuple(1.01 * one for one in slopes(*given, **named))
    )
    assert formed(skeleton, 0, 8) is None

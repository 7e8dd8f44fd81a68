"""Attention and MLP of a block as units of their own."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError

SEQUENTIAL = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt", "qwen2_moe", "jamba"]


def ids_of(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (batch, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_one_half_after_the_other_is_the_block(family: str) -> None:
    skeleton = Skeleton(FAMILIES[family](n_layers=3))
    sublayers = Sublayers(skeleton)
    assert sublayers.n_units == 6
    context = skeleton.context(ids_of(2, 17))
    with torch.inference_mode():
        hidden = context.embedding
        for layer in range(3):
            middle = sublayers.run(context, 2 * layer, hidden)
            after = sublayers.run(context, 2 * layer + 1, middle)
            assert not torch.equal(middle, hidden)
            assert not torch.equal(after, middle)
            # Experts sum in another order when they are handed other tokens; everything else is exact.
            whole = context.run(layer, hidden)
            torch.testing.assert_close(after, whole, rtol=0, atol=1e-5 if family in ("qwen2_moe", "jamba") else 0)
            hidden = after


@pytest.mark.parametrize(("family", "attn", "mlp"), [("llama", "self_attn", "mlp"), ("opt", "self_attn", "fc2")])
def test_halves_against_the_formula(family: str, attn: str, mlp: str) -> None:
    """x + attention(norm(x)) and y + mlp(norm(y)), from the model's own submodules."""
    skeleton = Skeleton(FAMILIES[family](n_layers=2))
    sublayers = Sublayers(skeleton)
    assert (sublayers.halves[1].attn, sublayers.halves[1].mlp) == (attn, mlp)
    block = skeleton.blocks[1]
    context = skeleton.context(ids_of(1, 16))
    kept: dict[str, torch.Tensor] = {}
    hook = block.get_submodule(attn).register_forward_hook(lambda _, __, out: kept.update(attn=out[0]))
    with torch.inference_mode():
        hidden = context.embedding
        context.run(1, hidden)
        assert torch.equal(sublayers.run(context, 2, hidden), hidden + kept["attn"])
    hook.remove()


def test_attention_is_not_computed_in_the_mlp_half() -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=2))
    sublayers = Sublayers(skeleton)
    context = skeleton.context(ids_of(1, 16))
    called: list[str] = []
    projections = {name: skeleton.blocks[0].get_submodule(name) for name in ("self_attn.q_proj", "mlp.up_proj")}
    for name, module in projections.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    sublayers.run(context, 0, context.embedding)
    sublayers.run(context, 1, context.embedding)
    assert called == ["self_attn.q_proj", "mlp.up_proj"]
    assert all("forward" not in vars(module) for module in skeleton.model.modules())


@pytest.mark.parametrize("family", ["gpt_neox", "mamba"])
def test_blocks_without_two_halves_in_a_row_are_refused(family: str) -> None:
    with pytest.raises(RequestError, match=r"block 0 .* is not an attention followed by an MLP"):
        Sublayers(Skeleton(FAMILIES[family](n_layers=2)))


def test_silencing_parameters_are_the_output_projections() -> None:
    skeleton = Skeleton(FAMILIES["gpt2"](n_layers=2))
    sublayers = Sublayers(skeleton)
    before = {name: value.clone() for name, value in skeleton.model.state_dict().items()}
    assert sublayers.silencing_parameters(2) == ["attn.c_proj.weight", "attn.c_proj.bias"]
    assert sublayers.silencing_parameters(1) == ["mlp.c_proj.weight", "mlp.c_proj.bias"]
    assert all(torch.equal(value, before[name]) for name, value in skeleton.model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_halves_are_found_where_no_bias_tells_a_norm_from_a_half(family: str) -> None:
    """Freshly made models have biases of zero: a silenced norm then silences the half behind it."""
    model = FAMILIES[family](n_layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    sublayers = Sublayers(Skeleton(model))
    assert all("norm" not in half and "ln" not in half for h in sublayers.halves for half in (h.attn, h.mlp))
    assert sublayers.silencing_parameters(1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("layer", [0, 2])
def test_an_attention_of_zeros_is_one_still(family: str, layer: int) -> None:
    """As an export of sublayers writes it: it mixes no tokens, and only what other blocks are like tells it apart."""
    model = FAMILIES[family](n_layers=3)
    plain = Sublayers(Skeleton(model))
    names = plain.silencing_parameters(2 * layer)
    with torch.no_grad():
        for name in names:
            plain.skeleton.blocks[layer].get_parameter(name).zero_()
    skeleton = Skeleton(model)
    sublayers = Sublayers(skeleton)
    assert sublayers.halves == plain.halves
    context = skeleton.context(ids_of(1, 16))
    with torch.inference_mode():
        assert torch.equal(sublayers.run(context, 2 * layer, context.embedding), context.embedding)
    assert sublayers.silencing_parameters(2 * layer) == names

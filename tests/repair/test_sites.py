from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from torch import nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.players import make_players
from layercoop_fast.repair.gains import GainSite, gains_of
from layercoop_fast.repair.patches import applied, patch
from layercoop_fast.repair.sites import find_site


@pytest.mark.parametrize(
    ("family", "players", "unit", "name"),
    [
        ("llama", "layers", 1, "model.layers.1.mlp.down_proj"),
        ("llama", "sublayers", 2, "model.layers.1.self_attn.o_proj"),
        ("llama", "sublayers", 3, "model.layers.1.mlp.down_proj"),
        ("gpt2", "layers", 1, "transformer.h.1.mlp.c_proj"),
        ("gpt2", "sublayers", 2, "transformer.h.1.attn.c_proj"),
        ("opt", "layers", 0, "model.decoder.layers.0.fc2"),
        ("opt", "sublayers", 0, "model.decoder.layers.0.self_attn.out_proj"),  # its MLP's half is fc2 alone, silenced
        ("gpt_neox", "layers", 0, "gpt_neox.layers.0.mlp.dense_4h_to_h"),  # parallel: both maps reach the stream
    ],
)
def test_the_map_is_found_whose_output_is_added_to_the_stream(family: str, players: str, unit: int, name: str) -> None:
    model = FAMILIES[family](n_layers=2)
    site = find_site(make_players(players, Skeleton(model)), unit)
    assert site.name == name
    assert site.module is model.get_submodule(name)
    x = torch.randn(5, site.weight.shape[1])
    expected = x @ site.weight.t() + (0 if site.bias is None else site.bias)
    torch.testing.assert_close(site.module(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "players", "unit", "name", "offset"),
    [
        ("gemma2", "layers", 1, "model.layers.1.post_feedforward_layernorm", 1),
        ("gemma2", "sublayers", 2, "model.layers.1.post_attention_layernorm", 1),
        ("gemma3", "sublayers", 3, "model.layers.1.post_feedforward_layernorm", 1),
        ("olmo2", "layers", 0, "model.layers.0.post_feedforward_layernorm", 0),
    ],
)
def test_where_a_norm_has_the_last_word_it_is_that(
    family: str, players: str, unit: int, name: str, offset: int
) -> None:
    model = tiny_model(family, 2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    site = find_site(make_players(players, Skeleton(model)), unit)
    assert isinstance(site, GainSite)
    assert (site.name, site.offset) == (name, offset)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    width = model.config.hidden_size
    x, change = torch.randn(5, width), torch.randn(width).double()
    returned = site.module(x)
    with applied([patch(site, change)]):
        torch.testing.assert_close(site.module(x), returned * (1 + change.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["granite", "qwen2_moe"])
def test_where_a_factor_or_experts_have_the_last_word_there_is_none(family: str) -> None:
    players = make_players("layers", Skeleton(tiny_model(family, 2)))
    with pytest.raises(RequestError, match="neither a plain linear map nor a norm"):
        find_site(players, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gains_do_not_pass_for_roundings(dtype: torch.dtype) -> None:
    """A norm that hands its output to a map must not be taken for one whose output is the stream's."""
    found = {}
    for family, players, unit in (("granite", "layers", 1), ("gemma2", "sublayers", 0)):
        model = tiny_model(family, 2).to(dtype)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(20)
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.fill_(0.05 - (family == "gemma2"))
        try:
            found[family] = find_site(make_players(players, Skeleton(model)), unit).name
        except RequestError:
            found[family] = "none"
    assert found == {"granite": "none", "gemma2": "model.layers.0.post_attention_layernorm"}


def test_a_module_that_takes_something_else_is_no_norm() -> None:
    class Odd(nn.Module):
        def __init__(self, bias: object = None) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.bias = bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("this takes a pair")

    odd = Odd()
    assert gains_of(odd, 6) is None
    assert gains_of(Odd(bias=False), 6) is None
    assert odd.weight.eq(1).all()


def test_gains_are_those_of_norms_alone() -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.bias)
    assert gains_of(norm, 6) == 0
    assert gains_of(norm, 5) is None
    for other in (nn.Linear(6, 1), nn.PReLU(6), nn.Identity(), nn.Sequential(norm)):
        assert gains_of(other, 6) is None


def test_a_map_is_found_in_bfloat16_too() -> None:
    model = FAMILIES["llama"](n_layers=2).to(torch.bfloat16)
    assert find_site(make_players("layers", Skeleton(model)), 1).name == "model.layers.1.mlp.down_proj"


def test_a_weight_that_two_blocks_share_is_left_alone() -> None:
    model = FAMILIES["llama"](n_layers=3)
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    with pytest.raises(RequestError, match="would change the other"):
        find_site(make_players("layers", Skeleton(model)), 1)

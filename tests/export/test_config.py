"""Rewritten configs attribute by attribute, and which masks have one, against trying every config."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import pruned_model
from layercoop_fast.export.config import (
    ExportableMasks,
    best_exportable,
    exportable,
    layer_count,
    nearest_exportable,
    prune_config,
)
from layercoop_fast.search.base import Allowed
from layercoop_fast.search.constraints import ConstrainedFamily

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

# model_type, arguments of its config, kept layers, attributes afterwards
REWRITTEN: list[tuple[str, dict[str, Any], list[int], dict[str, Any]]] = [
    ("llama", {"num_hidden_layers": 6}, [1, 4], {"num_hidden_layers": 2}),
    ("gpt2", {"n_layer": 6}, [0, 5], {"n_layer": 2, "num_hidden_layers": 2}),
    ("gpt2", {"n_layer": 6, "scale_attn_by_inverse_layer_idx": True}, [5], {"scale_attn_by_inverse_layer_idx": False}),
    (
        "qwen2",
        {"num_hidden_layers": 6, "use_sliding_window": True, "max_window_layers": 3},
        [0, 2, 4],
        {"layer_types": [FULL, FULL, SLIDING], "max_window_layers": 2},
    ),
    ("gemma3_text", {"num_hidden_layers": 7}, [0, 5, 6], {"layer_types": [SLIDING, FULL, SLIDING]}),
    ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1, 1]}, [1, 3], {"no_rope_layers": [0, 1]}),
    ("deepseek_v3", {"num_hidden_layers": 6, "first_k_dense_replace": 3}, [1, 3, 5], {"first_k_dense_replace": 1}),
    (
        "qwen2_moe",
        {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [5]},
        [1, 3, 4, 5],
        {"decoder_sparse_step": 1, "mlp_only_layers": [2, 3]},
    ),
    ("lfm2", {"num_hidden_layers": 5, "full_attn_idxs": [1, 4]}, [0, 4], {"full_attn_idxs": [1]}),
    ("bamba", {"num_hidden_layers": 5, "attn_layer_indices": [1, 4]}, [2, 4], {"layers_block_type": [LINEAR, FULL]}),
    ("llama4_text", {"num_hidden_layers": 6, "interleave_moe_layer_step": 2}, [0, 3, 5], {"moe_layers": [1, 2]}),
    (
        "gpt_neo",
        {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
        [1, 2, 3],
        {"attention_layers": ["local", "global", "local"], "num_layers": 3},
    ),
    ("recurrent_gemma", {"num_hidden_layers": 6}, [2, 3, 5], {"layers_block_type": [SLIDING, LINEAR, SLIDING]}),
    (
        "ernie4_5_moe",
        {"num_hidden_layers": 8, "moe_layer_interval": 2, "moe_layer_start_index": 3},
        [0, 3, 4, 7],
        {"moe_layer_interval": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 3},
    ),
    (
        "jamba",
        {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2},
        [1, 2, 5, 6],
        {"layers_block_type": ["mamba", "attention"] * 2, "layers_num_experts": [16, 1] * 2},
    ),
]


@pytest.mark.parametrize(("model_type", "arguments", "kept", "expected"), REWRITTEN)
def test_attributes_are_rewritten(
    tmp_path: Path, model_type: str, arguments: dict[str, Any], kept: list[int], expected: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(model_type, **arguments)
    before = config.to_json_string()
    prune_config(config, kept).save_pretrained(tmp_path)
    reread = AutoConfig.from_pretrained(tmp_path)  # what counts is what a reader of the file gets
    assert {name: getattr(reread, name) for name in expected} == expected
    assert layer_count(reread) == len(kept)
    assert config.to_json_string() == before, "the original config was changed"


def test_a_composite_config_keeps_its_other_parts() -> None:
    config = AutoConfig.for_model("gemma3", text_config={"num_hidden_layers": 7})
    pruned = prune_config(config, [0, 5])
    assert pruned.text_config.layer_types == [SLIDING, FULL]
    assert pruned.text_config.num_hidden_layers == 2
    assert pruned.vision_config.to_dict() == config.vision_config.to_dict()


def test_dtype_and_quantization_are_left_alone() -> None:
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config = AutoConfig.for_model("llama", num_hidden_layers=4, dtype="bfloat16", quantization_config=quantization)
    pruned = prune_config(config, [1])
    assert pruned.dtype == torch.bfloat16
    assert pruned.quantization_config == quantization


# Families of the wild, at their own size: on the meta device a model costs no memory, and every block is compared.
@pytest.mark.parametrize(
    "model_type",
    [
        "afmoe",
        "bamba",
        "falcon_h1",
        "gpt_neo",
        "granitemoehybrid",
        "lfm2",
        "mamba2",
        "nemotron_h",
        "qwen3_next",
        "zamba",
    ],
)
def test_default_configs_build_the_same_blocks(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    n_layers = layer_count(config)
    mask = np.random.default_rng(0).random(n_layers) < 0.6
    path = next(name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers)
    assert exportable(config, mask) is None
    assert len(pruned_model(model, np.flatnonzero(mask).tolist(), path).get_submodule(path)) == mask.sum()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"jamba"}))
def test_families_without_periods_export_every_mask(family: str) -> None:
    config = FAMILIES[family](n_layers=4).config
    reasons = [exportable(config, np.array(bits)) for bits in product([False, True], repeat=4)]
    assert reasons == ["at least one layer must be kept"] + [None] * 15


def _jamba() -> PretrainedConfig:
    return AutoConfig.for_model(
        "jamba",
        num_hidden_layers=7,
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
    )


def _says(config: PretrainedConfig) -> list[tuple[str, int]]:
    return list(zip(config.layers_block_type, config.layers_num_experts, strict=True))


def _jamba_masks() -> set[tuple[bool, ...]]:
    """The masks of `_jamba` that keep an attention and some Jamba config describes, found by reading every config."""
    config = _jamba()
    original = _says(config)
    described = set()
    pairs = [(p, o) for p in range(1, 9) for o in range(p)]
    for (p, o), (q, r) in product(pairs, pairs):
        # By hand what `_says` reads off a config of that many layers, which would take a minute to build one by one.
        row = [("attention" if i % p == o else "mamba", 2 if i % q == r else 1) for i in range(7)]
        described |= {tuple(row[:k]) for k in range(1, 8)}
    return {
        bits
        for bits in product([False, True], repeat=7)
        if (kinds := _kinds(original, bits)) in described and any(kind == "attention" for kind, _ in kinds)
    }


def _kinds(original: list[tuple[str, int]], bits: tuple[bool, ...]) -> tuple[tuple[str, int], ...]:
    return tuple(kind for kind, kept in zip(original, bits, strict=True) if kept)


def test_periodic_masks_have_a_config_just_where_one_exists() -> None:
    config, wanted = _jamba(), _jamba_masks()
    assert 7 < len(wanted) < 2**7 - 1, "the example tells nothing"
    original = _says(config)
    for bits in product([False, True], repeat=7):
        mask = np.array(bits)
        assert (exportable(config, mask) is None) == (bits in wanted), bits
        if bits in wanted:
            assert tuple(_says(prune_config(config, np.flatnonzero(mask).tolist()))) == _kinds(original, bits)


def test_nearest_and_best_masks_are_those_of_trying_all() -> None:
    config = _jamba()
    wanted = np.array(sorted(_jamba_masks()))
    costs = np.random.default_rng(0).normal(size=7)
    for bits in product([False, True], repeat=7):
        mask = np.array(bits)
        distances = (wanted != mask).sum(axis=1)
        assert (nearest_exportable(config, mask) != mask).sum() == distances.min()
        for count in range(1, 8):
            right = wanted.sum(axis=1) == count
            nearest = nearest_exportable(config, mask, count)
            assert ((nearest != mask).sum(), nearest.sum()) == (distances[right].min(), count)
    for count in range(1, 8):
        right = wanted[wanted.sum(axis=1) == count]
        best = best_exportable(config, costs, count)
        assert best.tolist() == right[((~right) * costs).sum(axis=1).argmin()].tolist()


def test_a_hybrid_keeps_one_attention_and_says_which_is_nearest() -> None:
    """Qwen3.5 lists its kinds, so any mask has a config, but transformers cannot generate beside no attention."""
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    config = AutoConfig.for_model("qwen3_5_text", num_hidden_layers=4, layer_types=kinds)
    for bits in product([False, True], repeat=4):
        assert (exportable(config, np.array(bits)) is None) == (bits[1] or bits[3]), bits
    with pytest.raises(RequestError, match=r"one attention layer of this hybrid must stay.* removes \[0, 3\]"):
        prune_config(config, [0, 2])
    assert best_exportable(config, np.array([5.0, 1.0, 4.0, 2.0]), 2).tolist() == [True, False, False, True]
    # The same where a command is told which layers must go.
    with pytest.raises(
        RequestError,
        match=r"players 1, 3 must go, but one attention layer of this hybrid must stay.* removes \[0, 3\]",
    ):
        ConstrainedFamily(ExportableMasks(config), 4, must_go=[1, 3]).check_size(2)


def _gemma4(n_layers: int = 6) -> PretrainedConfig:
    """Layers with full attention have heads of their own, which transformers holds as configs of single layers."""
    kinds = [SLIDING, SLIDING, FULL, SLIDING, FULL, FULL][:n_layers]
    return AutoConfig.for_model(
        "gemma4_text",
        num_hidden_layers=n_layers,
        layer_types=kinds,
        global_head_dim=64,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        per_layer_config={2: {"head_dim": 64}, 4: {"head_dim": 64}, 5: {"head_dim": 32}, 0: {"head_dim": 16}},
    )


def test_configs_of_single_layers_are_renumbered() -> None:
    full = _gemma4()
    pruned = prune_config(full, [0, 1, 4, 5])
    for config in (pruned, type(full).from_dict(pruned.to_dict())):  # as written, and as read again
        assert config.layer_types == [SLIDING, SLIDING, FULL, FULL]
        assert [layer.head_dim for layer in config.per_layer_config] == [16, 256, 64, 32]
    assert [layer.head_dim for layer in full.per_layer_config] == [16, 256, 64, 256, 64, 32]


def test_the_last_layer_is_one_that_transformers_leaves_as_it_is() -> None:
    config, masks = _gemma4(), [np.array(bits) for bits in product([False, True], repeat=6)]
    right = [mask for mask in masks if mask.any() and np.flatnonzero(mask)[-1] in (2, 4, 5)]
    for mask in masks:
        if mask.any():
            assert (exportable(config, mask) is None) == any(np.array_equal(mask, one) for one in right)
            assert (nearest_exportable(config, mask) != mask).sum() == min((mask != one).sum() for one in right)
    costs = np.array([0.5, -1.0, 3.0, 2.0, 0.25, 4.0])
    for count in range(1, 7):
        best = best_exportable(config, costs, count)
        assert costs[~best].sum() == min(costs[~one].sum() for one in right if one.sum() == count)
    with pytest.raises(RequestError, match=r"the last one kept must be one of \[2, 4, 5\]; the nearest .* removes \["):
        prune_config(config, [0, 1, 3])


def test_an_rwkv_keeps_two_blocks() -> None:
    config = AutoConfig.for_model("rwkv", num_hidden_layers=3, rescale_every=0)
    for bits in product([False, True], repeat=3):
        assert (exportable(config, np.array(bits)) is None) == (sum(bits) >= 2), bits
    with pytest.raises(RequestError, match=r"at least two must be kept; the nearest .* removes \[1\]"):
        prune_config(config, [0])
    assert best_exportable(config, np.zeros(3), 1) is None


def test_a_refusal_names_the_nearest_mask_and_that_one_is_exportable() -> None:
    config = _jamba()
    with pytest.raises(RequestError, match=r"no values of .* the nearest mask .* removes \[") as refusal:
        prune_config(config, [0, 1, 4, 6])
    removed = [int(number) for number in str(refusal.value).rsplit("[", 1)[1].rstrip("]").split(",")]
    assert len(removed) == 3
    prune_config(config, [layer for layer in range(7) if layer not in removed])


def test_without_periods_the_best_mask_removes_the_cheapest_layers() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=5)
    masks: Allowed = ExportableMasks(config)
    best = masks.best(np.array([3.0, 1.0, 1.0, -2.0, 1.0]), 3)
    assert best is not None
    assert best.tolist() == [True, False, True, False, True]
    assert masks.check(best) is None


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [("gemma3n_text", {}), ("rwkv", {}), ("diffllama", {}), ("llama", {"num_hidden_layers": 4, "my_layers": [1, 2]})],
)
def test_models_whose_layers_depend_on_each_other_are_exported_whole_or_not(
    model_type: str, arguments: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(model_type, **arguments)
    full = np.ones(layer_count(config), np.bool_)
    mask = full.copy()
    mask[1] = False
    why = exportable(config, mask)
    assert why is not None
    assert "\n" not in why
    assert exportable(config, full) is None
    assert nearest_exportable(config, mask).all()
    assert nearest_exportable(config, mask, int(mask.sum())) is None
    with pytest.raises(RequestError, match="removes none"):
        prune_config(config, np.flatnonzero(mask).tolist())


@pytest.mark.parametrize("kept", [[], [1, 1], [2, 1], [-1, 2], [0, 6]])
def test_malformed_kept_layers_are_refused(kept: list[int]) -> None:
    with pytest.raises(RequestError, match="kept"):
        prune_config(AutoConfig.for_model("llama", num_hidden_layers=6), kept)


def test_malformed_arrays_are_refused() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=3)
    with pytest.raises(RequestError, match=r"mask must be bool\[3\], one element per layer, got bool\[4\]"):
        exportable(config, np.ones(4, np.bool_))
    with pytest.raises(RequestError, match=r"mask must be bool\[3\].* got int64\[3\]"):
        nearest_exportable(config, np.ones(3, np.int64))
    with pytest.raises(RequestError, match=r"costs must be finite, 1 of 3 are not"):
        best_exportable(config, np.array([1.0, np.nan, 0.0]), 2)
    with pytest.raises(RequestError, match="from 1 to 3, got 0"):
        best_exportable(config, np.zeros(3), 0)

"""What vLLM and SGLang would refuse or misread in a config, against configs as `prune_config` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_configs import CORE, MORE
from transformers import AutoConfig

from layercoop_fast.errors import RequestError
from layercoop_fast.export.config import nearest_exportable, prune_config
from layercoop_fast.export.hosts import SOURCES, host_problems

ARCHITECTURES = {"architectures": ["SomeForCausalLM"]}


def config_of(model_type: str, n_layers: int, **more: Any) -> Any:
    arguments = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}
    return AutoConfig.for_model(model_type, **{**arguments, **ARCHITECTURES, **more, "num_hidden_layers": n_layers})


def said(model_type: str, n_layers: int, kept: list[int], **more: Any) -> list[tuple[str, str, bool]]:
    full = config_of(model_type, n_layers, **more)
    found = host_problems(prune_config(full, kept).to_dict(), full.to_dict())
    return [(one.host, one.problem, one.inherited) for one in found]


def test_a_plain_llama_has_nothing() -> None:
    assert said("llama", 6, [0, 2, 5]) == []


def test_a_second_layer_without_its_window_is_told_of_the_host_that_counts() -> None:
    assert said("gemma2", 6, [0, 1, 4, 5]) == []  # still one with a window, one without, in turn
    ((host, problem, inherited),) = said("gemma2", 6, [0, 1, 3, 4, 5])
    assert (host, inherited) == ("SGLang", False)
    assert "layer 2 has `full_attention`" in problem
    ((host, problem, _),) = said("gpt_oss", 6, [1, 2, 3])
    assert host == "vLLM"
    assert "layer 0 has `full_attention`" in problem


def test_what_the_full_model_has_too_is_said_to_be_inherited() -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert [(host, inherited) for host, _, inherited in said("qwen2", 6, [0, 1, 4, 5], **window)] == [("vLLM", True)]
    # Without the layers that have a window, vLLM takes it.
    assert said("qwen2", 6, [0, 1, 2], **window) == []


def test_experts_that_a_step_no_longer_finds() -> None:
    more = {"moe_layers": [1, 3, 5, 7], "interleave_moe_layer_step": 2, "intermediate_size_mlp": 48}
    try:
        found = said("llama4_text", 8, [0, 2, 3, 4, 5, 6, 7], **more)
    except RequestError:
        pytest.fail("a llama 4 can lose a layer")
    assert {host for host, problem, _ in found if "interleave_moe_layer_step 2" in problem} == {"vLLM", "SGLang"}
    assert any(host == "SGLang" and "every fourth layer" in problem for host, problem, _ in found)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"architectures": None}, "`architectures` is missing"),
        ({"layer_types": ["full_attention"] * 7}, "`layer_types` has 7 elements for 6 layers"),
        ({"no_rope_layers": [1, 1]}, "`no_rope_layers` has 2 elements for 6 layers"),
        ({"mlp_only_layers": [0, 6]}, "`mlp_only_layers` names layer 6, and the last one is 5"),
        ({"first_k_dense_replace": 7}, "`first_k_dense_replace` is 7, and the model has 6 layers"),
        ({"num_hidden_layers": None}, "no number of layers"),
    ],
)
def test_fields_that_disagree_are_told_of_both(changed: dict[str, Any], problem: str) -> None:
    full = config_of("llama", 6).to_dict()
    for config in ({**full, **changed}, {**ARCHITECTURES, **changed, "text_config": {**full, **changed}}):
        found = host_problems(config, full)
        assert [one.host for one in found] == ["vLLM", "SGLang"]
        assert all(problem in one.problem and not one.inherited for one in found)


@pytest.mark.parametrize("family", sorted({**CORE, **MORE}))
def test_what_is_exported_agrees_with_itself(family: str) -> None:
    """Of every family: a config that lost a layer, where it can, has no field of another length."""
    model_type, arguments = {**CORE, **MORE}[family]
    full = AutoConfig.for_model(model_type, **{**arguments, **ARCHITECTURES, "num_hidden_layers": 6})
    mask = nearest_exportable(full, np.arange(6) != 2, 5)
    pruned = full if mask is None else prune_config(full, np.flatnonzero(mask).tolist())
    fields = [one.problem for one in host_problems(pruned.to_dict()) if one.problem.startswith(("`", "no number"))]
    assert fields == []


def test_every_rule_says_where_it_was_read() -> None:
    from layercoop_fast.export.hosts import _RULES

    assert {source for _, source, _ in _RULES} <= SOURCES.keys()

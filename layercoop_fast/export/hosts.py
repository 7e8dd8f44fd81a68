"""What vLLM and SGLang would refuse or misread in the config of a checkpoint. Imports no torch.

Both build their models by code of their own from `config.json`. Some of it derives a layer's kind from its number and
not from the list in the config, which holds for the published models and no longer for a pruned one. Each rule below
was written after the host's code (named in `SOURCES`); neither host is installed to be asked. A checkpoint without a
finding is one whose layer-indexed fields agree with themselves and with these rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layercoop_fast.export.config import COUNTS, INDICES, LISTS, PREFIXES

Config = Mapping[str, Any]

SOURCES = {
    "all": "vllm/model_executor/models/registry.py, python/sglang/srt/models/registry.py: chosen by `architectures`",
    "vLLM qwen2": "vllm/model_executor/models/qwen2.py:Qwen2Model, transformers_utils/config.py:is_interleaved",
    "vLLM gpt_oss": "vllm/model_executor/models/gpt_oss.py: sliding_window where layer_idx % 2 == 0",
    "vLLM llama4": "vllm/model_executor/models/llama4.py: experts by interleave_moe_layer_step",
    "SGLang gemma2": "python/sglang/srt/models/gemma2.py: sliding window where layer_id % 2 == 0",
    "SGLang llama4": "python/sglang/srt/models/llama4.py:Llama4DecoderLayer._is_moe_layer",
    "SGLang llama4 attention": "python/sglang/srt/models/llama4.py: no rotary positions where (layer_id + 1) % 4 == 0",
}
"""Where each rule was read. vLLM and SGLang of 2026."""

HOSTS = ("vLLM", "SGLang")


@dataclass(frozen=True)
class Problem:
    """What a host does with a config.

    Attributes:
        host: "vLLM" or "SGLang".
        problem: what it refuses, or what it would take the model for.
        inherited: whether the config of the full model has the same problem.
    """

    host: str
    problem: str
    inherited: bool = False


def host_problems(config: Config, full: Config | None = None) -> list[Problem]:
    """What the hosts would refuse or misread in a config.

    Args:
        config: content of `config.json` (`PretrainedConfig.to_dict()`).
        full: that of the full model, to tell what pruning brought about from what was there before.
    """
    before = set() if full is None else {(host, rule) for host, rule, _ in _by_rule(full)}
    return [Problem(host, problem, (host, rule) in before) for host, rule, problem in _by_rule(config)]


def _by_rule(config: Config) -> list[tuple[str, str, str]]:
    """(host, name of the rule, problem)."""
    text = text_part(config)
    found = [(host, name, problem) for name, problem in _inconsistent(config, text) for host in HOSTS]
    for host, name, rule in _RULES:
        if problem := rule(text):
            found.append((host, name, problem))
    return found


def text_part(config: Config) -> Config:
    """The part of a config about the language model."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) else config


def _inconsistent(config: Config, text: Config) -> list[tuple[str, str]]:
    """(field, problem) of fields that both hosts index by the number of a layer."""
    found = []
    if not config.get("architectures"):
        found.append(("architectures", "`architectures` is missing, by which it chooses the model's code"))
    n_layers = next((text[name] for name in COUNTS if isinstance(text.get(name), int)), None)
    if n_layers is None:
        return [*found, ("count", "no number of layers is stated")]
    for name in LISTS:
        value = text.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str):
            continue
        # transformers, which both ask first, takes no other number of kinds; of other lists it reads the start.
        if len(value) < n_layers or (name == "layer_types" and len(value) != n_layers):
            found.append((name, f"`{name}` has {len(value)} elements for {n_layers} layers"))
    for name in INDICES:
        value = text.get(name)
        if isinstance(value, Sequence) and any(isinstance(each, int) and each >= n_layers for each in value):
            found.append((name, f"`{name}` names layer {max(value)}, and the last one is {n_layers - 1}"))
    for name in PREFIXES:
        value = text.get(name)
        if name != "max_window_layers" and isinstance(value, int) and value > n_layers:
            found.append((name, f"`{name}` is {value}, and the model has {n_layers} layers"))
    return found


def _layer_kinds(text: Config) -> list[str]:
    return [str(kind) for kind in text.get("layer_types") or []]


def _differing(kinds: Sequence[str], wanted: Callable[[int], str]) -> int | None:
    """The first layer whose kind is not the one that a host derives from its number."""
    return next((layer for layer, kind in enumerate(kinds) if kind != wanted(layer)), None)


def _mixed_windows(text: Config) -> str | None:
    if text.get("model_type") != "qwen2" or len(set(_layer_kinds(text))) < 2:
        return None
    if text.get("max_window_layers") == text.get("num_hidden_layers"):
        return None
    return "it refuses a Qwen2 with a sliding window in some layers and not in others"


def _alternating(model_type: str) -> Callable[[Config], str | None]:
    def rule(text: Config) -> str | None:
        if not str(text.get("model_type")).startswith(model_type):
            return None
        layer = _differing(_layer_kinds(text), lambda i: "full_attention" if i % 2 else "sliding_attention")
        if layer is None:
            return None
        kind = _layer_kinds(text)[layer]
        return (
            f"it takes every second layer of a {model_type} for one with a sliding window, by its number alone, and "
            f"layer {layer} has `{kind}`: texts longer than the window would be read otherwise"
        )

    return rule


def _experts_by_step(text: Config) -> str | None:
    step, experts = text.get("interleave_moe_layer_step"), text.get("moe_layers")
    if not str(text.get("model_type")).startswith("llama4") or not isinstance(step, int) or experts is None:
        return None
    derived = [layer for layer in range(text["num_hidden_layers"]) if step > 0 and (layer + 1) % step == 0]
    if list(experts) == derived:
        return None
    return (
        f"it finds the layers of a Llama 4 with experts by interleave_moe_layer_step {step}, which gives {derived}, "
        f"and they are {list(experts)}: the weights would not fit"
    )


def _full_every_fourth(text: Config) -> str | None:
    if not str(text.get("model_type")).startswith("llama4"):
        return None
    layer = _differing(_layer_kinds(text), lambda i: "chunked_attention" if (i + 1) % 4 else "full_attention")
    if layer is None:
        return None
    return (
        f"it takes every fourth layer of a Llama 4 for one with full attention, and layer {layer} has "
        f"`{_layer_kinds(text)[layer]}`"
    )


_RULES: tuple[tuple[str, str, Callable[[Config], str | None]], ...] = (
    ("vLLM", "vLLM qwen2", _mixed_windows),
    ("vLLM", "vLLM gpt_oss", _alternating("gpt_oss")),
    ("vLLM", "vLLM llama4", _experts_by_step),
    ("SGLang", "SGLang gemma2", _alternating("gemma2")),
    ("SGLang", "SGLang llama4", _experts_by_step),
    ("SGLang", "SGLang llama4 attention", _full_every_fourth),
)
"""Host, the entry of `SOURCES`, and a function from the text part of a config to the problem, None without one."""

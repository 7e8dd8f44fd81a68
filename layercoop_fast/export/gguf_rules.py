"""Which architectures of GGUF files can lose blocks, and how their metadata says so afterwards. Free of torch.

llama.cpp decides much by an architecture's name and a block's number, without the file saying it. So architectures are
listed here one by one, after llama.cpp's own loading code; what is not listed is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.gguf_file import Value
from layercoop_fast.export.patterns import Layouts, Rule, cheapest_mask

# fmt: off
_UNIFORM = frozenset({
    "arcee", "arctic", "bitnet", "bloom", "chatglm", "codeshell", "command-r", "dbrx", "deci", "exaone", "falcon",
    "gemma", "gpt2", "gptneox", "granite", "granitemoe", "hunyuan-dense", "hunyuan-moe", "internlm2", "jais", "jamba",
    "lfm2", "llada", "llama", "mamba", "mamba2", "minimax-m2", "mistral3", "mpt", "nemotron", "olmo", "olmoe",
    "openelm", "orion", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen3moe", "refact", "seed_oss", "stablelm", "starcoder", "starcoder2", "xverse",
})
# fmt: on
"""Blocks are alike, or told apart by their tensors and by arrays in the file (Jamba: key-value heads, 0 for Mamba)."""

_LEADING = frozenset({"deepseek", "deepseek2", "dots1"})
"""The first `leading_dense_block_count` blocks are dense, the others mixtures of experts."""

_PERIODS = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4, "smollm3": 4}
"""Every so many-th block attends to everything (SmolLM3: without rotary positions), whatever the file says."""

_TELLING_COUNTS = {
    "deepseek2": ({26, 27, 47, 48}, "other tensors"),
    "gemma2": ({46}, "another attention scale"),
    "gemma3": ({62}, "another attention scale"),
}
"""Numbers of blocks by which llama.cpp tells a particular model of a family."""

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_LEADING_COUNT = "leading_dense_block_count"
_PER_BLOCK = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.recurrent_layers",
        "attention.rope_pattern",
        _PATTERN,
        "expert_feed_forward_length",
        "expert_used_count",
        "feed_forward_length",
    }
)
"""One entry a block, where the value is an array at all."""

OF_THE_WHOLE = frozenset({"classifier.output_labels", "rope.dimension_sections"})
"""Arrays that have nothing to do with blocks."""

COUPLED = {
    "attention.shared_kv_layers": "blocks use the keys and values of other blocks",
    "deepstack_mapping": "blocks take in features of an image by their number",
    "full_attention_interval": "the kind of a block follows from its number",
    "interleave_moe_layer_step": "the kind of a block follows from its number",
    "moe_every_n_layers": "the kind of a block follows from its number",
    "n_deepstack_layers": "blocks take in features of an image by their number",
    "nextn_predict_layers": "the last blocks predict further tokens",
    "num_loops": "blocks run more than once",
    "rescale_every_n_layers": "the stream is rescaled every few blocks",
}
"""Keys that, where they are not 0, tie blocks to each other or to their place."""


MAX_BLOCKS = 4096
"""Blocks of a model; llama.cpp itself reads 512 at most."""


def rewritten(values: dict[str, Value], kept: Sequence[int]) -> dict[str, Value]:
    """Return a file's key-values as they must be with only the blocks `kept` (ascending numbers).

    Raises `RequestError` where llama.cpp would take a kept block for another kind than it is.
    """
    name = architecture(values)
    n_blocks = block_count(values)
    if len(kept) == n_blocks:
        return dict(values)
    _check(values, name, n_blocks, kept)
    changed: dict[str, Value] = {}
    for key, value in values.items():
        short = key.removeprefix(f"{name}.")
        if short == key:
            changed[key] = value
        elif short == "block_count":
            changed[key] = Value.of_number(len(kept), value.kind)
        elif short == _LEADING_COUNT:
            changed[key] = Value.of_number(sum(block < _number(value, key) for block in kept), value.kind)
        elif short in _PER_BLOCK and (each := _each(value, key, n_blocks)) is not None:
            changed[key] = Value.of_numbers([each[block] for block in kept], _element_kind(value))
        elif value.element_kind is not None and short not in OF_THE_WHOLE:
            raise RequestError(f"the file has an array {key!r}, which no rule here knows how to cut")
        else:
            changed[key] = value
    if name == "deci" and (heads := per_block(changed, "attention.head_count", len(kept))) and heads[0] == 0:
        raise RequestError("llama.cpp reads the size of a head from the first block, which would have no attention")
    return changed


def architecture(values: dict[str, Value]) -> str:
    """The name llama.cpp knows the architecture by."""
    name = values["general.architecture"].scalar() if "general.architecture" in values else None
    if not isinstance(name, str):
        raise RequestError("the file does not say its general.architecture")
    return name


def block_count(values: dict[str, Value]) -> int:
    """How many blocks the model has."""
    key = f"{architecture(values)}.block_count"
    if key not in values:
        raise RequestError(f"the file does not say its {key}: it holds no language model")
    count = _number(values[key], key)
    if not 1 <= count <= MAX_BLOCKS:
        raise RequestError(f"{key} is {count}: models of 1 to {MAX_BLOCKS:,} blocks are cut")
    return count


def per_block(values: dict[str, Value], short: str, n_blocks: int) -> list[int] | None:
    """The numbers of a key, one a block; the same for all where the file has one number; None where it has none."""
    value = values.get(f"{architecture(values)}.{short}")
    if value is None:
        return None
    each = _each(value, short, n_blocks)
    found = [_number(value, short)] * n_blocks if each is None else list(each[:n_blocks])
    whole = [number for number in found if type(number) is int and 0 <= number < 2**31]
    if len(whole) < n_blocks:
        raise RequestError(f"{short} has entries that are no counts")
    return whole


def _each(value: Value, key: str, n_blocks: int) -> tuple[float, ...] | None:
    """The numbers of an array, at least one a block; None where the value is no array of numbers."""
    if value.element_kind is not None and not n_blocks <= value.n_elements <= MAX_BLOCKS:
        raise RequestError(f"{key} has {value.n_elements} entries for {n_blocks} blocks")
    return value.numbers()


def _check(values: dict[str, Value], name: str, n_blocks: int, kept: Sequence[int]) -> None:
    if name not in _UNIFORM and name not in _LEADING and name not in _PERIODS:
        raise RequestError(
            f"blocks of the architecture {name!r} may depend on their place in the model in ways that are not known "
            "here: cut the Hugging Face checkpoint with `prune` and convert that"
        )
    for short, meaning in COUPLED.items():
        value = values.get(f"{name}.{short}")
        if value is not None and (value.element_kind is not None or value.scalar()):
            raise RequestError(f"this model can be had as a whole only: {meaning} ({name}.{short})")
    counts, what = _TELLING_COUNTS.get(name, (set(), ""))
    if telling := counts & {n_blocks, len(kept)}:
        raise RequestError(
            f"from {n_blocks} blocks to {len(kept)}: llama.cpp expects {what} of a {name} of exactly {min(telling)}"
        )
    period = _period(values, name)
    if period is None:
        return
    kinds = np.arange(n_blocks) % period == period - 1
    rule = Rule(kinds, Layouts((), ((),), kinds[None]))
    if rule.numbers_for(np.array(kept, np.intp)) is not None:
        return
    mask = np.isin(np.arange(n_blocks), kept)
    nearest = cheapest_mask([rule], (~mask).astype(np.float64), mask.astype(np.float64), len(kept))
    advice = (
        "" if nearest is None else f"; the nearest cut as large that fits removes {np.flatnonzero(~nearest).tolist()}"
    )
    raise RequestError(
        f"llama.cpp takes one block in {period} of a {name} for another kind, by its number alone, and the kept blocks "
        f"would not fall into place{advice}"
    )


def _period(values: dict[str, Value], name: str) -> int | None:
    """After how many blocks the kinds repeat, where llama.cpp goes by the number; None where blocks are alike."""
    if name not in _PERIODS:
        return None
    if name in ("gemma3", "olmo2") and f"{name}.{_WINDOW}" not in values:
        return None
    pattern = values.get(f"{name}.{_PATTERN}")
    if pattern is not None and pattern.element_kind is None:
        return min(max(1, _number(pattern, _PATTERN)), MAX_BLOCKS + 1)
    # Older versions of llama.cpp do not read a list of the kinds, so the kinds must fit without it.
    return _PERIODS[name]


def _number(value: Value, key: str) -> int:
    number = value.scalar()
    if type(number) is not int:
        raise RequestError(f"{key} is {number!r}, which is no whole number")
    return number


def _element_kind(value: Value) -> int:
    kind = value.element_kind
    assert kind is not None
    return kind

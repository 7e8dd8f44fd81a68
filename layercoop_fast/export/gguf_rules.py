"""The architectures of GGUF files that can lose blocks, and their metadata afterwards. Imports no torch.

llama.cpp derives much from an architecture's name and a block's number that the file does not state. So architectures
are listed here one by one, after llama.cpp's own loading code; others are refused.
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
"""Blocks are equal, or differ by their tensors and by arrays in the file (Jamba: key-value heads, 0 for Mamba)."""

_LEADING = frozenset({"deepseek", "deepseek2", "dots1", "lfm2moe"})
"""The first `leading_dense_block_count` blocks are dense, the others mixtures of experts."""

_LISTED = frozenset({"gemma4", "granite-swa"})
"""An array in the file says which blocks have a sliding window, and llama.cpp does not open a file without it."""

_PERIODS = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4, "smollm3": 4}
"""Every N-th block has full attention (SmolLM3: no rotary positions), whatever the file says."""

_TELLING_COUNTS = {
    "deepseek2": ({26, 27, 47, 48}, "other tensors"),
    "gemma2": ({46}, "another attention scale"),
    "gemma3": ({62}, "another attention scale"),
}
"""Numbers of blocks by which llama.cpp recognises a particular model of a family, and what it then expects."""

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
"""Keys with one element per block, where the value is an array."""

OF_THE_WHOLE = frozenset({"classifier.output_labels", "rope.dimension_sections"})
"""Keys of arrays that do not depend on blocks."""

COUPLED = {
    "embedding_length_per_layer_input": "one tensor holds a part for each block",
    "attention.shared_kv_layers": "blocks use the keys and values of other blocks",
    "deepstack_mapping": "blocks get features of an image by their number",
    "full_attention_interval": "the kind of a block follows from its number",
    "interleave_moe_layer_step": "the kind of a block follows from its number",
    "moe_every_n_layers": "the kind of a block follows from its number",
    "n_deepstack_layers": "blocks get features of an image by their number",
    "nextn_predict_layers": "the last blocks predict further tokens",
    "num_loops": "blocks run more than once",
    "rescale_every_n_layers": "the stream is rescaled every few blocks",
}
"""Keys that, where they are not 0, make blocks depend on each other or on their place."""

MAX_BLOCKS = 4096
"""Most blocks of a model; llama.cpp itself reads at most 512."""


def rewritten(values: dict[str, Value], kept: Sequence[int]) -> dict[str, Value]:
    """Return a file's key-values rewritten for the blocks `kept` (ascending numbers).

    Raises `RequestError` where llama.cpp would take a kept block for one of another kind.
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
            raise RequestError(f"the file has an array {key!r}, which is unknown and cannot be cut")
        else:
            changed[key] = value
    if name == "deci" and (heads := per_block(changed, "attention.head_count", len(kept))) and heads[0] == 0:
        raise RequestError("llama.cpp reads the size of a head from the first block, which would have no attention")
    return changed


def architecture(values: dict[str, Value]) -> str:
    """The name of the architecture in llama.cpp."""
    name = values["general.architecture"].scalar() if "general.architecture" in values else None
    if not isinstance(name, str):
        raise RequestError("the file lacks the key general.architecture")
    return name


def block_count(values: dict[str, Value]) -> int:
    """Number of blocks of the model."""
    key = f"{architecture(values)}.block_count"
    if key not in values:
        raise RequestError(f"the file lacks the key {key}: it holds no language model")
    count = _number(values[key], key)
    if not 1 <= count <= MAX_BLOCKS:
        raise RequestError(f"{key} is {count}: models of 1 to {MAX_BLOCKS:,} blocks are cut")
    return count


def per_block(values: dict[str, Value], short: str, n_blocks: int) -> list[int] | None:
    """The number of a key for each block; the same for all where the file has one number; None where it has none."""
    value = values.get(f"{architecture(values)}.{short}")
    if value is None:
        return None
    each = _each(value, short, n_blocks)
    found = [_number(value, short)] * n_blocks if each is None else list(each[:n_blocks])
    whole = [number for number in found if type(number) is int and 0 <= number < 2**31]
    if len(whole) < n_blocks:
        raise RequestError(f"{short} has elements that are not counts")
    return whole


def _each(value: Value, key: str, n_blocks: int) -> tuple[float, ...] | None:
    """The numbers of an array, at least one per block; None where the value is not an array of numbers."""
    if value.element_kind is not None and not n_blocks <= value.n_elements <= MAX_BLOCKS:
        raise RequestError(f"{key} has {value.n_elements} elements for {n_blocks} blocks")
    return value.numbers()


def _check(values: dict[str, Value], name: str, n_blocks: int, kept: Sequence[int]) -> None:
    if not any(name in known for known in (_UNIFORM, _LEADING, _LISTED, _PERIODS)):
        raise RequestError(
            f"blocks of the architecture {name!r} may depend on their place in the model in unknown ways: remove "
            "blocks from the Hugging Face checkpoint with `prune`, and convert the result"
        )
    for short, meaning in COUPLED.items():
        value = values.get(f"{name}.{short}")
        if value is not None and (value.element_kind is not None or value.scalar()):
            raise RequestError(f"no block of this model can be removed: {meaning} ({name}.{short})")
    counts, what = _TELLING_COUNTS.get(name, (set(), ""))
    if telling := counts & {n_blocks, len(kept)}:
        raise RequestError(
            f"from {n_blocks} blocks to {len(kept)}: llama.cpp expects {what} in a {name} of exactly {min(telling)}"
        )
    _check_kinds(values, name, n_blocks, kept)
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
        "" if nearest is None else f"; the nearest possible removal of this size is {np.flatnonzero(~nearest).tolist()}"
    )
    raise RequestError(
        f"llama.cpp treats one block in {period} of a {name} as another kind, by its number alone, and the kept "
        f"blocks would get wrong numbers{advice}"
    )


def _check_kinds(values: dict[str, Value], name: str, n_blocks: int, kept: Sequence[int]) -> None:
    """Raise `RequestError` where no block of a kind is left that the program cannot do without."""
    kv_heads = per_block(values, "attention.head_count_kv", n_blocks) or []
    if any(kv_heads) and not any(kv_heads[block] for block in kept):
        raise RequestError("one block with attention must stay: readers of the file take the size of its heads from it")
    if name not in _LISTED:
        return
    key = f"{name}.{_PATTERN}"
    windows = _each(values[key], key, n_blocks) if key in values else None
    if windows is None:
        raise RequestError(f"the file lacks the array {key}, which says which blocks of a {name} have a sliding window")
    # The frequencies of rotary positions belong to blocks with full attention: without any, the tensor has no reader.
    if not all(windows[:n_blocks]) and all(windows[block] for block in kept):
        raise RequestError(f"one block of a {name} with full attention must stay: llama.cpp does not open it without")


def _period(values: dict[str, Value], name: str) -> int | None:
    """The number of blocks after which the kinds repeat, where they depend on the number; None where they do not."""
    if name not in _PERIODS:
        return None
    if name in ("gemma3", "olmo2") and f"{name}.{_WINDOW}" not in values:
        return None
    pattern = values.get(f"{name}.{_PATTERN}")
    if pattern is not None and pattern.element_kind is None:
        return min(max(1, _number(pattern, _PATTERN)), MAX_BLOCKS + 1)
    # Older versions of llama.cpp ignore a list of the kinds, so the kinds must fit without it.
    return _PERIODS[name]


def _number(value: Value, key: str) -> int:
    number = value.scalar()
    if type(number) is not int:
        raise RequestError(f"{key} is {number!r}, which is not an integer")
    return number


def _element_kind(value: Value) -> int:
    kind = value.element_kind
    assert kind is not None
    return kind

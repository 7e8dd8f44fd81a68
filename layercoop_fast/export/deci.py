"""Blocks without one of their halves in GGUF files: the architecture `deci` of llama.cpp.

After a removal, a llama is a sequence of halves, in which attention and MLP may not alternate. A written block is an
attention half and the MLP half after it, even if these come from different blocks: the number of a block does not
matter. So removing 12.mlp and 13.attn gives one plain block fewer; only where two halves of one kind follow each other
does a block with one half arise. For those, `deci` has numbers of heads and widths of the MLP for each block:

* no attention: `head_count` 0, and no tensors of that half. In the first block, from which llama.cpp derives the size
  of a head, it is a "linear" attention instead (`head_count_kv` 0: one square map) of zeros.
* no MLP: llama.cpp would skip a whole block with an MLP of width 0, its attention included. So it is an MLP of width 32
  of zeros.

Both are from llama.cpp's code for `deci`. These placeholders add exactly 0 to the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from layercoop_fast.errors import RequestError
from layercoop_fast.export.gguf_file import F16, F32, INT32, Q4_0, GGUFTensor, Value, zeros
from layercoop_fast.export.gguf_rules import COUPLED, OF_THE_WHOLE, per_block

ATTENTION, MLP = "attn", "mlp"
_PLACEHOLDER_WIDTH = 32
_OF_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)
_HEADS, _KV_HEADS, _WIDTH = "attention.head_count", "attention.head_count_kv", "feed_forward_length"
_TENSORS = frozenset(
    f"{name}.{kind}"
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for kind in ("weight", "bias")
) | {"attn_norm.weight", "ffn_norm.weight"}
"""The tensors that llama.cpp reads for a block of `deci`; it would silently ignore any other."""


@dataclass(frozen=True)
class Block:
    """A block to write: the numbers of the blocks that its halves come from, None for a missing half."""

    attention: int | None
    mlp: int | None

    @property
    def is_original(self) -> bool:
        """Whether it is a complete block of the original."""
        return self.attention == self.mlp


def joined(n_blocks: int, removed: frozenset[tuple[int, str]]) -> list[Block]:
    """Join the remaining halves, in their order, to as few blocks as possible."""
    blocks: list[Block] = []
    for number in range(n_blocks):
        if (number, ATTENTION) not in removed:
            blocks.append(Block(number, None))
        if (number, MLP) not in removed:
            if blocks and blocks[-1].mlp is None:
                blocks[-1] = replace(blocks[-1], mlp=number)
            else:
                blocks.append(Block(None, number))
    return blocks


def renamed(tensors: Sequence[GGUFTensor], blocks: Sequence[Block], n_blocks: int) -> list[GGUFTensor]:
    """The tensors of these blocks under their new names, and all outside the blocks.

    Raises `RequestError` for a tensor of a block that is not one of `n_blocks`.
    """
    new_of = {(block.attention, ATTENTION): new for new, block in enumerate(blocks)}
    new_of |= {(block.mlp, MLP): new for new, block in enumerate(blocks)}
    originals = all(block.is_original for block in blocks)
    left = []
    for tensor in tensors:
        if not tensor.name.startswith("blk."):
            left.append(tensor)
            continue
        match = _OF_BLOCK.fullmatch(tensor.name)
        if match is None or int(match[1]) >= n_blocks:
            raise RequestError(f"the file has a tensor {tensor.name!r}, which belongs to none of its {n_blocks} blocks")
        part = MLP if match[2].startswith("ffn_") else ATTENTION
        if not originals and not match[2].startswith(("attn_", "ffn_")):
            raise RequestError(f"{tensor.name} belongs to neither half of its block, so halves cannot be removed")
        new = new_of.get((int(match[1]), part))
        if new is not None:
            left.append(replace(tensor, name=f"blk.{new}.{match[2]}"))
    return left


def halved(
    values: dict[str, Value], tensors: Sequence[GGUFTensor], blocks: Sequence[Block], n_blocks: int, most_bytes: int
) -> tuple[dict[str, Value], list[GGUFTensor]]:
    """Return key-values and tensors of the given blocks: of architecture `llama` where possible, else `deci`.

    Args:
        values: key-values of a `llama` of `n_blocks` blocks.
        tensors: those of `renamed`.
        blocks: to write.
        n_blocks: of the original.
        most_bytes: of all placeholders.

    Raises `RequestError` for a model that neither architecture can describe.
    """
    heads, kv_heads, widths = (per_block(values, short, n_blocks) for short in (_HEADS, _KV_HEADS, _WIDTH))
    if heads is None or widths is None:
        raise RequestError(f"the file lacks the key llama.{_HEADS} or llama.{_WIDTH}")
    kv_heads = heads if kv_heads is None else kv_heads
    for short in COUPLED:
        if f"llama.{short}" in values:
            raise RequestError(f"halves cannot be removed from a model with the key llama.{short}")
    whole = all(block.attention is not None and block.mlp is not None for block in blocks)
    name = "llama" if whole and not any(len(set(each)) > 1 for each in (heads, kv_heads, widths)) else "deci"
    changed: dict[str, Value] = {}
    for key, value in values.items():
        short = key.removeprefix("llama.")
        if short != key and value.element_kind is not None and short not in {_HEADS, _KV_HEADS, _WIDTH, *OF_THE_WHOLE}:
            raise RequestError(f"the file has an array {key!r}, which is unknown and cannot be cut")
        changed[key if short == key else f"{name}.{short}"] = value
    changed["general.architecture"] = Value.of_string(name)
    count = changed[f"{name}.block_count"]
    changed[f"{name}.block_count"] = Value.of_number(len(blocks), count.kind)
    if name == "llama":
        return changed, list(tensors)
    for tensor in tensors:
        if (match := _OF_BLOCK.fullmatch(tensor.name)) and match[2] not in _TENSORS:
            raise RequestError(f"blocks with one half are written as the architecture deci, which has no {match[2]}")
    for short, each, part in ((_HEADS, heads, ATTENTION), (_KV_HEADS, kv_heads, ATTENTION), (_WIDTH, widths, MLP)):
        sources = [block.attention if part == ATTENTION else block.mlp for block in blocks]
        placeholder = _PLACEHOLDER_WIDTH if short == _WIDTH else 0
        numbers = [placeholder if source is None else each[source] for source in sources]
        if short == _HEADS and sources[0] is None:
            numbers[0] = heads[0]
        changed[f"{name}.{short}"] = Value.of_numbers(numbers, INT32)
    made = _placeholders(blocks, _hidden_size(changed))
    # In a valid file they are smaller than the halves that they replace.
    if sum(tensor.n_bytes for tensor in made) > most_bytes:
        raise RequestError(
            f"the file is damaged: it is too small for its llama.embedding_length of {_hidden_size(changed)}"
        )
    return changed, [*tensors, *made]


def _placeholders(blocks: Sequence[Block], hidden: int) -> list[GGUFTensor]:
    """Tensors of zeros for missing halves that llama.cpp requires."""
    kind = Q4_0 if hidden % 32 == 0 else F16
    made = []
    if blocks[0].attention is None:
        made += [
            zeros("blk.0.attn_norm.weight", (hidden,), F32),
            zeros("blk.0.attn_output.weight", (hidden, hidden), kind),
        ]
    for new, block in enumerate(blocks):
        if block.mlp is None:
            made += [
                zeros(f"blk.{new}.ffn_norm.weight", (hidden,), F32),
                zeros(f"blk.{new}.ffn_gate.weight", (hidden, _PLACEHOLDER_WIDTH), kind),
                zeros(f"blk.{new}.ffn_up.weight", (hidden, _PLACEHOLDER_WIDTH), kind),
                zeros(f"blk.{new}.ffn_down.weight", (_PLACEHOLDER_WIDTH, hidden), kind),
            ]
    return made


def _hidden_size(values: dict[str, Value]) -> int:
    hidden = values["deci.embedding_length"].scalar() if "deci.embedding_length" in values else None
    if type(hidden) is not int or not 1 <= hidden < 2**31:
        raise RequestError("the file lacks the key llama.embedding_length")
    return hidden

"""A whole llama-shaped model: its blocks, rotary tables, embedding and head, as the native executor packs them.

`block.py` says what a block is made of. Beyond that, all blocks must have one size, angles must be a table of
positions, the masks that the model makes must be those of its sliding windows, and embedding and head must be plain but
for factors and a soft cap. A model with a part that is not understood is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.kernels.memory import NATIVE_DTYPES
from layercoop_fast.llama.block import BlockParts, Norm, UnfitError, find_parts, norm_of
from layercoop_fast.llama.block_inputs import causal_mask, handed_masks, is_mask
from layercoop_fast.llama.fused_head import FusedHead, fused_head
from layercoop_fast.llama.rotary_tables import RotaryCall, rotary_calls, which_rotary
from layercoop_fast.masks.halves import WHOLE, Halves

_PROBE = 16  # tokens
# The longest text on which a sliding window is looked for in the masks: these are square.
_LONGEST_PROBE = 4200


@dataclass(frozen=True)
class ModelParts:
    """The parts of a llama-shaped model.

    Attributes:
        blocks: None for a block of which nothing is held.
        rotary: of each block, the number of its table in `rotaries`; -1 where it does not rotate or is not held.
        rotaries: the model's own rotary modules.
        embedding: [V, H], the head's memory too where `tied`.
        embedding_scale: factor between the embedding and what block 0 is handed.
        final_norm: before the head.
        head: the output projection and what follows it.
        tied: whether embedding and output projection are one matrix.
        max_tokens: that a text may have; None where the model does not say.
    """

    blocks: list[BlockParts | None]
    rotary: list[int]
    rotaries: list[RotaryCall]
    embedding: Tensor
    embedding_scale: float
    final_norm: Norm
    head: FusedHead
    tied: bool
    max_tokens: int | None

    @property
    def hidden(self) -> int:
        """Width of the stream H."""
        return int(self.embedding.shape[1])

    @property
    def first(self) -> BlockParts:
        """The first block that is held; all have its sizes."""
        return next(block for block in self.blocks if block is not None)


def find_model(skeleton: Skeleton, held: Halves | None = None) -> tuple[ModelParts, Context]:
    """Find the parts of a llama-shaped model, and the calls of its blocks on a few tokens.

    Only the halves of blocks that are `held` (uint8 [L]) are looked at, by default all. Raises `UnfitError` for any
    other model.
    """
    held = np.full(skeleton.n_layers, WHOLE, dtype=np.uint8) if held is None else held
    model = skeleton.model
    if skeleton.device.type != "cpu" or skeleton.dtype not in NATIVE_DTYPES:
        raise UnfitError(f"it is {skeleton.dtype} on {skeleton.device}, not fp32 or bf16 on the CPU")
    ids = (torch.arange(_PROBE) % skeleton.vocab_size)[None]
    with rotary_calls(model) as seen:
        context = skeleton.context(ids)
    blocks: list[BlockParts | None] = []
    rotary: list[int] = []
    rotaries: list[RotaryCall] = []
    for layer, halves in enumerate(held.tolist()):
        found = find_parts(skeleton.block(layer), held=halves, one_dtype=False) if halves else None
        rotates = found is not None and found.rotates
        blocks.append(found)
        rotary.append(which_rotary(context.call(layer), skeleton.convention, seen, rotaries) if rotates else -1)
    first = next((block for block in blocks if block is not None), None)
    if first is None:
        raise UnfitError("none of its blocks is held")
    for table in rotaries:
        table.check(first.head_dim, skeleton.max_tokens)
    for layer, block in enumerate(blocks):
        if block is not None:
            _check_block(layer, block, first)
    places = [
        parameter.data_ptr() for block in skeleton.blocks for parameter in block.parameters() if not parameter.is_meta
    ]
    if len(set(places)) < len(places):
        raise UnfitError("its blocks share parameters")
    blocks = _seen_windows(skeleton, blocks)
    head = fused_head(skeleton, ids[:, :4])
    if head is None:
        raise UnfitError("its head is no linear map behind the blocks, perhaps scaled or softly capped")
    embedding = model.get_input_embeddings().weight.detach()
    parts = ModelParts(
        blocks=blocks,
        rotary=rotary,
        rotaries=rotaries,
        embedding=embedding,
        embedding_scale=_embedding_scale(context.embedding[0], embedding[ids[0]]),
        final_norm=_final_norm(skeleton, head),
        head=head,
        tied=head.projection.weight.data_ptr() == embedding.data_ptr(),
        max_tokens=skeleton.max_tokens,
    )
    return parts, context


def _check_block(layer: int, block: BlockParts, first: BlockParts) -> None:
    """The native step knows this form of a block, and all blocks have one size."""

    def size(block: BlockParts) -> tuple[object, ...]:
        shapes = (block.hidden, block.heads, block.kv_heads, block.inner)
        return (*shapes, block.head_dim, block.scale, block.score_cap, block.activation)

    if size(block) != size(first):
        raise UnfitError(f"its block {layer} is of another size or form than others")
    if block.attention_norm is None or block.mlp_norm is None:
        raise UnfitError("its halves norm what they add, not what they read")
    if block.joint_head_norms:
        raise UnfitError("it norms the queries and keys of all heads together")
    if block.factor != 1:
        raise UnfitError(f"it multiplies what its halves add by {block.factor}")


def _seen_windows(skeleton: Skeleton, blocks: list[BlockParts | None]) -> list[BlockParts | None]:
    """The blocks with the sliding windows that the model's masks have, seen on a text a little longer, where it can be.

    A config may name a window that the model does not use.
    """
    first = {block.sliding_window: layer for layer, block in reversed(list(enumerate(blocks))) if block is not None}
    longest = max((window + 2 for window in first if window and window + 2 <= _LONGEST_PROBE), default=_PROBE)
    tokens = min(max(longest, _PROBE), skeleton.max_tokens or longest)
    context = skeleton.context(torch.zeros(1, tokens, dtype=torch.int64))
    seen = {}
    for window, layer in first.items():
        masks = [mask for _, mask in handed_masks(context.call(layer), skeleton.convention)]
        if 0 < window < tokens and not masks and skeleton.model.config._attn_implementation != "sdpa":
            raise UnfitError("its sliding window is not in the mask that it is handed")
        # torch's attention sees no other window than the one in its mask.
        full = window < tokens and all(is_mask(mask) for mask in masks)
        seen[window] = 0 if full else window
        if not all(is_mask(mask, causal_mask(tokens, seen[window])) for mask in masks):
            raise UnfitError("the mask that it is handed is neither causal nor that of its sliding window")
    return [block and replace(block, sliding_window=seen[block.sliding_window]) for block in blocks]


def _embedding_scale(embedding: Tensor, rows: Tensor) -> float:
    """The factor between what block 0 is handed, [T, H], and the rows of the table."""
    given, found = rows.double(), embedding.double()
    scale = float((given * found).sum() / given.square().sum())
    if rows.dtype == torch.float32:
        scale = float(torch.tensor(scale, dtype=torch.float32))
    tolerance = 1e-5 if rows.dtype == torch.float32 else 1e-2
    if not torch.allclose(found, scale * given, rtol=tolerance, atol=1e-6):
        raise UnfitError("block 0 is handed more than the embedding, scaled")
    return 1.0 if abs(scale - 1.0) < 1e-6 else scale


def _final_norm(skeleton: Skeleton, head: FusedHead) -> Norm:
    """The norm between the last block and the output projection."""
    inside = f"{skeleton.blocks_path}."
    context = skeleton.context(torch.zeros(1, 2, dtype=torch.int64))
    hidden = context.embedding.shape[-1]
    probe = torch.linspace(-2, 3, 2 * hidden).to(skeleton.dtype).view(1, 2, hidden)
    expected = head.inputs(context, probe)
    for name, module in skeleton.model.named_modules():
        if name.startswith(inside) or [own for own, _ in module.named_parameters()] != ["weight"]:
            continue
        norm = norm_of(module) if module.get_parameter("weight").shape == (hidden,) else None
        with torch.inference_mode():
            if norm is not None and torch.equal(module(probe), expected):
                return norm
    raise UnfitError("there is no root-mean-square norm between its last block and its head")

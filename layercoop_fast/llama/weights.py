"""A language model as the native executor needs it: llama-shaped blocks, rotary tables, embedding and head.

Parts are found by their names and what they are called with, as in `llama/shape.py`, and what they compute is
tried out on small inputs: a model with a part that is not understood is refused with the reason. Besides plain llama
shapes this knows norms behind each half, norms that scale by 1 + weight, sliding windows, soft caps, blocks that do not
rotate, and GELU by tanh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.kernels.memory import NATIVE_DTYPES
from layercoop_fast.llama.fused_head import FusedHead, fused_head
from layercoop_fast.llama.rotary_tables import RotaryCall, rotary_calls, which_rotary
from layercoop_fast.llama.shape import Norm, UnfitError, child_with, find_norm, is_mask, plain_linear
from layercoop_fast.masks.halves import WHOLE, Halves

ATTENTION, MLP = 1, 2
"""Halves of a block, as bits."""

_PROBE = 16  # tokens
# The longest text on which a sliding window is looked for in the masks: these are square.
_LONGEST_PROBE = 4200


@dataclass(frozen=True)
class BlockWeights:
    """A block's parts; a norm behind a half, or of queries and keys, is None where there is none.

    `rotary` is the number of its table, -1 where it does not rotate. A token sees itself and the `window` - 1 before
    it, or all where that is 0.
    """

    attention_norm: Norm
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_norm: Norm | None
    key_norm: Norm | None
    output: nn.Linear
    after_attention: Norm | None
    mlp_norm: Norm
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    after_mlp: Norm | None
    head_dim: int
    scale: float
    score_cap: float
    activation: str
    rotary: int
    window: int


@dataclass(frozen=True)
class LlamaWeights:
    """The whole model. Blocks that are not held are None; `embedding` is [V, H], the head's memory too where `tied`."""

    blocks: list[BlockWeights | None]
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
    def first(self) -> BlockWeights:
        """The first block that is held; all have its sizes."""
        return next(block for block in self.blocks if block is not None)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.first.query.out_features // self.first.head_dim

    @property
    def kv_heads(self) -> int:
        """Number of key heads."""
        return self.first.key.out_features // self.first.head_dim

    @property
    def inner(self) -> int:
        """Width of the MLP I."""
        return self.first.gate.out_features


def find_weights(skeleton: Skeleton, held: Halves | None = None) -> tuple[LlamaWeights, Context]:
    """The parts of a llama-shaped model, and the calls of its blocks on a few tokens; `UnfitError` for any other.

    Of blocks only the halves that are `held` are looked at, by default all.
    """
    held = np.full(skeleton.n_layers, WHOLE, dtype=np.uint8) if held is None else held
    model = skeleton.model
    device = skeleton.device
    if device.type != "cpu" or skeleton.dtype not in NATIVE_DTYPES:
        raise UnfitError(f"it is {skeleton.dtype} on {device}, not fp32 or bf16 on the CPU")
    ids = (torch.arange(_PROBE) % skeleton.vocab_size)[None]
    with rotary_calls(model) as seen:
        context = skeleton.context(ids)
    rotaries: list[RotaryCall] = []
    blocks = [
        _block(skeleton.block(layer), int(held[layer]), context.call(layer), skeleton.convention, seen, rotaries)
        if held[layer]
        else None
        for layer in range(skeleton.n_layers)
    ]
    first = next((block for block in blocks if block is not None), None)
    if first is None:
        raise UnfitError("none of its blocks is held")
    for rotary in rotaries:
        rotary.check(first.head_dim, skeleton.max_tokens)
    _check_alike(blocks, first)
    places = [
        parameter.data_ptr() for block in skeleton.blocks for parameter in block.parameters() if not parameter.is_meta
    ]
    if len(set(places)) < len(places):
        raise UnfitError("its blocks share parameters")
    _check_windows(skeleton, blocks)
    head = fused_head(skeleton, ids[:, :4])
    if head is None:
        raise UnfitError("its head is no linear map behind the blocks, perhaps scaled or softly capped")
    embedding = model.get_input_embeddings().weight.detach()
    scale = _embedding_scale(context.embedding[0], embedding[ids[0]])
    weights = LlamaWeights(
        blocks=blocks,
        rotaries=rotaries,
        embedding=embedding,
        embedding_scale=scale,
        final_norm=_final_norm(skeleton, head),
        head=head,
        tied=head.projection.weight.data_ptr() == embedding.data_ptr(),
        max_tokens=skeleton.max_tokens,
    )
    return weights, context


def _block(
    block: nn.Module,
    held: int,
    call: BlockCall,
    convention: Convention,
    seen: list[tuple[RotaryCall, tuple[Tensor, Tensor]]],
    rotaries: list[RotaryCall],
) -> BlockWeights:
    attention = child_with(block, ("q_proj", "k_proj", "v_proj", "o_proj"), "attention")
    mlp = child_with(block, ("gate_proj", "up_proj", "down_proj"), "gated MLP")
    head_dim = getattr(attention, "head_dim", None)
    if not isinstance(head_dim, int) or head_dim < 2:
        raise UnfitError("its attention does not say its head_dim")
    sandwich = hasattr(block, "pre_feedforward_layernorm")
    qk_norm = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    attends, feeds = bool(held & ATTENTION), bool(held & MLP)
    parts = BlockWeights(
        attention_norm=_norm(block, "input_layernorm", attends),
        query=plain_linear(attention, "q_proj"),
        key=plain_linear(attention, "k_proj"),
        value=plain_linear(attention, "v_proj"),
        query_norm=_norm(attention, "q_norm", attends) if qk_norm else None,
        key_norm=_norm(attention, "k_norm", attends) if qk_norm else None,
        output=plain_linear(attention, "o_proj"),
        after_attention=_norm(block, "post_attention_layernorm", attends) if sandwich else None,
        mlp_norm=_norm(block, "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm", feeds),
        gate=plain_linear(mlp, "gate_proj"),
        up=plain_linear(mlp, "up_proj"),
        down=plain_linear(mlp, "down_proj"),
        after_mlp=_norm(block, "post_feedforward_layernorm", feeds) if sandwich else None,
        head_dim=head_dim,
        scale=float(getattr(attention, "scaling", head_dim**-0.5)),
        score_cap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        activation=_activation(mlp),
        rotary=which_rotary(attention, call, convention, seen, rotaries),
        window=_window(attention),
    )
    _check_block(block, parts)
    return parts


def _norm(owner: nn.Module, name: str, held: bool) -> Norm:
    """A root-mean-square norm with what it really scales by, float32: its weight, or one more."""
    norm = find_norm(owner, name)
    if not held:
        return norm
    module = getattr(owner, name)
    found = _scaled_by(module, norm)
    if found is None:
        raise UnfitError(f"its {name} is no root-mean-square norm")
    return found


def _scaled_by(module: nn.Module, norm: Norm) -> Norm | None:
    weight = norm.weight.float()
    probe = torch.linspace(-1, 2, len(weight))[None].to(norm.weight.dtype)
    unit = probe.float() * torch.rsqrt(probe.float().pow(2).mean() + norm.eps)
    with torch.inference_mode():
        found = module(probe).float()[0]
    tolerance = 1e-5 if norm.weight.dtype == torch.float32 else 2e-2
    for scale in (weight, 1 + weight):
        if torch.allclose(found, unit[0] * scale, rtol=tolerance, atol=tolerance):
            return Norm(scale, norm.eps)
    return None


def _activation(mlp: nn.Module) -> str:
    activation = getattr(mlp, "act_fn", None)
    probe = torch.linspace(-8, 8, 65)
    if callable(activation):
        with torch.inference_mode():
            found = activation(probe)
        if torch.allclose(found, nn.functional.silu(probe), atol=1e-6):
            return "silu"
        if torch.allclose(found, nn.functional.gelu(probe, approximate="tanh"), atol=1e-6):
            return "gelu_tanh"
    raise UnfitError("its MLP is gated neither by SiLU nor by GELU's tanh form")


def _window(attention: nn.Module) -> int:
    own = getattr(attention, "sliding_window", None)
    if own is None and not hasattr(attention, "sliding_window"):
        own = getattr(getattr(attention, "config", None), "sliding_window", None)
    return int(own) if own else 0


def _check_block(block: nn.Module, parts: BlockWeights) -> None:
    """All of the block's parameters are in the parts, on the CPU, of fitting shapes."""
    linears = (parts.query, parts.key, parts.value, parts.output, parts.gate, parts.up, parts.down)
    known = {id(parameter) for linear in linears for parameter in linear.parameters()}
    norms = sum(
        norm is not None
        for norm in (
            parts.attention_norm,
            parts.mlp_norm,
            parts.query_norm,
            parts.key_norm,
            parts.after_attention,
            parts.after_mlp,
        )
    )
    for name, parameter in block.named_parameters():
        if not parameter.is_meta and (parameter.device.type != "cpu" or parameter.dtype not in NATIVE_DTYPES):
            raise UnfitError(f"its {name} is {parameter.dtype} on {parameter.device}, not fp32 or bf16 on the CPU")
    rest = [name for name, parameter in block.named_parameters() if id(parameter) not in known]
    if len(rest) != norms:
        raise UnfitError(f"it has further parameters among {', '.join(rest)}")
    hidden, head_dim = parts.query.in_features, parts.head_dim
    heads, rest_of_heads = divmod(parts.query.out_features, head_dim)
    kv_heads, rest_of_keys = divmod(parts.key.out_features, head_dim)
    fits = (
        rest_of_heads == rest_of_keys == 0
        and min(heads, kv_heads) > 0
        and heads % kv_heads == 0
        and parts.value.out_features == parts.key.out_features
        and parts.output.in_features == parts.query.out_features
        and parts.gate.out_features == parts.up.out_features == parts.down.in_features
        and parts.output.out_features == parts.down.out_features == hidden
        and all(linear.in_features == hidden for linear in (parts.key, parts.value, parts.gate, parts.up))
        and all(norm is None or len(norm.weight) == head_dim for norm in (parts.query_norm, parts.key_norm))
        and len(parts.attention_norm.weight) == len(parts.mlp_norm.weight) == hidden
    )
    if not fits:
        raise UnfitError("the shapes of its projections are not those of grouped queries and a gated MLP")
    if parts.scale <= 0:
        raise UnfitError(f"it scales its scores by {parts.scale}")


def _check_alike(blocks: list[BlockWeights | None], first: BlockWeights) -> None:
    def size(block: BlockWeights) -> tuple[object, ...]:
        shapes = tuple(linear.weight.shape for linear in (block.query, block.key, block.gate))
        return (*shapes, block.head_dim, block.scale, block.score_cap, block.activation)

    for layer, block in enumerate(blocks):
        if block is not None and size(block) != size(first):
            raise UnfitError(f"its block {layer} is of another size or form than others")


def _check_windows(skeleton: Skeleton, blocks: list[BlockWeights | None]) -> None:
    """The masks that the model makes are those of the windows, on a text a little longer where that is short."""
    first = {block.window: layer for layer, block in reversed(list(enumerate(blocks))) if block is not None}
    longest = max((window + 2 for window in first if window and window + 2 <= _LONGEST_PROBE), default=_PROBE)
    tokens = min(max(longest, _PROBE), skeleton.max_tokens or longest)
    context = skeleton.context(torch.zeros(1, tokens, dtype=torch.int64))
    rows, columns = torch.arange(tokens)[:, None], torch.arange(tokens)
    for window, layer in first.items():
        seen = (columns <= rows) & (columns > rows - (window or tokens))
        _check_mask(context.call(layer), skeleton.convention, seen, 0 < window < tokens)


def _check_mask(call: BlockCall, convention: Convention, seen: Tensor, windowed: bool) -> None:
    masks = [
        value
        for where, value in call.arguments()
        if where != convention.takes
        and isinstance(value, Tensor)
        and (value.is_floating_point() or value.dtype == torch.bool)
    ]
    if windowed and not masks:
        raise UnfitError("its sliding window is not in the mask that it is handed")
    if not all(is_mask(mask, seen[None, None]) for mask in masks):
        raise UnfitError("the mask that it is handed is neither causal nor that of its sliding window")


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
        weight = module.get_parameter("weight")
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if weight.shape != (hidden,) or not isinstance(eps, float):
            continue
        with torch.inference_mode():
            if torch.equal(module(probe), expected):
                found = _scaled_by(module, Norm(weight.detach(), eps))
                if found is not None:
                    return found
    raise UnfitError("there is no root-mean-square norm between its last block and its head")


def let_go(linears: Sequence[nn.Linear]) -> None:
    """Give back the memory of matrices that are packed."""
    for linear in linears:
        if not linear.weight.is_meta:
            linear.weight.data = torch.empty(0)

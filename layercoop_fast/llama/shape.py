"""Is this block llama-shaped? Its parts, found by their names and checked by their attributes.

A block whose parts are not all known is refused with the reason: what is not understood is left to the block itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.kernels.memory import NATIVE_DTYPES
from layercoop_fast.kernels.reference.attention import visible_rows


class UnfitError(Exception):
    """A block that is not llama-shaped; the message completes "not used because ..."."""


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: weight [H or D] and epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Rope:
    """Cosines and sines [P, D] of the positions of a state's rows.

    They are those of one window of T tokens, where all windows are alike (P = T), or of all windows one after another;
    then `positions` (int64 [P]) says where each row stands in the tree of its window (`kernels/attention.py`).
    """

    cos: Tensor
    sin: Tensor
    tokens: int
    positions: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """The modules of a llama-shaped block, and the numbers that are no weights."""

    input_norm: Norm
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_norm: Norm | None
    key_norm: Norm | None
    output: nn.Linear
    mlp_norm: Norm
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    head_dim: int
    scale: float


def find_parts(
    block: nn.Module, *, dtypes: Sequence[torch.dtype] = NATIVE_DTYPES, devices: Sequence[str] = ("cpu",)
) -> Parts:
    """The parts of a llama-shaped block of these dtypes on such devices; raises `UnfitError` for any other."""
    attention = child_with(block, ("q_proj", "k_proj", "v_proj", "o_proj"), "attention")
    mlp = child_with(block, ("gate_proj", "up_proj", "down_proj"), "gated MLP")
    head_dim = getattr(attention, "head_dim", None)
    if not isinstance(head_dim, int) or head_dim < 2:
        raise UnfitError("its attention does not say its head_dim")
    qk_norm = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    parts = Parts(
        input_norm=find_norm(block, "input_layernorm"),
        query=plain_linear(attention, "q_proj"),
        key=plain_linear(attention, "k_proj"),
        value=plain_linear(attention, "v_proj"),
        query_norm=find_norm(attention, "q_norm") if qk_norm else None,
        key_norm=find_norm(attention, "k_norm") if qk_norm else None,
        output=plain_linear(attention, "o_proj"),
        mlp_norm=find_norm(block, "post_attention_layernorm"),
        gate=plain_linear(mlp, "gate_proj"),
        up=plain_linear(mlp, "up_proj"),
        down=plain_linear(mlp, "down_proj"),
        head_dim=head_dim,
        scale=float(getattr(attention, "scaling", head_dim**-0.5)),
    )
    _check_weights(block, parts, dtypes, devices)
    _check_shapes(parts)
    _check_activation(mlp, parts.gate.weight.dtype)
    return parts


def child_with(block: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    """The one child module of a block that has all these parts; `what` it is called where there is none."""
    found = [child for child in block.children() if all(hasattr(child, name) for name in names)]
    if len(found) != 1:
        raise UnfitError(f"it has no {what} made of {', '.join(names)}")
    return found[0]


def plain_linear(owner: nn.Module, name: str) -> nn.Linear:
    """A part of a module that is a plain linear map; raises `UnfitError` where it is something else."""
    module = getattr(owner, name)
    # Exactly this class: a subclass (quantised, with an adapter) computes something else from its weight.
    if type(module) is not nn.Linear:
        raise UnfitError(f"its {name} is a {type(module).__name__}, not a plain Linear")
    return module


def find_norm(owner: nn.Module, name: str) -> Norm:
    """A module's RMS norm of that name; raises `UnfitError` where it is something else."""
    module = getattr(owner, name, None)
    if not isinstance(module, nn.Module):
        raise UnfitError(f"it has no {name}")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if [own for own, _ in module.named_parameters()] != ["weight"] or not isinstance(eps, float):
        raise UnfitError(f"its {name} is no root-mean-square norm with one weight and an epsilon")
    weight = module.get_parameter("weight").detach()
    if weight.dim() != 1:
        raise UnfitError(f"the weight of its {name} is no vector")
    return Norm(weight, eps)


def _check_weights(block: nn.Module, parts: Parts, dtypes: Sequence[torch.dtype], devices: Sequence[str]) -> None:
    """All of the block's parameters are in the parts, in one dtype that the kernels work in, where they do."""
    linears = (parts.query, parts.key, parts.value, parts.output, parts.gate, parts.up, parts.down)
    norms = [norm for norm in (parts.input_norm, parts.mlp_norm, parts.query_norm, parts.key_norm) if norm is not None]
    known = {linear.weight.data_ptr() for linear in linears} | {norm.weight.data_ptr() for norm in norms}
    known |= {linear.bias.data_ptr() for linear in linears if linear.bias is not None}
    for name, parameter in block.named_parameters():
        if parameter.data_ptr() not in known:
            raise UnfitError(f"it has a further parameter, {name}")
        if parameter.device.type not in devices or parameter.dtype not in dtypes:
            taken = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UnfitError(f"its {name} is {parameter.dtype} on {parameter.device}, not {taken} on {devices[-1]}")
    found = {parameter.dtype for parameter in block.parameters()}
    if len(found) != 1:
        raise UnfitError(f"its parameters are of several dtypes ({', '.join(sorted(map(str, found)))})")


def _check_shapes(parts: Parts) -> None:
    hidden = parts.query.in_features
    heads, rest = divmod(parts.query.out_features, parts.head_dim)
    kv_heads, kv_rest = divmod(parts.key.out_features, parts.head_dim)
    fits = (
        rest == kv_rest == 0
        and min(heads, kv_heads) > 0
        and heads % kv_heads == 0
        and parts.value.out_features == parts.key.out_features
        and parts.output.in_features == parts.query.out_features
        and parts.gate.out_features == parts.up.out_features == parts.down.in_features
        and parts.output.out_features == parts.down.out_features == hidden
        and all(linear.in_features == hidden for linear in (parts.key, parts.value, parts.gate, parts.up))
        and len(parts.input_norm.weight) == len(parts.mlp_norm.weight) == hidden
    )
    if not fits:
        raise UnfitError("the shapes of its projections are not those of grouped queries and a gated MLP")
    for norm in (parts.query_norm, parts.key_norm):
        if norm is not None and len(norm.weight) != parts.head_dim:
            raise UnfitError("it norms queries and keys over something else than a head")
    if parts.query_norm is not None and parts.key_norm is not None and parts.query_norm.eps != parts.key_norm.eps:
        raise UnfitError("its norms of queries and keys have different epsilons")
    if parts.scale <= 0:
        raise UnfitError(f"it scales its scores by {parts.scale}")


def _check_activation(mlp: nn.Module, dtype: torch.dtype) -> None:
    activation = getattr(mlp, "act_fn", None)
    probe = torch.linspace(-8, 8, 65, dtype=dtype)
    with torch.inference_mode():
        if not callable(activation) or not torch.allclose(activation(probe), nn.functional.silu(probe)):
            raise UnfitError("its MLP is not gated by SiLU")


def find_rope(call: BlockCall, convention: Convention, parts: Parts, positions: Tensor | None = None) -> Rope:
    """Cosines and sines among a call's arguments, after making sure that nothing else among them matters.

    `positions` (int64 [W, T]) are those of windows that are trees; without them windows are plain texts.
    """
    seen = None if positions is None else visible_rows(positions)[:, None]
    for where, value in call.arguments():
        matters = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
        if where != convention.takes and matters and not is_mask(value, seen):
            raise UnfitError(f"{where} is more than a causal mask (a sliding window shorter than the text?)")
    return read_rope(call, convention, parts.head_dim, parts.query.weight.dtype, positions)


def read_rope(
    call: BlockCall, convention: Convention, width: int, dtype: torch.dtype, positions: Tensor | None = None
) -> Rope:
    """Cosines and sines for heads of `width` in a call whose other arguments are known not to matter."""
    ropes = [
        value
        for where, value in call.arguments()
        if where != convention.takes
        and isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(item, Tensor) for item in value)
    ]
    if len(ropes) != 1:
        raise UnfitError("it is not handed one pair of cosines and sines")
    cos, sin = ropes[0]
    if cos.dim() != 3 or cos.shape != sin.shape or cos.shape[2] != width:
        raise UnfitError(f"its cosines and sines are not [windows, tokens, {width}]")
    if {cos.dtype, sin.dtype} != {dtype}:
        raise UnfitError("its cosines and sines are of another dtype than its weights")
    tokens = cos.shape[1]
    if positions is not None:
        windows = len(positions)
        if cos.shape[0] < windows or tokens != positions.shape[1]:
            raise UnfitError("its cosines and sines are not one for each row")
        cos, sin = (item[:windows].reshape(-1, width).contiguous() for item in (cos, sin))
        return Rope(cos, sin, tokens, positions.reshape(-1).contiguous())
    if not (torch.equal(cos, cos[:1].expand_as(cos)) and torch.equal(sin, sin[:1].expand_as(sin))):
        raise UnfitError("its windows are not at the same positions")
    return Rope(cos[0].contiguous(), sin[0].contiguous(), tokens)


def is_mask(mask: Tensor, seen: Tensor | None = None) -> bool:
    """Whether a mask [..., T, T] lets every token see what is True in `seen`, and adds nothing to those scores.

    By default that is itself and all before it. What it keeps a token from seeing is all the rest.
    """
    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2]:
        return False
    if seen is None:
        seen = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    elif mask.dim() != 4 or len(mask) != len(seen) or mask.shape[-2:] != seen.shape[-2:]:
        return False
    seen = seen.expand_as(mask)
    if mask.dtype == torch.bool:
        return torch.equal(mask, seen)
    return bool(torch.where(seen, mask == 0, mask <= torch.finfo(torch.float16).min).all())

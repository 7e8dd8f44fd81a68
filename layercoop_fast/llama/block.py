"""What a llama-shaped block is made of: the one description that measuring and generating work from, on CPU and GPU.

    parts = find_parts(block)              # UnfitError says why a block is not of this shape

With x [T, H] a window's states, such a block is

    x = x + factor · after(o_proj(attention(qkv_proj(norm(x)))))
    x = x + factor · after(down_proj(activation(gate_proj(n)) · up_proj(n))),   n = norm(x)

Parts are found by their names and attributes, norms and activation by what they compute on a few numbers. Who uses the
description then compares a whole block with the model's own (`fast_blocks.py`, `runtime/native.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from layercoop_fast.kernels.memory import NATIVE_DTYPES
from layercoop_fast.kernels.reference.blocks import rms_norm_reference
from layercoop_fast.masks.halves import WHOLE

Half = Literal["attn", "mlp"]

ATTENTION, MLP = 1, 2
"""Halves of a block, as bits of `Halves`."""

# How far a norm's result may be from its formula. In 16 bits each rounds a little differently.
_NORM_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class UnfitError(Exception):
    """A block that is not llama-shaped; the message completes "not used because ..."."""


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm.

    Attributes:
        weight: [N], the model's own memory.
        eps: added to the mean of squares.
        gemma: whether it multiplies by 1 + weight, as Gemma's norms do.
    """

    weight: Tensor
    eps: float
    gemma: bool = False

    def scale(self) -> Tensor:
        """What it multiplies by, fp32 [N]."""
        return self.weight.float() + 1 if self.gemma else self.weight.float()


@dataclass(frozen=True)
class LinearRows:
    """Outputs of a linear layer: all of them, or a slice of a fused layer's.

    Attributes:
        module: the layer.
        outputs: first and last (excluded) of its outputs; None for all.
    """

    module: nn.Linear
    outputs: tuple[int, int] | None = None

    @property
    def weight(self) -> Tensor:
        """The weights [out, in]: the layer's parameter, or a view of some of its rows."""
        weight = self.module.weight
        return weight if self.outputs is None else weight.detach()[slice(*self.outputs)]

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], as `weight`; None where the layer has none."""
        bias = self.module.bias
        return bias if bias is None or self.outputs is None else bias.detach()[slice(*self.outputs)]

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.module.in_features

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.module.out_features if self.outputs is None else self.outputs[1] - self.outputs[0]


@dataclass(frozen=True)
class BlockParts:
    """The parts of a llama-shaped block, and the numbers that are no weights.

    Attributes:
        attention_norm, mlp_norm: before each half; None where there is none (OLMo 2).
        after_attention, after_mlp: of what each half adds; None where there is none.
        query, key, value, gate, up: projections, some of them perhaps slices of one layer (Phi-3).
        query_norm, key_norm: of each head [D], or of all heads of its kind together (OLMo 2); None where there is none.
        output, down: the layers whose results are added to the stream.
        head_dim: width D of a head.
        scale: factor of the scores, positive.
        score_cap: soft cap of the scores; 0 for none.
        activation: of the gate, "silu" or "gelu_tanh".
        rotates: whether queries and keys are rotated by their positions.
        sliding_window: tokens that a token may see, itself included; 0 for all before it. What it really sees is in the
            mask that the block is handed (`block_inputs.py`).
        factor: of what each half adds to the stream.
    """

    attention_norm: Norm | None
    query: LinearRows
    key: LinearRows
    value: LinearRows
    query_norm: Norm | None
    key_norm: Norm | None
    output: nn.Linear
    after_attention: Norm | None
    mlp_norm: Norm | None
    gate: LinearRows
    up: LinearRows
    down: nn.Linear
    after_mlp: Norm | None
    head_dim: int
    scale: float
    score_cap: float
    activation: str
    rotates: bool
    sliding_window: int
    factor: float

    @property
    def hidden(self) -> int:
        """Width of the stream H."""
        return self.output.out_features

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.query.out_features // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Number of key heads."""
        return self.key.out_features // self.head_dim

    @property
    def inner(self) -> int:
        """Width of the MLP I."""
        return self.down.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.output.weight.dtype

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, a fused one once."""
        rows = (self.query, self.key, self.value, self.gate, self.up)
        return list(dict.fromkeys([*(part.module for part in rows), self.output, self.down]))

    @property
    def norms(self) -> list[Norm]:
        """The norms that there are."""
        pairs = (self.attention_norm, self.after_attention, self.mlp_norm, self.after_mlp)
        return [norm for norm in (*pairs, self.query_norm, self.key_norm) if norm is not None]

    @property
    def joint_head_norms(self) -> bool:
        """Whether queries and keys are normed over all their heads together."""
        return any(norm is not None and len(norm.weight) != self.head_dim for norm in (self.query_norm, self.key_norm))


def find_parts(
    block: nn.Module,
    *,
    dtypes: Sequence[torch.dtype] = NATIVE_DTYPES,
    devices: Sequence[str] = ("cpu",),
    held: int = WHOLE,
    one_dtype: bool = True,
) -> BlockParts:
    """Find the parts of a llama-shaped block.

    Args:
        block: of a model in evaluation mode.
        dtypes: that its parameters may have.
        devices: that its parameters may be on.
        held: the halves whose weights are there, `ATTENTION` or `MLP` or both; those of the other may be on "meta".
        one_dtype: whether all parameters must be of one dtype.

    Raises `UnfitError` for any other block.
    """
    attention = _child_with(block, (("q_proj", "k_proj", "v_proj", "o_proj"), ("qkv_proj", "o_proj")), "attention")
    mlp = _child_with(block, (("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj")), "gated MLP")
    head_dim = getattr(attention, "head_dim", None)
    if not isinstance(head_dim, int) or head_dim < 2:
        raise UnfitError("its attention does not say its head_dim")
    output, down = _plain_linear(attention, "o_proj"), _plain_linear(mlp, "down_proj")
    query, key, value = _queries_keys_values(attention, output.in_features)
    gate, up = _gate_and_up(mlp, down.in_features)
    qk_norm = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    before, after, before_mlp, after_mlp = _norm_names(block)
    attends, feeds = bool(held & ATTENTION), bool(held & MLP)
    parts = BlockParts(
        attention_norm=_norm(block, before, attends),
        query=query,
        key=key,
        value=value,
        query_norm=_norm(attention, "q_norm" if qk_norm else None, attends),
        key_norm=_norm(attention, "k_norm" if qk_norm else None, attends),
        output=output,
        after_attention=_norm(block, after, attends),
        mlp_norm=_norm(block, before_mlp, feeds),
        gate=gate,
        up=up,
        down=down,
        after_mlp=_norm(block, after_mlp, feeds),
        head_dim=head_dim,
        scale=float(getattr(attention, "scaling", head_dim**-0.5)),
        score_cap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        activation=_activation(mlp),
        rotates=bool(getattr(attention, "use_rope", True)),
        sliding_window=_sliding_window(attention),
        factor=float(getattr(block, "residual_multiplier", 1.0)),
    )
    norms = [getattr(block, name) for name in (before, after, before_mlp, after_mlp) if name is not None]
    norms += [attention.q_norm, attention.k_norm] if qk_norm else []
    known = {id(parameter) for norm in norms for parameter in norm.parameters()}
    known |= {id(parameter) for layer in parts.layers for parameter in (layer.weight, layer.bias)}
    for name, parameter in block.named_parameters():
        if id(parameter) not in known:
            raise UnfitError(f"it has a further parameter, {name}")
    _check_memory(block, dtypes, devices, one_dtype=one_dtype)
    _check_shapes(parts)
    return parts


def _child_with(block: nn.Module, forms: Sequence[Sequence[str]], what: str) -> nn.Module:
    """The one child of a block that has all the layers of a form; `what` names it where there is none."""
    found = [child for child in block.children() if any(all(hasattr(child, name) for name in names) for names in forms)]
    if len(found) != 1:
        raise UnfitError(f"it has no {what} made of {', '.join(forms[0])}")
    return found[0]


def _plain_linear(owner: nn.Module, name: str) -> nn.Linear:
    module = getattr(owner, name)
    # Exactly this class: a subclass (quantised, with an adapter) computes something else from its weight.
    if type(module) is not nn.Linear:
        raise UnfitError(f"its {name} is a {type(module).__name__}, not a plain Linear")
    return module


def _queries_keys_values(attention: nn.Module, queries: int) -> list[LinearRows]:
    """The projections of attention; its fused layer has this number of outputs that are queries."""
    if hasattr(attention, "q_proj"):
        return [LinearRows(_plain_linear(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
    fused = _plain_linear(attention, "qkv_proj")
    keys = max(0, fused.out_features - queries) // 2
    ends = (queries, queries + keys, fused.out_features)
    return [LinearRows(fused, span) for span in zip((0, *ends), ends, strict=False)]


def _gate_and_up(mlp: nn.Module, inner: int) -> list[LinearRows]:
    if hasattr(mlp, "gate_proj"):
        return [LinearRows(_plain_linear(mlp, name)) for name in ("gate_proj", "up_proj")]
    fused = _plain_linear(mlp, "gate_up_proj")
    return [LinearRows(fused, (0, inner)), LinearRows(fused, (inner, fused.out_features))]


def _norm_names(block: nn.Module) -> tuple[str | None, str | None, str | None, str | None]:
    """Names of the norms before and after attention, before and after the MLP."""
    if hasattr(block, "pre_feedforward_layernorm"):
        return "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
    if hasattr(block, "post_feedforward_layernorm") and not hasattr(block, "input_layernorm"):
        return None, "post_attention_layernorm", None, "post_feedforward_layernorm"
    return "input_layernorm", None, "post_attention_layernorm", None


def _norm(owner: nn.Module, name: str | None, held: bool) -> Norm | None:
    return None if name is None else find_norm(owner, name, held=held)


def find_norm(owner: nn.Module, name: str, *, held: bool = True) -> Norm:
    """A module's RMS norm of that name; raises `UnfitError` where it computes something else.

    What it computes is not tried out where its weight is not `held`.
    """
    module = getattr(owner, name, None)
    if not isinstance(module, nn.Module):
        raise UnfitError(f"it has no {name}")
    found = norm_of(module, held=held)
    if found is None:
        raise UnfitError(f"its {name} is no root-mean-square norm with one weight and an epsilon")
    return found


def norm_of(module: nn.Module, *, held: bool = True) -> Norm | None:
    """A module as an RMS norm; None where it is none."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if [own for own, _ in module.named_parameters()] != ["weight"] or not isinstance(eps, float):
        return None
    weight = module.get_parameter("weight").detach()
    if weight.dim() != 1 or (held and weight.dtype not in _NORM_TOLERANCE):
        return None
    if not held or weight.is_meta:
        return Norm(weight, eps)
    probe = torch.linspace(-1, 2, len(weight))[None].to(weight)
    tolerance = _NORM_TOLERANCE[weight.dtype]
    with torch.inference_mode():
        try:
            found = module(probe)
        except Exception:  # a module that looks like a norm and takes other arguments; whatever it raises, it is none
            return None
        if not isinstance(found, Tensor):
            return None
        for gemma in (False, True):
            expected = rms_norm_reference(probe, weight, eps, gemma=gemma)
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
                return Norm(weight, eps, gemma)
    return None


def _activation(mlp: nn.Module) -> str:
    activation = getattr(mlp, "act_fn", getattr(mlp, "activation_fn", None))
    probe = torch.linspace(-8, 8, 65)
    if callable(activation):
        with torch.inference_mode():
            found = activation(probe)
        if torch.allclose(found, nn.functional.silu(probe), atol=1e-6):
            return "silu"
        if torch.allclose(found, nn.functional.gelu(probe, approximate="tanh"), atol=1e-6):
            return "gelu_tanh"
    raise UnfitError("its MLP is gated neither by SiLU nor by GELU's tanh form")


def _sliding_window(attention: nn.Module) -> int:
    config, layer = getattr(attention, "config", None), getattr(attention, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    full = isinstance(layer, int) and kinds is not None and kinds[layer] == "full_attention"
    found = getattr(attention, "sliding_window", None if full else getattr(config, "sliding_window", None))
    return found if isinstance(found, int) else 0


def _check_memory(block: nn.Module, dtypes: Sequence[torch.dtype], devices: Sequence[str], *, one_dtype: bool) -> None:
    for name, parameter in block.named_parameters():
        if not parameter.is_meta and (parameter.device.type not in devices or parameter.dtype not in dtypes):
            taken = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UnfitError(f"its {name} is {parameter.dtype} on {parameter.device}, not {taken} on {devices[-1]}")
    found = {parameter.dtype for parameter in block.parameters()}
    if one_dtype and len(found) != 1:
        raise UnfitError(f"its parameters are of several dtypes ({', '.join(sorted(map(str, found)))})")


def _check_shapes(parts: BlockParts) -> None:
    hidden = parts.hidden
    fits = (
        parts.query.out_features % parts.head_dim == parts.key.out_features % parts.head_dim == 0
        and min(parts.heads, parts.kv_heads) > 0
        and parts.heads % parts.kv_heads == 0
        and parts.value.out_features == parts.key.out_features
        and parts.output.in_features == parts.query.out_features
        and parts.gate.out_features == parts.up.out_features == parts.inner
        and parts.down.out_features == hidden
        and all(part.in_features == hidden for part in (parts.query, parts.key, parts.value, parts.gate, parts.up))
    )
    if not fits:
        raise UnfitError("the shapes of its projections are not those of grouped queries and a gated MLP")
    around = (parts.attention_norm, parts.after_attention, parts.mlp_norm, parts.after_mlp)
    if any(norm is not None and len(norm.weight) != hidden for norm in around):
        raise UnfitError("its norms are not over the width of the stream")
    queries, keys = parts.query_norm, parts.key_norm
    if queries is not None and keys is not None:
        joint = parts.joint_head_norms
        heads, kv_heads = (parts.heads, parts.kv_heads) if joint else (1, 1)
        if (len(queries.weight), len(keys.weight)) != (heads * parts.head_dim, kv_heads * parts.head_dim):
            raise UnfitError("it norms queries and keys over something else than a head or all heads")
        if queries.eps != keys.eps:
            raise UnfitError("its norms of queries and keys have different epsilons")
    if len({norm.gemma for norm in parts.norms if not norm.weight.is_meta}) > 1:
        raise UnfitError("some of its norms multiply by their weight and some by 1 + weight")
    if parts.scale <= 0:
        raise UnfitError(f"it scales its scores by {parts.scale}")


def let_go(layers: Sequence[nn.Linear]) -> None:
    """Give back the memory of the weights of layers."""
    for layer in layers:
        if not layer.weight.is_meta:
            layer.weight.data = torch.empty(0)

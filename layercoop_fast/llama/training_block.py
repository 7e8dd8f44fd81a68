"""A llama-shaped block with gradients of all its parameters, on the CPU: joint projections, and C++ between them.

    block = training_block(module, call, convention)       # None where it has none
    out = block(hidden)                                    # [W, T, H], differentiable

The forward pass is that of `cpu_block.py` for whole windows. It keeps what the backward pass reads: inputs of products,
and what attention was given and made. Attention's slopes are those of `kernels/attention.py`; between products they are

    y = w · x · r,  r = 1 / rms(x):    ∂x = r (u − x r · mean(u · x r)),  u = w · ∂y,      ∂w = Σ ∂y · x r
    y = silu(g) · u:                   ∂g = ∂y · u · σ(g) (1 + g (1 − σ(g))),               ∂u = ∂y · silu(g)

and a rotation's is the opposite rotation. Queries, keys and values are one product, and so are gate and up: their joint
matrices are the parameters, of which the module's own are views.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import BlockCall, Convention
from layercoop_fast.kernels.attention import causal_attention, causal_attention_slopes
from layercoop_fast.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_slopes
from layercoop_fast.kernels.rotary import rotary_
from layercoop_fast.kernels.swiglu import swiglu, swiglu_slopes
from layercoop_fast.llama.block import BlockParts, UnfitError, find_parts
from layercoop_fast.llama.block_inputs import Rope, find_rope
from layercoop_fast.llama.projections import Projection

# How far results and gradients may be from the module's own, as a share of their Euclidean norm.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
_CHECK_SCALE = 0.125


class TrainingBlock:
    """A block that is trained; `training_block` makes and checks it.

    Args:
        parts: of the block.
        rope: of windows of one length.

    Attributes:
        parameters: by name, tensors [...]: "attention_norm", "qkv", "output", "mlp_norm", "gate_up" and "down". They
            share their memory with the module's own.

    Raises `UnfitError` for what it does not compute: biases, soft caps, sliding windows, norms of heads or of halves.
    """

    def __init__(self, parts: BlockParts, rope: Rope) -> None:
        first, second = parts.attention_norm, parts.mlp_norm
        plain = (
            first is not None
            and second is not None
            and not (first.gemma or second.gemma)
            and (parts.after_attention, parts.after_mlp, parts.query_norm, parts.key_norm) == (None,) * 4
            and all(layer.bias is None for layer in parts.layers)
            and parts.activation == "silu"
            and parts.rotates
            and parts.factor == 1
            and not parts.score_cap
            and not rope.sliding_window
        )
        if not plain or first is None or second is None:
            raise UnfitError("only blocks like Llama's have a form with gradients")
        self.parts = parts
        self.rope = rope
        self.eps = first.eps, second.eps
        projections = {
            "qkv": Projection([parts.query, parts.key, parts.value]).weight,
            "output": parts.output.weight.detach(),
            "gate_up": Projection([parts.gate, parts.up]).weight,
            "down": parts.down.weight.detach(),
        }
        norms = {"attention_norm": first.weight, "mlp_norm": second.weight}
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in {**norms, **projections}.items()}

    def __call__(self, hidden: Tensor) -> Tensor:
        """The block on hidden [W, T, H] → [W, T, H]."""
        names = ("attention_norm", "qkv", "output", "mlp_norm", "gate_up", "down")
        own = [self.parameters[name] for name in names]
        found: Tensor = _Block.apply(hidden, *own, self)  # type: ignore[no-untyped-call]
        return found


def training_block(module: nn.Module, call: BlockCall, convention: Convention) -> TrainingBlock | None:
    """The form of a block with gradients, for windows of the call's length; None where it has none.

    Results and gradients of all its parameters are compared with the module's own on random input.
    """
    try:
        parts = find_parts(module)
        block = TrainingBlock(parts, find_rope(call, convention, parts))
    except UnfitError:
        return None
    return block if _agrees(block, module, call, convention) else None


def _agrees(block: TrainingBlock, module: nn.Module, call: BlockCall, convention: Convention) -> bool:
    parts = block.parts
    shape = (1, block.rope.tokens, parts.hidden)
    random = torch.Generator().manual_seed(0)
    hidden, slope = (torch.randn(shape, generator=random).mul_(_CHECK_SCALE).to(parts.dtype) for _ in range(2))
    own = dict(module.named_parameters())
    wanted = [name for name, parameter in own.items() if parameter.requires_grad]
    with torch.enable_grad():
        given = hidden.clone().requires_grad_()
        for parameter in own.values():
            parameter.requires_grad_(True)
        whole = _out_of_inference(call).with_hidden(convention.takes, given)
        expected = convention.unwrap(module(*whole.args, **whole.kwargs))
        slopes = torch.autograd.grad(expected, [given, *own.values()], slope)
        for name, parameter in own.items():
            parameter.requires_grad_(name in wanted)
        other = hidden.clone().requires_grad_()
        result = block(other)
        found = torch.autograd.grad(result, [other, *block.parameters.values()], slope)
    joined = _joined(parts, own, dict(zip(own, slopes[1:], strict=True)))
    pairs = [(result - hidden, expected - hidden), (found[0], slopes[0])]
    pairs += [(one, joined[name]) for name, one in zip(block.parameters, found[1:], strict=True)]
    return all(_near(one.detach(), expected.detach(), TOLERANCE[parts.dtype]) for one, expected in pairs)


def _out_of_inference(call: BlockCall) -> BlockCall:
    """The same arguments, which gradients can be computed through: they were captured in inference mode."""

    def copied(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(copied, value))
        return value.clone() if isinstance(value, Tensor) else value

    return BlockCall(copied(call.args), {name: copied(value) for name, value in call.kwargs.items()})


def _joined(parts: BlockParts, own: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's gradients [...] by the names of the joint parameters."""
    by_memory = {parameter.data_ptr(): slopes[name] for name, parameter in own.items()}
    assert parts.attention_norm is not None
    assert parts.mlp_norm is not None

    def of(*linears: Any) -> Tensor:
        modules = list(dict.fromkeys(getattr(linear, "module", linear) for linear in linears))
        return torch.cat([by_memory[module.weight.data_ptr()] for module in modules])

    return {
        "attention_norm": by_memory[parts.attention_norm.weight.data_ptr()],
        "mlp_norm": by_memory[parts.mlp_norm.weight.data_ptr()],
        "qkv": of(parts.query, parts.key, parts.value),
        "output": of(parts.output),
        "gate_up": of(parts.gate, parts.up),
        "down": of(parts.down),
    }


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    difference = (found.double() - expected.double()).norm()
    return bool(difference <= tolerance * expected.double().norm() + 1e-12)


class _Block(torch.autograd.Function):
    """The block, and its gradients by hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *given: Any) -> Tensor:
        first, qkv, output, second, gate_up, down, block = given
        parts, rope = block.parts, block.rope
        x = hidden.reshape(-1, hidden.shape[-1])
        normed = rms_norm(x, first, block.eps[0])
        wide = rotary_(normed @ qkv.t(), rope.cos, rope.sin, parts.heads, parts.kv_heads)
        mixed = causal_attention(wide, rope.tokens, parts.heads, parts.kv_heads, parts.scale)
        total, fed = add_rms_norm(x, mixed @ output.t(), second, block.eps[1])
        gates = fed @ gate_up.t()
        inner = swiglu(gates)
        ctx.kept = (x, normed, wide, mixed, total, fed, gates, inner)
        ctx.save_for_backward(first, qkv, output, second, gate_up, down)
        ctx.block = block
        return torch.addmm(total, inner, down.t()).view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, normed, wide, mixed, total, fed, gates, inner = ctx.kept
        ctx.kept = None
        first, qkv, output, second, gate_up, down = ctx.saved_tensors
        block = ctx.block
        parts, rope = block.parts, block.rope
        slope = slopes[0].reshape(x.shape)
        of_down = slope.t() @ inner
        of_gates = swiglu_slopes(slope @ down, gates)
        of_gate_up = of_gates.t() @ fed
        of_total, of_second = rms_norm_slopes(of_gates @ gate_up, total, second, block.eps[1], base=slope)
        of_output = of_total.t() @ mixed
        of_wide = causal_attention_slopes(
            of_total @ output, wide, mixed, rope.tokens, parts.heads, parts.kv_heads, parts.scale
        )
        rotary_(of_wide, rope.cos, -rope.sin, parts.heads, parts.kv_heads)
        of_qkv = of_wide.t() @ normed
        of_x, of_first = rms_norm_slopes(of_wide @ qkv, x, first, block.eps[0], base=of_total)
        return of_x.view_as(slopes[0]), of_first, of_qkv, of_output, of_second, of_gate_up, of_down, None

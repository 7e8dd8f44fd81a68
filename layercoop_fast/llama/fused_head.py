"""A model's head as one product with the loss behind it, where that is all it is.

    head = fused_head(skeleton, ids)             # None where the head is not norm, linear map, scale, soft cap
    hidden = head.inputs(context, state)         # [B, T, H], what the model hands its output projection
    losses = head.losses(hidden[:, :-1], ids[:, 1:])

Everything before the output projection (final norm, scales) is the model's own code, run with a stand-in for the
projection. What comes after it is found by letting the stand-in return known logits: the model must return them as they
are, times a constant, or softly capped. Then the whole is compared with the model's own logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layercoop_fast.engine.calls import replaced_forward
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.kernels.linear_cross_entropy import linear_cross_entropy
from layercoop_fast.kernels.memory import is_native, on_gpu
from layercoop_fast.kernels.reference.head import TokenLosses
from layercoop_fast.kernels.rms_norm import rms_norm
from layercoop_fast.llama.block import Norm, UnfitError, find_norm

# How far the mean loss of the check may be from that of the model's own logits, as a share of it. In bf16 logits are
# rounded to three digits on either way, some of them to the other side.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 5e-4}
_PROBE = 64.0


@dataclass(frozen=True)
class FusedHead:
    """An output projection and what follows it: z = cap · tanh(scale · logit / cap), or scale · logit without a cap."""

    projection: nn.Linear
    scale: float
    soft_cap: float | None
    norm: Norm | None = None
    """The norm before the projection, where nothing else is before it; else None, and the model's own code runs."""

    def inputs(self, context: Context, state: Tensor) -> Tensor:
        """What the model hands its output projection for a state behind its last block: [B, T, H] → [B, T, H]."""
        if self.norm is not None:
            rows = state.reshape(-1, state.shape[-1])
            return rms_norm(rows, self.norm.weight, self.norm.eps, gemma=self.norm.gemma).view(state.shape)
        return _run(context, state, self.projection, lambda hidden: hidden.new_zeros((*hidden.shape[:-1], 1)))[0]

    def losses(self, hidden: Tensor, targets: Tensor, teacher: Tensor | None = None) -> TokenLosses:
        """Losses of rows of `inputs` (contiguous [R, H]) for the tokens that follow (int64 [R]), fp32 [R].

        With `teacher`, the inputs [R, H] of the model compared with, the divergence from it too.
        """
        bias = self.projection.bias
        return linear_cross_entropy(
            hidden,
            self.projection.weight.detach(),
            targets,
            bias=None if bias is None else bias.detach(),
            scale=self.scale,
            soft_cap=self.soft_cap,
            teacher=teacher,
        )


def fused_head(skeleton: Skeleton, ids: Tensor, *, own_norm: bool = False) -> FusedHead | None:
    """The fused form of a model's head, checked on windows `ids` (int64 [B, T]); None where it has none.

    With `own_norm` the final norm is computed here too, where it is a plain RMS norm: the model's own code around it
    takes the host milliseconds a call and may wait for a device.
    """
    projection = skeleton.model.get_output_embeddings()
    # Exactly this class: a subclass (quantised, with an adapter) computes something else from its weight.
    if type(projection) is not nn.Linear or ids.shape[1] < 2:
        return None
    tensors = list(projection.parameters())
    if not all(is_native(tensor) or on_gpu(tensor) for tensor in tensors) or not skeleton.one_device:
        return None
    context = skeleton.context(ids)
    with torch.inference_mode():
        try:
            ending = _ending(context, projection)
            norm = _final_norm(context, projection) if own_norm else None
            head = None if ending is None else FusedHead(projection, *ending, norm)
            return head if head is not None and _agrees(head, context) else None
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # a stand-in for the projection is not what this model's code expects


def _ending(context: Context, projection: nn.Linear) -> tuple[float, float | None] | None:
    """Scale and soft cap of what the model does to its logits; None where it does something else."""
    logits = torch.linspace(-_PROBE, _PROBE, 129)  # fp32, so that the model's own constants come back exactly
    _, returned = _run(context, context.embedding, projection, lambda hidden: logits.expand(*hidden.shape[:-1], -1))
    given, found = logits.double(), returned[0, 0].double()
    scale = float(found[-1] / given[-1])
    if scale > 0 and torch.allclose(found, scale * given, rtol=1e-6, atol=0):
        return scale, None
    config = context.skeleton.model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    if isinstance(cap, (int, float)) and cap > 0 and torch.allclose(found, cap * (given / cap).tanh(), rtol=1e-5):
        return 1.0, float(cap)
    return None


def _final_norm(context: Context, projection: nn.Linear) -> Norm | None:
    """The norm before the projection, where it alone makes of a state (the embedding) what the projection is handed."""
    try:
        norm = find_norm(context.skeleton.model.base_model, "norm")
    except UnfitError:
        return None
    state = context.embedding
    if norm.weight.shape != state.shape[-1:] or norm.weight.dtype != state.dtype:
        return None
    expected, _ = _run(context, state, projection, lambda hidden: hidden.new_zeros((*hidden.shape[:-1], 1)))
    rows = state.reshape(-1, state.shape[-1])
    found = rms_norm(rows, norm.weight, norm.eps, gemma=norm.gemma).view(state.shape)
    # In fp32 a GPU's reciprocal square root is off by a few of its last bits.
    places = 8 if state.dtype == torch.float32 else 2
    alike = torch.allclose(found.float(), expected.float(), rtol=places * torch.finfo(state.dtype).eps, atol=1e-6)
    return norm if alike else None


def _agrees(head: FusedHead, context: Context) -> bool:
    """Whether the losses of a state (the embedding) are those of the model's own logits."""
    targets = context.ids[:, 1:].reshape(-1)
    hidden = head.inputs(context, context.embedding)[:, :-1]
    fused = head.losses(hidden.reshape(len(targets), -1), targets).nll
    logits = context.logits(context.embedding)[:, :-1].float()
    expected = nn.functional.cross_entropy(logits.reshape(len(targets), -1), targets, reduction="none")
    return float((fused - expected).abs().mean() / expected.mean()) <= TOLERANCE[hidden.dtype]


def _run(
    context: Context, state: Tensor, projection: nn.Linear, answer: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The model behind its last block, `answer` in place of its output projection.

    Returns what the projection is handed, [B, T, H], and what the model returns.
    """
    seen: list[Tensor] = []

    def stand_in(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return answer(hidden)

    with replaced_forward([projection], lambda _: stand_in):
        logits = context.logits(state)
    if len(seen) != 1 or seen[0].shape != state.shape:
        raise ValueError("the output projection is not applied once to every position")
    return seen[0], logits

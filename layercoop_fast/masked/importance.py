"""What the full model alone says about its players: from its residual stream, and from its gradients.

Rules that rank players without masking any read these numbers. Each is one pass over the calibration tokens, counted in
`Evaluations.token_evals` like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.masks.types import Floats, Progress
from layercoop_fast.texts.text import require_windows

# What a forward and a backward pass cost, in forward passes: the backward one makes two products for each of those.
FORWARD_AND_BACKWARD = 3


def residual_stream(model: MaskedModel) -> Iterator[Tensor]:
    """The residual stream of the full model on all windows, one [W, T, H] after the other, U + 1 in all.

    First what unit 0 receives, then what each unit returns. Nothing keeps them but the caller: those of a large model
    need not fit into memory together.
    """
    context = model.windows.context(1)
    model.skeleton.expect(range(model.skeleton.n_layers))
    hidden = context.embedding
    yield hidden[: model.windows.n_windows]
    for unit in range(model.players.n_units):
        hidden = model.players.run(context, unit, hidden.clone())  # a block may write into its input
        yield hidden[: model.windows.n_windows]


def block_influence(model: MaskedModel) -> Floats:
    """1 − mean cosine between what each player's units receive and return in the full model, float64 [n].

    Averaged over all calibration tokens, summed over the units of a group; what pads windows of items is left out.
    Source: ShortGPT (arXiv 2403.03853).
    """
    filled = model.filled
    stream = residual_stream(model)
    before = next(stream)
    influence = []
    for after in stream:
        cosine = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        influence.append(1.0 - float((cosine if filled is None else cosine[filled]).mean()))
        before = after
    units = np.array(influence)
    return np.array([units[list(group)].sum() for group in model.players.groups])


def cka_distances(model: MaskedModel) -> Floats:
    """1 − CKA between what each player's units receive and return in the full model, float64 [n].

        CKA(X, Y) = ‖Yᵀ X‖² / (‖Xᵀ X‖ · ‖Yᵀ Y‖),      X, Y [tokens, H], columns centred, Frobenius norms

    CKA compares the two clouds of tokens as wholes: it is 1 for clouds that are alike up to rotation and scale, where a
    mean of cosines asks every token to stay where it is. Summed over the units of a group; what pads windows of items
    is left out. Source: Kornblith and others, arXiv 1905.00414.
    """
    filled = model.filled

    def cloud(hidden: Tensor) -> Tensor:
        tokens = (hidden.flatten(0, 1) if filled is None else hidden[filled]).double()
        return tokens - tokens.mean(dim=0)

    stream = residual_stream(model)
    before = cloud(next(stream))
    own = torch.linalg.matrix_norm(before.T @ before)
    distances = []
    for hidden in stream:
        after = cloud(hidden)
        norm = torch.linalg.matrix_norm(after.T @ after)
        distances.append(1.0 - float(torch.linalg.matrix_norm(after.T @ before) ** 2 / (own * norm)))
        before, own = after, norm
    units = np.array(distances)
    return np.array([units[list(group)].sum() for group in model.players.groups])


def angular_distances(model: MaskedModel, run_length: int) -> Floats:
    """Angle between the streams before and behind each run of `run_length` players, in half turns: float64 [n − r + 1].

        d(p) = mean over windows of arccos(cos(x_p, x_{p + r})) / π,      x_p the stream before player p

    at the last token of each window, the one that has seen all others. Only these tokens are kept. Source: Gromov and
    others, arXiv 2403.17887.

    Raises `RequestError` where players do not follow each other in the model without a gap.
    """
    require_windows(model.text, "angular distances")
    groups = model.players.groups
    units = [unit for group in groups for unit in group]
    if units != list(range(units[0], units[0] + len(units))):
        raise RequestError(
            "angular distances belong to runs of players that follow each other in the model: these groups do not"
        )
    last = np.stack([hidden[:, -1].double().cpu().numpy() for hidden in residual_stream(model)])
    last /= np.linalg.norm(last, axis=-1, keepdims=True)
    borders = [group[0] for group in groups] + [units[-1] + 1]
    before, behind = last[borders[:-run_length]], last[borders[run_length:]]
    cosine = (before * behind).sum(axis=-1).clip(-1.0, 1.0)
    distances: Floats = np.arccos(cosine).mean(axis=1) / np.pi
    return distances


def taylor_importance(model: MaskedModel, progress: Progress | None = None) -> Floats:
    """First-order estimate of what zeroing each player's weights does to the loss, weight by weight: float64 [n].

        importance(p) = Σ_w |w · ∂L/∂w|,   w over all parameters of the player, L the mean NLL over all windows

    One forward and one backward pass of the model's own modules, window by window; gradients of all blocks are held at
    once, in the model's dtype. For halves of blocks, the parameters of the attention or MLP module count; the norm
    before it does not. Source: Shortened LLaMA, arXiv 2402.02834 (without its rule that the first four and the last two
    blocks stay).

    Raises `RequestError` where the weights are not in memory.
    """
    require_windows(model.text, "gradients")
    owners = [_owner(model, unit) for unit in range(model.players.n_units)]
    module, windows = model.skeleton.model, model.windows
    if any(parameter.is_meta for parameter in module.parameters()):
        raise RequestError("the Taylor rule needs gradients, so all weights in memory: this model's are not")
    with torch.inference_mode(False), torch.enable_grad(), _gradients_of(module, owners):
        for window in range(windows.n_windows):
            ids = windows.ids[window : window + 1]
            pictures = {} if windows.pictures is None else windows.pictures.part(window, window + 1, windows.n_windows)
            logits = module(input_ids=ids, use_cache=False, **pictures).logits
            loss = windows.means(token_nll(logits, ids)[:, windows.scored], window).sum() / windows.n_windows
            loss.backward()  # type: ignore[no-untyped-call]
            if progress is not None:
                progress("windows forward and backward", window + 1, windows.n_windows)
        units = np.array([_salience(owner) for owner in owners])
    return np.array([units[list(group)].sum() for group in model.players.groups])


def _owner(model: MaskedModel, unit: int) -> nn.Module:
    """The module whose parameters are a unit's."""
    sublayers = model.players.sublayers
    if sublayers is None:
        return model.skeleton.blocks[unit]
    layer, part = divmod(unit, 2)
    halves = sublayers.halves[layer]
    return model.skeleton.blocks[layer].get_submodule(halves.attn if part == 0 else halves.mlp)


def _salience(owner: nn.Module) -> float:
    """Σ |w · ∂L/∂w| over a module's parameters; a parameter that no token reached (an idle expert) adds nothing."""
    total = 0.0
    for parameter in owner.parameters():
        if parameter.grad is not None:
            product = parameter.detach().float() * parameter.grad.float()
            total += float(product.abs_().sum(dtype=torch.float64))
    return total


@contextmanager
def _gradients_of(model: nn.Module, owners: list[nn.Module]) -> Iterator[None]:
    """Gradients for the parameters of `owners` alone, none before and none left; who wants them is put back."""
    wanted = {parameter for owner in owners for parameter in owner.parameters() if parameter.is_floating_point()}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(parameter in wanted)
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad

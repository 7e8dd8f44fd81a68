"""Width pruning: heads and MLP channels with the least fluctuation go, and a bias replaces their mean.

    rival = flap(game, n_params)               # as many parameters as the removed layers have
    rival.removed_params                       # exactly, at most one channel less than asked
    rival.window_nll(unseen.windows.ids)       # float64 [W], comparable with a game's

A baseline to compare layer pruning with; nothing is exported. The score of input channel j of an output projection W
(of attention, or of the MLP) is what would be lost if the channel were replaced by its mean over the calibration text:

    s_j = var(x_j) · Σ_i W_ij²,        var with N − 1 over the N calibration tokens

A head's score is the mean over its channels. To be comparable between projections, scores are standardised within each:
(s − mean) / std. Then the heads and channels with the lowest scores in all blocks go, until enough parameters are
removed. Each is replaced by its mean, which the bias W · mean of the pruned projection adds.

A head is a key-value head with all query heads that share it, since only such a group can be removed. With a head go
its rows of the query, key and value projections and its columns of the output projection; with a channel go its rows of
gate and up and its column of down, biases included. New biases of output projections count as kept parameters.

Source: FLAP, arXiv 2312.11983, with weighted input feature variance and its adaptive structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.llama.block import BlockParts, LinearRows, UnfitError, find_parts
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.masks.types import Floats, Masks


@dataclass(frozen=True, eq=False)
class Projection:
    """An output projection, seen as groups of input channels that go together.

    Attributes:
        linear: the projection, [out, in].
        group: number of consecutive channels in each group (1 in an MLP).
        cost: parameters that go with one group.
        new_bias: parameters of the bias that it gets once a group goes.
    """

    linear: nn.Linear
    group: int
    cost: int
    new_bias: int

    @property
    def n_groups(self) -> int:
        """Groups of input channels."""
        return self.linear.in_features // self.group


@dataclass(frozen=True, eq=False)
class Fluctuation:
    """Mean and variance (N − 1) of the input channels of one projection over all calibration tokens, float64 [in]."""

    mean: Floats
    variance: Floats


@dataclass(frozen=True, eq=False)
class WidthPruned:
    """A model some of whose heads and channels are replaced by their means while it is measured.

    Attributes:
        model: the full model, unchanged.
        projections: of attention and MLP in turn, block by block.
        kept: for each projection the groups that stay, bool [groups].
        means: for each projection the mean of every input channel, float64 [in].
        removed_params: parameters that a model without them would lack, minus the new biases.
    """

    model: nn.Module
    projections: list[Projection]
    kept: list[Masks]
    means: list[Floats]
    removed_params: int

    def window_nll(self, ids: Tensor) -> Floats:
        """Mean NLL of each window of `ids` (int64 [W, T]), every position scored: float64 [W]."""
        with ExitStack() as stack, torch.inference_mode():
            for projection, kept, mean in zip(self.projections, self.kept, self.means, strict=True):
                if not kept.all():
                    stack.enter_context(_handed(projection.linear, _fixed(projection, kept, mean)))
            losses = [
                token_nll(self.model(input_ids=row, use_cache=False).logits, row).double() for row in ids[:, None]
            ]
        return np.array([float(loss.mean()) for loss in losses])


def flap(game: ModelGame, n_params: int) -> WidthPruned:
    """Prune heads and channels that hold at most `n_params` parameters, and at least that minus one channel.

    The statistics are of the game's calibration windows: one pass, counted in `token_evals`.

    Raises `RequestError` for a model whose blocks are not llama-shaped or not in memory, and where heads and channels
    hold fewer parameters.
    """
    if game.masked.skeleton.streamed is not None:
        raise RequestError("width pruning needs all weights in memory: this model's blocks are read from files")
    projections = find_projections(game)
    fluctuations = measure_fluctuation(game, projections)
    scores = [standardised(group_scores(one, two)) for one, two in zip(projections, fluctuations, strict=True)]
    kept, removed = choose(projections, scores, n_params)
    return WidthPruned(game.checkpoint.model, projections, kept, [one.mean for one in fluctuations], removed)


def find_projections(game: ModelGame) -> list[Projection]:
    """The output projections of attention and MLP of every block in turn; `RequestError` where a block has none."""
    found = []
    for layer, block in enumerate(game.masked.skeleton.blocks):
        try:
            parts = find_parts(block)
        except UnfitError as reason:
            raise RequestError(
                f"width pruning is for llama-shaped models, and block {layer} is not one: {reason}"
            ) from reason
        if parts.joint_head_norms:
            raise RequestError(
                f"width pruning takes heads away one by one, and block {layer} norms all its heads together"
            )
        found += _projections_of(parts)
    return found


def _projections_of(parts: BlockParts) -> list[Projection]:
    width = parts.heads // parts.kv_heads * parts.head_dim

    def rows(linear: LinearRows, count: int) -> int:
        return count * (linear.in_features + (linear.bias is not None))

    def bias(linear: nn.Linear) -> int:
        return linear.out_features if linear.bias is None else 0

    head = rows(parts.query, width) + rows(parts.key, parts.head_dim) + rows(parts.value, parts.head_dim)
    head += width * parts.output.out_features
    channel = rows(parts.gate, 1) + rows(parts.up, 1) + parts.down.out_features
    return [
        Projection(parts.output, width, head, bias(parts.output)),
        Projection(parts.down, 1, channel, bias(parts.down)),
    ]


def measure_fluctuation(game: ModelGame, projections: list[Projection]) -> list[Fluctuation]:
    """Mean and variance of the inputs of each projection over all tokens of the game's windows, float64 [in] each."""
    sums = [np.zeros((2, one.linear.in_features)) for one in projections]

    def adding(total: Floats) -> Callable[[Tensor], Tensor]:
        def add(x: Tensor) -> Tensor:
            rows = x.double().reshape(-1, x.shape[-1])
            total[0] += rows.sum(0).cpu().numpy()
            total[1] += (rows * rows).sum(0).cpu().numpy()
            return x

        return add

    ids = game.masked.windows.ids
    with ExitStack() as stack, torch.inference_mode():
        for projection, total in zip(projections, sums, strict=True):
            stack.enter_context(_handed(projection.linear, adding(total)))
        for row in ids[:, None]:
            game.checkpoint.model(input_ids=row, use_cache=False)
    game.charge(game.masked.players.n_units)
    count = ids.numel()
    means = [total[0] / count for total in sums]
    variances = [np.maximum(t[1] - count * m * m, 0.0) / (count - 1) for t, m in zip(sums, means, strict=True)]
    return [Fluctuation(mean, variance) for mean, variance in zip(means, variances, strict=True)]


def group_scores(projection: Projection, fluctuation: Fluctuation) -> Floats:
    """Score of each group, float64 [groups]: the mean over its channels of variance times squared column norm."""
    columns = projection.linear.weight.detach().double().square().sum(0).cpu().numpy()
    scores: Floats = (fluctuation.variance * columns).reshape(projection.n_groups, -1).mean(axis=1)
    return scores


def standardised(scores: Floats) -> Floats:
    """Scores (float64 [groups]) as (s − mean) / std with N − 1; zeros where all are equal, also for a single one."""
    spread = scores.std(ddof=1) if len(scores) > 1 else 0.0
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))


def choose(projections: list[Projection], scores: list[Floats], n_params: int) -> tuple[list[Masks], int]:
    """The groups that stay, bool [groups] for each projection, and the parameters of the others, at most `n_params`.

    In the order of their scores (float64 [groups] each), groups go if they still fit: channels may fit where heads no
    longer do.
    """
    most = sum(one.n_groups * one.cost - one.new_bias for one in projections)
    if not 0 < n_params <= most:
        raise RequestError(f"heads and channels hold {most} parameters: 1 to {most} can go, not {n_params}")
    kept = [np.ones(one.n_groups, dtype=np.bool_) for one in projections]
    owner = np.repeat(np.arange(len(projections)), [one.n_groups for one in projections])
    place = np.concatenate([np.arange(one.n_groups) for one in projections])
    left = n_params
    for entry in np.argsort(np.concatenate(scores), kind="stable").tolist():
        which = int(owner[entry])
        cost = projections[which].cost - (projections[which].new_bias if kept[which].all() else 0)
        if cost <= left:
            kept[which][place[entry]] = False
            left -= cost
    return kept, n_params - left


def _fixed(projection: Projection, kept: Masks, mean: Floats) -> Callable[[Tensor], Tensor]:
    """A function that replaces the removed channels by their mean."""
    stays = torch.from_numpy(np.repeat(kept, projection.group))
    weight = projection.linear.weight
    stays, instead = stays.to(weight.device), torch.from_numpy(mean).to(weight)
    return lambda x: torch.where(stays, x, instead)


@contextmanager
def _handed(linear: nn.Linear, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, `linear` is handed `change(x)` instead of x."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    handle = linear.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()

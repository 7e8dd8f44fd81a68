"""Surrogate networks: values of masks, marginals of players, and all masks; ours and torch on the GPU, ours in C++.

torch computes every pre-activation again, in pieces that fit into memory. Of all masks it computes one piece, and its
time is that of the piece times the number of pieces. The share of the peak is that of the
instructions that docs/kernels.md counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from chips import Bench, raise_again, wall
from parts import Rows
from torch import Tensor

from layercoop_fast.kernels import surrogate as native
from layercoop_fast.kernels.gpu import surrogate as gpu
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.shapley.enumeration import enumerate_masks

# Masks whose pre-activations torch holds at a time: 1 GB for one network, 33 MB a player for the ensemble.
_PIECE, _PIECE_OF_MARGINALS = 1 << 22, 1 << 11
# 2^40 masks by C++ would take an hour.
_MOST_NATIVE = 32


def random_networks(players: int, ensemble: int = 1, hidden: int | None = None) -> Networks:
    """Networks of the published shape, 2n hidden units, with weights as small as fitted ones."""
    rng, hidden = np.random.default_rng(0), hidden or 2 * players
    shapes = ((ensemble, hidden, players), (ensemble, hidden), (ensemble, hidden), (ensemble,))
    return Networks(*(rng.normal(0, 0.2, shape).astype(np.float32) for shape in shapes))


@dataclass(frozen=True)
class _Case:
    """A computation: its ways, and how many operations in fp32 it takes.

    Attributes:
        times: by how much the time of a way is multiplied that does a share of it only.
    """

    what: str
    operations: int
    ways: dict[str, Callable[[], object]]
    calls: int = 3
    times: dict[str, int] = field(default_factory=dict)


def rows(bench: Bench) -> Rows:
    """A row for each implementation of each computation: the fastest of some calls."""
    players, value_masks, marginal_masks = (8, 40, 10) if bench.tiny else (32, 1 << 20, 80_000)
    cases: list[Callable[[], _Case]] = []
    for ensemble in (1, 2) if bench.tiny else (1, 8):
        networks = random_networks(players, ensemble)
        masks = np.random.default_rng(1).random((value_masks, players)) < 0.7
        cases.append(partial(_values, networks, masks, bench))
        cases.append(partial(_marginals, networks, masks[:marginal_masks], bench))
    for n in (6,) if bench.tiny else (30, 32, 40) if bench.long else (30, 32):
        cases += [partial(_enumerated, n, bench), partial(_enumerated_whole, n, bench)]
    for number, make in enumerate(cases):
        try:
            case = make()
        except Exception as problem:
            yield f"case {number}", partial(raise_again, problem)
            continue
        for way in case.ways:
            yield f"{case.what}: {way}", partial(_measured, case, way, bench)


def _measured(case: _Case, way: str, bench: Bench) -> dict[str, Any]:
    work, calls = case.ways[way], 1 if bench.tiny or way == "C++" else case.calls
    if calls > 1:
        work()
    time = min(wall(work) for _ in range(calls)) * case.times.get(way, 1)
    figures: dict[str, Any] = {"seconds": time}
    if bench.peak is not None and way == "ours":
        figures["share of fp32 peak"] = case.operations / bench.peak.plain / time
    return figures


def _values(networks: Networks, masks: np.ndarray, bench: Bench) -> _Case:
    there, sent = gpu.DeviceNetworks.of(networks, bench.device), torch.from_numpy(masks).to(bench.device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    compiled = _compiled(_logits, bench.compiler)
    expected = native.predict_logits(networks, masks[:1000])
    logits = torch.empty(len(masks), networks.n_networks, device=bench.device)

    def ours() -> Tensor:
        gpu.launch_logits(there, sent, logits)
        return logits

    assert np.allclose(ours()[:1000].cpu(), expected, atol=1e-4), "values differ"
    assert np.allclose(_logits(sent[:1000], *weights).cpu(), expected, atol=1e-4), "values by torch differ"
    return _Case(
        f"values of {_shape(networks, len(masks))}",
        2 * masks.size * networks.n_networks * networks.n_hidden,
        {
            "ours": ours,
            "torch": lambda: [_logits(piece, *weights) for piece in sent.split(_PIECE)],
            "torch.compile": lambda: [compiled(piece, *weights) for piece in sent.split(_PIECE)],
            "C++": lambda: native.predict_logits(networks, masks),
        },
    )


def _marginals(networks: Networks, masks: np.ndarray, bench: Bench) -> _Case:
    there, sent = gpu.DeviceNetworks.of(networks, bench.device), torch.from_numpy(masks).to(bench.device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    compiled = _compiled(_gains, bench.compiler)
    pieces = sent.split(_PIECE_OF_MARGINALS)
    expected = native.marginals(networks, masks)[0]
    by_torch = torch.stack([_gains(piece, *weights) for piece in pieces]).sum(0) / len(masks)
    for mean in (gpu.launch_marginals(there, sent)[0] / len(masks), by_torch):
        assert np.allclose(mean.cpu(), expected, rtol=1e-3, atol=1e-6), "marginals differ from those of C++"
    return _Case(
        f"marginals of {_shape(networks, len(masks))}",
        9 * masks.size * networks.n_networks * networks.n_hidden,
        {
            "ours": lambda: gpu.launch_marginals(there, sent),
            "torch": lambda: [_gains(piece, *weights) for piece in pieces],
            "torch.compile": lambda: [compiled(piece, *weights) for piece in pieces],
            "C++": lambda: native.marginals(networks, masks),
        },
    )


def _enumerated(n: int, bench: Bench) -> _Case:
    """All 2ⁿ masks: sums by size and player."""
    networks = random_networks(n)
    there = gpu.DeviceNetworks.of(networks, bench.device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    piece = min(_PIECE, 2**n)
    codes = torch.arange(piece, device=bench.device)
    if bench.tiny or n == 30:
        means = enumerate_masks(networks, device="cuda").means
        assert np.allclose(means, enumerate_masks(networks).means, rtol=1e-4, atol=1e-6), "means differ from C++'s"
    case = _whole(n, bench, {})
    for way, sums in (("torch", _sums_by_size), ("torch.compile", _compiled(_sums_by_size, bench.compiler))):
        name = way if piece == 2**n else f"{way} (2^{piece.bit_length() - 1} of them, times 2^{n} / that)"
        case.ways[name] = lambda s=sums: s(codes, n, *weights)  # type: ignore[misc]
        case.times[name] = 2**n // piece
    return case


def _enumerated_whole(n: int, bench: Bench) -> _Case:
    """All 2ⁿ masks: with sums by pair and the ten best masks of each size too."""
    return _whole(n, bench, {"interactions": True, "top": 10})


def _whole(n: int, bench: Bench, extras: dict[str, Any]) -> _Case:
    networks = random_networks(n)
    if not bench.tiny:  # kernels are compiled on fewer players of a network as wide
        enumerate_masks(random_networks(28, hidden=networks.n_hidden), device="cuda", **extras)
    ways: dict[str, Callable[[], object]] = {"ours": lambda: enumerate_masks(networks, device="cuda", **extras)}
    if bench.tiny or (bench.long and n <= _MOST_NATIVE):
        ways["C++"] = lambda: enumerate_masks(networks, **extras)
    operations = 2**n * (14 * networks.n_networks * networks.n_hidden + (72 if extras else 40))
    what = f"all 2^{n} masks, {networks.n_hidden} units" + (", pairs and best" if extras else "")
    return _Case(what, operations, ways, calls=2 if n <= _MOST_NATIVE else 1)


def _shape(networks: Networks, masks: int) -> str:
    return f"{masks:,} masks of {networks.n_players}, {networks.n_networks} × {networks.n_hidden} units"


def _logits(masks: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """z_e(m), by torch: [M, n] → [M, E]."""
    inner = torch.einsum("mi,ehi->meh", masks.float(), w) + b
    return torch.einsum("meh,eh->me", torch.nn.functional.celu(inner), v) + c


def _gains(masks: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Sums over masks of what each player adds, by torch: [M, n] → float64 [n]."""
    kept = masks.float()
    inner = torch.einsum("mi,ehi->meh", kept, w) + b
    sign = 1 - 2 * kept
    moved = inner[:, None] + sign[:, :, None, None] * w.permute(2, 0, 1)[None]
    values, flipped = (torch.sigmoid((torch.nn.functional.celu(x) * v).sum(-1) + c).mean(-1) for x in (inner, moved))
    return (sign * (flipped - values[:, None])).sum(0, dtype=torch.float64)


def _sums_by_size(codes: Tensor, n: int, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Sums of f over the masks of these codes by size, by torch: [M] → float64 [n + 1]."""
    kept = (codes[:, None] >> torch.arange(n, device=codes.device)) & 1
    values = torch.sigmoid(_logits(kept, w, b, v, c)).mean(-1)
    return values.new_zeros(n + 1, dtype=torch.float64).index_add_(0, kept.sum(-1), values.double())


def _compiled(function: Callable[..., Tensor], compiler: str | None) -> Callable[..., Tensor]:
    return function if compiler is None else torch.compile(function, dynamic=False, backend=compiler)

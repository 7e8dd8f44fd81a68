"""Surrogate networks: values of masks, marginals of players, and all masks; ours and torch on the GPU, ours in C++.

torch computes every pre-activation again, in pieces that fit into memory. Of all masks it computes one piece, and its
time is that of the piece times the number of pieces. The share of the peak is that of the
instructions that docs/kernels.md counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from chips import Peak, wall
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


def bench(device: torch.device, *, tiny: bool, peak: Peak | None, compiler: str | None) -> list[dict[str, Any]]:
    """Seconds that each implementation takes for each computation, the fastest of three calls."""
    players, value_masks, marginal_masks = (8, 40, 10) if tiny else (32, 1 << 20, 80_000)
    found = []
    for ensemble in (1, 2) if tiny else (1, 8):
        networks = random_networks(players, ensemble)
        masks = np.random.default_rng(1).random((value_masks, players)) < 0.7
        found += [
            _values(networks, masks, device, compiler),
            _marginals(networks, masks[:marginal_masks], device, compiler),
        ]
    for n in (6,) if tiny else (30, 32, 40):
        found += _enumerated(n, device, compiler, tiny=tiny)
    for row in found:
        if peak is not None and isinstance(ours := row["seconds"]["ours"], float):
            row["share_of_peak"] = row["operations"] / peak.plain / ours
    return found


def _timed(what: str, operations: int, ways: dict[str, Callable[[], object]], calls: int = 3) -> dict[str, Any]:
    seconds: dict[str, float | str] = {}
    for way, work in ways.items():
        try:
            if torch.cuda.is_available():
                work()
            seconds[way] = min(wall(work) for _ in range(calls if torch.cuda.is_available() else 1))
        except Exception as problem:  # the figures of the other implementations are kept
            seconds[way] = f"failed: {type(problem).__name__}: {problem}"[:300]
    return {"what": what, "operations": operations, "seconds": seconds}


def _values(networks: Networks, masks: np.ndarray, device: torch.device, compiler: str | None) -> dict[str, Any]:
    there, sent = gpu.DeviceNetworks.of(networks, device), torch.from_numpy(masks).to(device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    compiled = _compiled(_logits, compiler)
    expected = native.predict_logits(networks, masks[:1000])
    logits = torch.empty(len(masks), networks.n_networks, device=device)

    def ours() -> Tensor:
        gpu.launch_logits(there, sent, logits)
        return logits

    assert np.allclose(ours()[:1000].cpu(), expected, atol=1e-4), "values differ"
    assert np.allclose(_logits(sent[:1000], *weights).cpu(), expected, atol=1e-4), "values by torch differ"
    return _timed(
        f"values of {_shape(networks, len(masks))}",
        2 * masks.size * networks.n_networks * networks.n_hidden,
        {
            "ours": ours,
            "torch": lambda: [_logits(piece, *weights) for piece in sent.split(_PIECE)],
            "torch.compile": lambda: [compiled(piece, *weights) for piece in sent.split(_PIECE)],
            "C++": lambda: native.predict_logits(networks, masks),
        },
    )


def _marginals(networks: Networks, masks: np.ndarray, device: torch.device, compiler: str | None) -> dict[str, Any]:
    there, sent = gpu.DeviceNetworks.of(networks, device), torch.from_numpy(masks).to(device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    compiled = _compiled(_gains, compiler)
    pieces = sent.split(_PIECE_OF_MARGINALS)
    expected = native.marginals(networks, masks)[0]
    by_torch = torch.stack([_gains(piece, *weights) for piece in pieces]).sum(0) / len(masks)
    for mean in (gpu.launch_marginals(there, sent)[0] / len(masks), by_torch):
        assert np.allclose(mean.cpu(), expected, rtol=1e-3, atol=1e-6), "marginals differ from those of C++"
    return _timed(
        f"marginals of {_shape(networks, len(masks))}",
        9 * masks.size * networks.n_networks * networks.n_hidden,
        {
            "ours": lambda: gpu.launch_marginals(there, sent),
            "torch": lambda: [_gains(piece, *weights) for piece in pieces],
            "torch.compile": lambda: [compiled(piece, *weights) for piece in pieces],
            "C++": lambda: native.marginals(networks, masks),
        },
    )


def _enumerated(n: int, device: torch.device, compiler: str | None, *, tiny: bool) -> list[dict[str, Any]]:
    """All 2ⁿ masks: sums by size and player; then with sums by pair and the ten best masks of each size too."""
    networks = random_networks(n)
    there = gpu.DeviceNetworks.of(networks, device)
    weights = (there.hidden_weight, there.hidden_bias, there.output_weight, there.output_bias)
    piece = min(_PIECE, 2**n)
    compiled = _compiled(_sums_by_size, compiler)
    # Kernels are compiled on fewer players of a network as wide.
    extras: dict[str, Any] = {"interactions": True, "top": 10}
    if not tiny:
        few = random_networks(28, hidden=networks.n_hidden)
        for options in ({}, extras):
            enumerate_masks(few, device="cuda", **options)
    ways: dict[str, Callable[[], object]] = {"ours": lambda: enumerate_masks(networks, device="cuda")}
    if n <= _MOST_NATIVE:
        ways["C++"] = lambda: enumerate_masks(networks)
    operations = 2**n * (14 * networks.n_networks * networks.n_hidden + 40)
    row = _once(f"all 2^{n} masks, {networks.n_hidden} units", operations, ways)
    codes = torch.arange(piece, device=device)
    for way, sums in (("torch", _sums_by_size), ("torch.compile", compiled)):
        name = way if piece == 2**n else f"{way} (2^{piece.bit_length() - 1} of them, times 2^{n} / that)"
        timed = _timed("", 0, {name: lambda s=sums: s(codes, n, *weights)})["seconds"][name]
        row["seconds"][name] = timed * (2**n // piece) if isinstance(timed, float) else timed
    if tiny or n == 30:
        means = enumerate_masks(networks, device="cuda").means
        assert np.allclose(means, enumerate_masks(networks).means, rtol=1e-4, atol=1e-6), "means differ from C++'s"
    whole: dict[str, Callable[[], object]] = {"ours": lambda: enumerate_masks(networks, device="cuda", **extras)}
    if n <= _MOST_NATIVE:
        whole["C++"] = lambda: enumerate_masks(networks, **extras)
    extended = _once(f"all 2^{n} masks, {networks.n_hidden} units, pairs and best", operations + 32 * 2**n, whole)
    return [row, extended]


def _once(what: str, operations: int, ways: dict[str, Callable[[], object]]) -> dict[str, Any]:
    """As `_timed`, each way called once: it takes long enough."""
    seconds: dict[str, float | str] = {}
    for way, work in ways.items():
        try:
            seconds[way] = wall(work)
        except Exception as problem:
            seconds[way] = f"failed: {type(problem).__name__}: {problem}"[:300]
    return {"what": what, "operations": operations, "seconds": seconds}


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

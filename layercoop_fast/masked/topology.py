"""How much of the shape of its tokens' cloud a block leaves as it was: zigzag persistence between its two sides.

A cloud becomes a complex: edges from each token to its nearest ones, and the triangles among these edges. Two complexes
over the same tokens share a third, their intersection, and along

    complex before  ⊇  intersection  ⊆  complex behind

a component or a loop either lives on both ends or on one (a bar of zigzag persistence). Bars over a whole stack of
layers, cut down to two neighbours, are the bars of those two, so each block is looked at by itself.

Source: Gardinazzi and others, arXiv 2410.11042, and on vision-language models arXiv 2604.16502. The bars are those of
dionysus (extra `[topology]`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.importance import residual_stream
from layercoop_fast.masked.model import MaskedModel
from layercoop_fast.masks.types import Floats

Complex: TypeAlias = set[tuple[int, ...]]

# Tokens of a cloud, taken evenly from all windows, and the neighbours that each is joined to.
TOKENS = 256
NEIGHBOURS = 8


def zigzag_changes(model: MaskedModel) -> Floats:
    """1 − (components and loops on both sides of a player) / (those on either side), float64 [n].

    From one pass of the full model; summed over the units of a group; what pads windows of items is left out.

    Raises `RequestError` where dionysus is not installed.
    """
    filled = model.filled
    before: Complex | None = None
    changes = []
    for hidden in residual_stream(model):
        tokens = hidden.flatten(0, 1) if filled is None else hidden[filled]
        picked = np.unique(np.linspace(0, len(tokens) - 1, min(TOKENS, len(tokens))).astype(int))
        cloud = tokens[picked.tolist()].double().cpu().numpy()
        complex_ = neighbour_complex(cloud, NEIGHBOURS)
        if before is not None:
            first, second, both = shared_features(before, complex_)
            changes.append(1.0 - both / (first + second - both))
        before = complex_
    units = np.array(changes)
    return np.array([units[list(group)].sum() for group in model.players.groups])


def neighbour_complex(cloud: Floats, neighbours: int) -> Complex:
    """Vertices, edges and triangles of a cloud, float64 [N, H]: an edge where one token is among the other's nearest.

    The first of equally far tokens count as nearest, so the answer is always the same. Cells are sorted tuples.
    """
    squares = (cloud * cloud).sum(axis=1)
    distances = squares[:, None] + squares - 2 * (cloud @ cloud.T)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(neighbours, len(cloud) - 1)]
    joined: list[set[int]] = [set() for _ in cloud]
    for token, others in enumerate(nearest.tolist()):
        for other in others:
            joined[token].add(other)
            joined[other].add(token)
    cells: Complex = {(token,) for token in range(len(cloud))}
    for one, others in enumerate(joined):
        for two in (other for other in others if other > one):
            cells.add((one, two))
            cells.update((one, two, three) for three in others & joined[two] if three > two)
    return cells


def shared_features(before: Complex, after: Complex) -> tuple[int, int, int]:
    """How many components and loops (over Z/2) the one complex has, the other has, and both share in the zigzag.

    Raises `RequestError` where dionysus is not installed.
    """
    try:
        import dionysus
    except ImportError as error:
        raise RequestError("zigzag needs the extra: pip install 'layercoop-fast[topology]'") from error
    # Time 0 is the complex before, 1 the intersection, 2 the complex behind: the times at which a cell comes and goes.
    times = {cell: ([0.0] if cell in after else [0.0, 0.5]) if cell in before else [1.5] for cell in before | after}
    cells = dionysus.Filtration([list(cell) for cell in sorted(times, key=lambda cell: (len(cell), cell))])
    cone = dionysus.fast_zigzag(cells, [times[tuple(sorted(cell))] for cell in cells])
    pairs = dionysus.homology_persistence(cone, method="column")
    first = second = both = 0
    # For components and loops; cavities are left out, since the cells that could fill them are.
    for bars in dionysus.init_zigzag_diagrams(pairs, cone)[:2]:
        for bar in (bar for kind in bars.values() for bar in kind):
            lives_before, lives_after = bar.birth <= 0, bar.death > 2
            first, second, both = first + lives_before, second + lives_after, both + (lives_before and lives_after)
    return first, second, both

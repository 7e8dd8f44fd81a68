"""Zigzag persistence between a block's two sides as what decides that it can go."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from toy_games import Influential

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.topology import Complex, neighbour_complex, shared_features
from layercoop_fast.search import zigzag
from layercoop_fast.texts.calibration import Calibration


def test_removes_the_blocks_that_change_least() -> None:
    choice = zigzag.search(Influential(10, [2, 3, 7]), 3)
    assert np.flatnonzero(~choice.mask).tolist() == [2, 3, 7]
    assert choice.n_masks == 0


def test_edges_join_nearest_tokens_and_triangles_fill_what_is_joined_all_round() -> None:
    """Five points on a line at 0, 1, 3, 7, 8: who is nearest is seen at a glance."""
    line = np.array([[0.0], [1.0], [3.0], [7.0], [8.0]])
    vertices = {(i,) for i in range(5)}
    assert neighbour_complex(line, 1) == vertices | {(0, 1), (1, 2), (3, 4)}
    assert neighbour_complex(line, 2) == vertices | {
        (0, 1),
        (0, 2),
        (1, 2),
        (2, 3),
        (2, 4),
        (3, 4),
        (0, 1, 2),
        (2, 3, 4),
    }
    assert len(neighbour_complex(line, 9)) == 5 + 10 + 10


def test_the_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dionysus", None)
    with pytest.raises(RequestError, match=r"pip install 'layercoop-fast\[topology\]'"):
        shared_features({(0,)}, {(0,)})


@pytest.mark.needs("dionysus")
@pytest.mark.parametrize("seed", range(8))
def test_features_against_linear_algebra(seed: int) -> None:
    """Of A ⊇ I ⊆ B, both ends share rank f + rank g − rank (f, g) classes, f and g the maps from the homology of I."""
    draw = np.random.default_rng(seed)
    one, other = (_random_complex(draw) for _ in range(2))
    shared = one & other
    wanted = np.zeros(3, int)
    for dimension in (0, 1):
        for place, complex_ in enumerate((one, other)):
            cycles, filled = _cycles(complex_, dimension), _boundaries(complex_, dimension)
            wanted[place] += (len(cycles) // len(filled)).bit_length() - 1
        cycles = _cycles(shared, dimension)
        in_one, in_other = (cycles & _boundaries(complex_, dimension) for complex_ in (one, other))
        sizes = [len(group).bit_length() - 1 for group in (cycles, in_one, in_other, in_one & in_other)]
        wanted[2] += sizes[0] - sizes[1] - sizes[2] + sizes[3]
    assert shared_features(one, other) == tuple(wanted)
    assert 0 < wanted[2] < wanted[:2].sum()


@pytest.mark.needs("dionysus")
def test_on_a_model() -> None:
    """As many numbers as players, none for a block that does nothing; one pass."""
    ids = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(0))
    model = tiny_model("llama", 3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    game = ModelGame(Checkpoint(model, tiny_tokenizer(), "llama"), Calibration(ids, "t"))
    changes = game.zigzag_changes()
    assert changes[1] == 0
    assert (changes[[0, 2]] > 0).all()
    assert (changes < 1).all()
    assert game.evaluations.token_evals == 3 * ids.numel()
    assert zigzag.search(game, 1).mask.tolist() == [True, False, True]


def _random_complex(draw: np.random.Generator) -> Complex:
    """On five vertices, with some edges and some of the triangles that these allow."""
    edges = {edge for edge in combinations(range(5), 2) if draw.random() < 0.75}
    triangles = {
        corners
        for corners in combinations(range(5), 3)
        if set(combinations(corners, 2)) <= edges and draw.random() < 0.4
    }
    return {(i,) for i in range(5)} | edges | triangles


def _chains(complex_: Complex, dimension: int) -> list[frozenset[tuple[int, ...]]]:
    """All sets of cells of the dimension: chains over Z/2."""
    cells = sorted(cell for cell in complex_ if len(cell) == dimension + 1)
    return [frozenset(some) for size in range(len(cells) + 1) for some in combinations(cells, size)]


def _boundary(chain: frozenset[tuple[int, ...]]) -> frozenset[tuple[int, ...]]:
    sides: frozenset[tuple[int, ...]] = frozenset()
    for cell in chain:
        sides ^= frozenset(combinations(cell, len(cell) - 1)) if len(cell) > 1 else frozenset()
    return sides


def _cycles(complex_: Complex, dimension: int) -> set[frozenset[tuple[int, ...]]]:
    return {chain for chain in _chains(complex_, dimension) if not _boundary(chain)}


def _boundaries(complex_: Complex, dimension: int) -> set[frozenset[tuple[int, ...]]]:
    return {_boundary(chain) for chain in _chains(complex_, dimension + 1)}

"""Trees of tokens: packed without loss, and refused where a model's blocks would see them as something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.trees import check_trees
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import FastUnits
from layercoop_fast.masked.windows import Windows
from layercoop_fast.texts.token_tree import Packs, Scored, pack_trees, pack_whole


def groups_of(
    items: int = 5, shared: int = 12, context: int = 6, lengths: tuple[int, ...] = (1, 4, 3), seed: int = 0
) -> list[list[Scored]]:
    """Items whose contexts begin alike, and whose options do as well."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 256, (count,), generator=generator).tolist())

    examples, found = draw(shared), []
    for _ in range(items):
        before, opening = examples + draw(context), draw(2)
        found.append([Scored(before + opening + draw(length), len(before)) for length in lengths])
    return found


def text_of(packs: Packs, row: int) -> list[int]:
    """The tokens from the beginning to a row, found by walking back."""
    assert packs.positions is not None
    window, at = divmod(row, packs.ids.shape[1])
    positions, ids = packs.positions[window].tolist(), packs.ids[window].tolist()
    tokens, wanted = [ids[at]], positions[at] - 1
    for before in range(at - 1, -1, -1):
        if positions[before] == wanted:
            tokens.append(ids[before])
            wanted -= 1
    return tokens[::-1]


@pytest.mark.parametrize("limit", [1, 30, 50, 1000])
def test_every_scored_token_stands_behind_its_own_text(limit: int) -> None:
    groups = groups_of()
    packs = pack_trees(groups, limit)
    at = 0
    for group in groups:
        for sequence in group:
            for place in range(sequence.start, len(sequence.tokens)):
                edge = int(packs.of_token[at])
                assert text_of(packs, int(packs.rows[edge])) == list(sequence.tokens[:place])
                assert int(packs.targets[edge]) == sequence.tokens[place]
                at += 1
    assert at == len(packs.of_token)


def test_what_is_shared_is_there_once_a_window() -> None:
    packs = pack_trees(groups_of(), 1000)
    # 12 of all, then of each item 6 of its context, 2 that its options share, and all but the last of 1, 4 and 3.
    assert packs.ids.shape == (1, 12 + 5 * (6 + 2 + 0 + 3 + 2))
    assert len(packs.rows) == 5 * (2 + 1 + 4 + 3)
    assert len(packs.of_token) == 5 * (3 + 6 + 5)
    one_each = pack_trees(groups_of(), 1)
    assert one_each.ids.shape == (5, 12 + 13)


def test_windows_are_filled_evenly() -> None:
    packs = pack_trees(groups_of(items=4), 12 + 3 * 13)
    assert packs.ids.shape == (2, 12 + 2 * 13)  # 2 and 2, not 3 and 1


def test_whole_sequences_are_padded_windows() -> None:
    groups = groups_of(items=2)
    packs = pack_whole(groups)
    sequences = [sequence for group in groups for sequence in group]
    assert packs.positions is None
    assert packs.ids.shape == (6, 12 + 6 + 2 + 3)
    for window, sequence in enumerate(sequences):
        assert packs.ids[window, : len(sequence.tokens) - 1].tolist() == list(sequence.tokens[:-1])
    window, row = divmod(int(packs.rows[-1]), packs.ids.shape[1])
    assert (window, row) == (5, len(sequences[5].tokens) - 2)
    assert int(packs.targets[-1]) == sequences[5].tokens[-1]


def trees_for(family: str, **options: Any) -> Windows:
    packs = pack_trees(groups_of(**options), 60)
    return Windows(Skeleton(FAMILIES[family](n_layers=4)), packs.ids, positions=packs.positions)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "phi3", "qwen2_moe", "smollm3"])
def test_blocks_that_attend_can_do_it(family: str) -> None:
    check_trees(trees_for(family))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3"])
def test_sliding_windows_must_hold_a_whole_text(family: str) -> None:
    """They hold 8 tokens here."""
    with pytest.raises(RequestError, match=r"sees less than all of 23 tokens .*; score every sequence whole instead"):
        check_trees(trees_for(family))
    check_trees(trees_for(family, shared=2, context=1, items=2))


@pytest.mark.parametrize("lengths", [(1, 4, 3), (4, 1, 3)])
@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_recurrent_blocks_cannot(family: str, lengths: tuple[int, ...]) -> None:
    """Even where the longest text stands first, whole, so that a recurrence does well on it."""
    with pytest.raises(RequestError, match=r"cannot share contexts between options: .*; score every sequence whole"):
        check_trees(trees_for(family, lengths=lengths))


def test_fast_blocks_go_on_to_all_windows() -> None:
    """What they were checked on is the first windows only."""
    windows = trees_for("llama", items=9)
    assert windows.n_windows > 2
    units = make_units(windows)
    assert isinstance(units, FastUnits)
    assert units.path == "fast"
    general = make_units(windows, block_path="hf")
    state = torch.randn(windows.state_shape, generator=torch.Generator().manual_seed(1))
    fast, slow = torch.empty_like(state), torch.empty_like(state)
    with torch.inference_mode():
        units.run(1, [state], [fast])
        general.run(1, [state], [slow])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    with pytest.raises(RequestError, match="states of the same windows"):
        units.run(1, [torch.cat([state, state])], [torch.cat([state, state])])

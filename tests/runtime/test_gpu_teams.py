"""Tokens of a step that begin in the same pages: found as a reader would, and of no effect on what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.kernels.gpu.frame import interpreted
from layercoop_fast.kernels.memory import through_interpreter
from layercoop_fast.runtime import gpu
from layercoop_fast.runtime.executor import Chunk, Executor, Ints
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.gpu import GpuExecutor
from layercoop_fast.runtime.gpu_teams import TEAM, find_teams
from layercoop_fast.runtime.pages import PAGE

pytestmark = pytest.mark.usefixtures("one_thread")


def by_reading(tables: Ints, positions: Ints) -> list[dict[tuple[int, ...], int]]:
    """Of each block the teams with what they share, one token after the other."""
    found = []
    for layer in range(tables.shape[1]):
        groups: dict[int, list[int]] = {}
        for token, page in enumerate(tables[:, layer, 0].tolist()):
            if page >= 0:
                groups.setdefault(page, []).append(token)
        teams = {}
        for group in groups.values():
            for start in range(0, len(group), TEAM):
                team = group[start : start + TEAM]
                if len(team) < 2:
                    continue
                least = min(int(positions[token]) + 1 for token in team)
                for token in team:
                    pages = 0
                    for mine, theirs in zip(tables[token, layer], tables[team[0], layer], strict=True):
                        if mine != theirs:
                            break
                        pages += 1
                    least = min(least, pages * PAGE)
                teams[tuple(team)] = least
        found.append(teams)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_teams_are_those_of_a_reader(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, layers, room = random.integers(2, 30), random.integers(1, 5), random.integers(1, 7)
    tables = np.arange(count * layers * room, dtype=np.int32).reshape(count, layers, room)
    for _ in range(3 * count):  # some begin as others do, in some blocks
        one, other = random.integers(count, size=2)
        layer, pages = random.integers(layers), random.integers(room + 1)
        tables[one, layer, :pages] = tables[other, layer, :pages]
    tables[random.random((count, layers)) < 0.2] = -1
    positions = random.integers(0, room * PAGE, count).astype(np.int32)
    expected = by_reading(tables, positions)
    found = find_teams(tables, positions)
    if found is None:
        assert not any(expected)
        return
    assert found.members.shape == (layers, max(map(len, expected)), TEAM)
    for layer, teams in enumerate(expected):
        mine = {tuple(row[row >= 0].tolist()) for row in found.members[layer]} - {()}
        assert mine == set(teams)
        shared = dict.fromkeys(range(count), 0)
        for team, tokens in teams.items():
            shared |= dict.fromkeys(team, tokens)
        assert found.shared[layer].tolist() == [shared[token] for token in range(count)]
    saved = sum((len(team) - 1) * tokens for teams in expected for team, tokens in teams.items()) / layers
    assert found.saved == pytest.approx(saved)


def test_tokens_that_share_nothing_have_no_teams() -> None:
    tables = np.array([[[0, 1]], [[2, 3]], [[-1, -1]], [[-1, -1]]], dtype=np.int32)
    assert find_teams(tables, np.array([20, 20, 20, 20], dtype=np.int32)) is None


def answers(executor: Executor, prompt: list[int]) -> list[torch.Tensor]:
    """One prompt under three masks, then single tokens, then three of each at once."""
    masks = np.ones((3, executor.n_layers), dtype=np.bool_)
    masks[1, -1] = False
    sequences = [executor.sequence(mask) for mask in masks]
    found = [executor.run([Chunk(sequence, prompt) for sequence in sequences]).clone()]
    for tokens in ([3], [5, 6, 7]):
        chunks = [
            Chunk(sequence, [token + at for token in tokens], wanted=len(tokens))
            for at, sequence in enumerate(sequences)
        ]
        found.append(executor.run(chunks).clone())
    return found


@pytest.mark.parametrize("least", [0, 1 << 40])
def test_what_is_computed_does_not_depend_on_teams(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST_SAVED", least)
    skeleton, prompt = Skeleton(tiny_model("qwen3", 4)), list(range(3, 103))
    own = GpuExecutor(skeleton, 2**22)
    found, expected = answers(own, prompt), answers(GeneralExecutor(skeleton, 2**22), prompt)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
    assert any(shape.teams for shape in own._vectors) == (least == 0)


def test_teams_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not interpreted():
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: its kernels run on the GPU here")
    monkeypatch.setattr(gpu, "LEAST_SAVED", 0)
    skeleton, prompt = Skeleton(tiny_model("qwen3", 2)), list(range(3, 21))
    with through_interpreter(), np.errstate(all="ignore"):
        found = answers(GpuExecutor(skeleton, 2**22), prompt)
    for one, other in zip(found, answers(GeneralExecutor(skeleton, 2**22), prompt), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5

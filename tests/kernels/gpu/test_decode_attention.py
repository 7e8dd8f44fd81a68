from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from close import assert_near, noise
from paged import paged
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.decode_attention import CONFIGS, choose_splits, launch_decode
from layercoop_fast.kernels.pages import decode_attention
from layercoop_fast.kernels.reference.attention import (
    PagedContext,
    Teams,
    decode_attention_reference,
    paged_attention_reference,
)

# heads, key and value heads, width, page, lengths, window, soft cap
SHAPES = [
    (1, 1, 1, 1, [1], 0, 0.0),
    (4, 2, 20, 4, [1, 5, 17], 0, 0.0),
    (3, 1, 16, 16, [3, 16, 33], 9, 5.0),
    (34, 2, 33, 8, [21, 7], 20, 0.0),
    (2, 2, 64, 3, [31, 32, 1], 18, 0.7),
]


def both(shape, dtype: torch.dtype, device: str, splits: int) -> tuple[Tensor, Tensor]:
    """The kernel's result, and the oracle's in float64."""
    heads, kv_heads, width, page, lengths, window, cap = shape
    context = paged(lengths, kv_heads, page, width, dtype, device)
    queries = noise(len(lengths), heads * width, dtype=dtype, seed=2).to(device)
    found = torch.empty_like(queries)
    launch_decode(queries, context, found, 0.3, window, cap, splits=splits)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3, window, cap)
    return found, expected


@pytest.mark.parametrize(("shape", "splits"), [*zip(SHAPES, [1, 2, 1, 4, 3], strict=True), (SHAPES[1], 16)])
def test_fp32_against_float64(shape, splits: int, device: str) -> None:
    assert_near(*both(shape, torch.float32, device, splits), relative=1e-5, absolute=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("shape", SHAPES[1:2])
def test_16_bits_against_float64(shape, dtype: torch.dtype, tolerance: float, device: str) -> None:
    assert_near(*both(shape, dtype, device, 2), relative=tolerance, absolute=tolerance)


def test_the_oracle_is_a_sequence_of_one_own_token(device: str) -> None:
    heads, kv_heads, width = 4, 2, 8
    context = paged([9, 14], kv_heads, 4, width, torch.float64, device)
    qkv = noise(2, (heads + 2 * kv_heads) * width, seed=2).double().to(device)
    for sequence, length in enumerate([9, 14]):  # its own key and value stand last in the pages too
        page = context.pages[int(context.tables[sequence, (length - 1) // 4])]
        page[:, :, (length - 1) % 4] = qkv[sequence, heads * width :].view(2, kv_heads, width)
    starts = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    before = replace(context, lengths=context.lengths - 1)
    expected = paged_attention_reference(qkv, starts, before, 0.3, 6, 2.0)
    queries = qkv[:, : heads * width]
    found = decode_attention_reference(queries, context, 0.3, 6, 2.0)
    assert_near(found, expected, relative=1e-12, absolute=1e-12)


def test_masks_have_their_own_pages_or_none(device: str) -> None:
    """One table [S, L, M] for all blocks: a sequence without the block gets 0, the others what they get alone."""
    context = paged([5, 17, 9], 2, 4, 16, torch.float32, device)
    queries = noise(3, 64, seed=2).to(device)
    joint = torch.cat([queries, noise(3, 64, seed=3).to(device)], dim=1)
    every = torch.full((3, 4, context.tables.shape[1]), -1, dtype=torch.int32, device=device)
    every[[0, 2], 2] = context.tables[[0, 2]]
    found = decode_attention(joint[:, :64], replace(context, tables=every[:, 2]), 0.3)
    expected = decode_attention(queries, context, 0.3)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert torch.count_nonzero(found[1]) == 0
    assert torch.count_nonzero(expected[1]) == 64


# sequences of each team, tokens that they share; all sequences
TEAMS = [
    ([[0, 2]], [33], 4),
    ([[1, 2, 3], [4, 0]], [16, 47], 6),
    ([[5, 4, 3, 2, 1, 0]], [1], 6),
    ([], [], 2),
]


def in_teams(teams: list[list[int]], tokens: list[int], count: int, page: int, device: str) -> PagedContext:
    """Sequences of which some begin in the same pages; a page that is shared in part is its leader's."""
    lengths = [50 + 7 * sequence for sequence in range(count)]
    context = paged(lengths, 2, page, 16, torch.float32, "cpu")
    tables, shared = context.tables.clone(), torch.zeros(count, dtype=torch.int32)
    tables[-1] = context.tables[-1]
    members = torch.full((max(1, len(teams)), 8), -1, dtype=torch.int32)
    for number, (team, common) in enumerate(zip(teams, tokens, strict=True)):
        members[number, : len(team)] = torch.tensor(team)
        shared[team] = common
        for sequence in team[1:]:
            tables[sequence, : -(-common // page)] = tables[team[0], : -(-common // page)]
    there = Teams(members.to(device), shared.to(device))
    return PagedContext(context.pages.to(device), tables.to(device), context.lengths.to(device), there)


@pytest.mark.parametrize(("teams", "tokens", "count"), TEAMS)
@pytest.mark.parametrize(("page", "splits", "heads", "cap"), [(8, 1, 2, 0.0), (16, 2, 6, 5.0)])
def test_teams_come_to_what_their_sequences_come_to_alone(
    teams: list[list[int]], tokens: list[int], count: int, page: int, splits: int, heads: int, cap: float, device: str
) -> None:
    context = in_teams(teams, tokens, count, page, device)
    queries = noise(count, heads * 16, seed=2).to(device)
    found = torch.full_like(queries, float("nan"))
    launch_decode(queries, context, found, 0.3, cap=cap, splits=splits)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3, cap=cap)
    assert_near(found, expected, relative=1e-5, absolute=2e-6)
    # A member that has no page there, because its mask removes the block, is in no team.
    if teams and len(teams[0]) > 2:
        gone = teams[0].pop()
        tables = context.tables.clone()
        tables[gone] = -1
        without = replace(in_teams(teams, tokens, count, page, device), tables=tables)
        launch_decode(queries, without, found, 0.3, cap=cap, splits=splits)
        assert torch.count_nonzero(found[gone]) == 0
        rest = [sequence for sequence in range(count) if sequence != gone]
        assert_near(found[rest], expected[rest], relative=1e-5, absolute=2e-6)


def test_shared_tokens_are_read_from_the_pages_of_a_teams_first_member(device: str) -> None:
    """What stands in the other members' tables there is not looked at: the shared part is really read once."""
    context = in_teams([[1, 0, 2]], [32], 3, 16, device)
    queries = noise(3, 32, seed=2).to(device)
    expected = decode_attention_reference(queries.double(), replace(context, pages=context.pages.double()), 0.3)
    tables = context.tables.clone()
    tables[[0, 2], :2] = 0  # a page of NaN
    found = torch.empty_like(queries)
    launch_decode(queries, replace(context, tables=tables), found, 0.3, splits=1)
    assert_near(found, expected, relative=1e-5, absolute=2e-6)


def test_a_sliding_window_has_no_use_for_teams(device: str) -> None:
    context = in_teams([[0, 1]], [16], 2, 16, device)
    queries = noise(2, 32, seed=2).to(device)
    assert torch.equal(
        decode_attention(queries, context, 0.3, 9), decode_attention(queries, replace(context, teams=None), 0.3, 9)
    )


def test_parts_fill_a_chip_and_depend_on_the_host_alone() -> None:
    assert choose_splits(8, 8192) == 32  # one request of an 8B llama
    assert choose_splits(64 * 8, 8192) == 1  # more programs than processors without a cut
    assert choose_splits(8, 100) == 1
    assert choose_splits(0, 0) == 1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    context = paged([70, 3], 1, 16, 16, torch.float32, device)
    queries = noise(2, 48, seed=2).to(device)
    out = torch.empty_like(queries)
    launch_decode(queries, context, out, 0.3, splits=2, config=config)
    known = replace(context, pages=context.pages.double())
    expected = decode_attention_reference(queries.double(), known, 0.3)
    assert_near(out, expected, relative=1e-5, absolute=2e-6)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [(60, 2, "queries: 60 columns are not heads of 16 over 2"), (64, 3, r"queries: expected \[2, heads·D\]")],
)
def test_bad_arguments(columns: int, rows: int, message: str) -> None:
    whole = {"dtype": torch.int32}
    with pytest.raises(RequestError, match=message):
        context = PagedContext(torch.zeros(4, 2, 2, 4, 16), torch.zeros(2, 3, **whole), torch.zeros(2, **whole))
        decode_attention(torch.zeros(rows, columns), context, 0.3)


@pytest.mark.parametrize(
    ("members", "shared", "message"),
    [
        ((1, 1), 2, r"teams.members: expected contiguous \[T, R\]"),
        ((2, 8), 3, r"teams.shared: expected contiguous int32 or int64 \[2\]"),
    ],
)
def test_bad_teams(members: tuple[int, int], shared: int, message: str) -> None:
    whole = {"dtype": torch.int32}
    teams = Teams(torch.zeros(members, **whole), torch.zeros(shared, **whole))
    with pytest.raises(RequestError, match=message):
        decode_attention(
            torch.zeros(2, 64),
            PagedContext(torch.zeros(4, 2, 2, 4, 16), torch.zeros(2, 3, **whole), torch.zeros(2, **whole), teams),
            0.3,
        )

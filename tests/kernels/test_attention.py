from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from close import assert_near, noise

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.attention import causal_attention, causal_attention_slopes
from layercoop_fast.kernels.reference.attention import causal_attention_reference, causal_attention_slopes_reference

# windows, tokens, heads, key heads, head width
SHAPES = [
    (1, 1, 1, 1, 1),
    (0, 4, 2, 1, 8),
    (2, 5, 3, 1, 16),
    (3, 6, 2, 2, 17),
    (1, 7, 4, 2, 80),
    (2, 67, 3, 3, 64),
    (1, 128, 9, 3, 64),
    (5, 13, 6, 2, 33),
]


def qkv_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    windows, tokens, heads, kv_heads, width = shape
    return noise(windows * tokens, (heads + 2 * kv_heads) * width, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(level: str, shape: tuple[int, ...]) -> None:
    _, tokens, heads, kv_heads, width = shape
    qkv = qkv_of(shape)
    expected = causal_attention_reference(qkv.double(), tokens, heads, kv_heads, width**-0.5)
    assert_near(causal_attention(qkv, tokens, heads, kv_heads, width**-0.5), expected, relative=1e-5, absolute=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_rounded_once(level: str, shape: tuple[int, ...]) -> None:
    _, tokens, heads, kv_heads, width = shape
    qkv = qkv_of(shape, torch.bfloat16)
    expected = causal_attention_reference(qkv.double(), tokens, heads, kv_heads, width**-0.5)
    found = causal_attention(qkv, tokens, heads, kv_heads, width**-0.5)
    assert found.dtype == torch.bfloat16
    assert_near(found, expected, relative=2**-8, absolute=1e-5)


# More than the queries that are worked on at once, whole and not whole tiles and vectors, wide and odd heads.
SLOPE_SHAPES = [*SHAPES, (2, 48, 2, 1, 64), (1, 54, 2, 2, 80), (1, 97, 4, 2, 96), (1, 131, 5, 1, 33)]
# Of the slope, and of the largest slope: sums of products cancel.
SLOPES = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2**-8, 2e-6)}


def slopes_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv, a slope of what attention makes of it, and that."""
    windows, tokens, heads, kv_heads, width = shape
    qkv = qkv_of(shape, dtype)
    slope = noise(windows * tokens, heads * width, dtype=dtype, seed=1)
    return qkv, slope, causal_attention_reference(qkv, tokens, heads, kv_heads, 0.3)


@pytest.mark.parametrize("dtype", list(SLOPES))
@pytest.mark.parametrize("shape", SLOPE_SHAPES)
def test_slopes_are_rounded_once(level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _, tokens, heads, kv_heads, _ = shape
    qkv, slope, mixed = slopes_of(shape, dtype)
    given = (each.double() for each in (slope, qkv, mixed))
    expected = causal_attention_slopes_reference(*given, tokens, heads, kv_heads, 0.3)
    found = causal_attention_slopes(slope, qkv, mixed, tokens, heads, kv_heads, 0.3)
    assert found.dtype == dtype
    relative, absolute = SLOPES[dtype]
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    assert_near(found, expected, relative=relative, absolute=absolute * largest)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_of_slopes_is_the_gradient(shape: tuple[int, ...]) -> None:
    _, tokens, heads, kv_heads, _ = shape
    qkv, slope, _ = slopes_of(shape, torch.float64)
    exact = qkv.requires_grad_()
    mixed = causal_attention_reference(exact, tokens, heads, kv_heads, 0.3)
    (expected,) = torch.autograd.grad(mixed, exact, slope)
    found = causal_attention_slopes(slope, qkv.detach(), mixed.detach(), tokens, heads, kv_heads, 0.3)
    assert_near(found, expected, relative=1e-12, absolute=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slopes_of_a_window_do_not_depend_on_the_others(level: str, dtype: torch.dtype) -> None:
    tokens, heads, kv_heads, width = 53, 4, 2, 20
    qkv, slope, mixed = slopes_of((5, tokens, heads, kv_heads, width), dtype)
    together = causal_attention_slopes(slope, qkv, mixed, tokens, heads, kv_heads, 0.3).view(5, tokens, -1)
    for window in range(5):
        rows = slice(window * tokens, (window + 1) * tokens)
        alone = causal_attention_slopes(slope[rows], qkv[rows], mixed[rows], tokens, heads, kv_heads, 0.3)
        assert torch.equal(alone, together[window])


def test_slopes_of_queries_do_not_depend_on_later_tokens(level: str) -> None:
    tokens, heads, kv_heads, width = 53, 4, 2, 20
    qkv, slope, mixed = slopes_of((1, tokens, heads, kv_heads, width), torch.float32)
    first = 31
    few = causal_attention_slopes(slope[:first], qkv[:first], mixed[:first], first, heads, kv_heads, 0.3)
    for rows in (qkv, slope, mixed):
        rows[first:] = noise(tokens - first, rows.shape[1], seed=7)
    found = causal_attention_slopes(slope, qkv, mixed, tokens, heads, kv_heads, 0.3)
    assert torch.equal(found[:first, : heads * width], few[:, : heads * width])


def test_slopes_of_other_shapes_are_refused() -> None:
    qkv, slope = noise(4, 12), noise(4, 8)
    for bad in ((slope[:2], qkv, slope, 2, 4, 1), (slope, qkv, slope[:, :4], 2, 4, 1), (slope, qkv, slope, 3, 4, 1)):
        with pytest.raises(RequestError):
            causal_attention_slopes(*bad, 0.3)
    with pytest.raises(RequestError, match=r"scale: 0\.0 is not a positive number"):
        causal_attention_slopes(slope, qkv, slope, 2, 4, 1, 0.0)
    arrays = [each.numpy() for each in (slope[:2], qkv, slope)]
    with pytest.raises(ValueError, match=r"slope: expected a C-contiguous numpy array float32\[4, 8\]"):
        _C.causal_attention_slopes(*arrays, 2, 4, 1, 0.3, np.empty((4, 12), np.float32))


def test_the_oracle_is_torchs_own() -> None:
    windows, tokens, heads, kv_heads, width = 2, 11, 6, 2, 16
    qkv = qkv_of((windows, tokens, heads, kv_heads, width)).double()
    by_head = qkv.view(windows, tokens, -1, width).transpose(1, 2)
    queries, keys, values = by_head.split([heads, kv_heads, kv_heads], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=0.3, enable_gqa=True
    )
    found = causal_attention_reference(qkv, tokens, heads, kv_heads, 0.3)
    assert_near(found, expected.transpose(1, 2).reshape(found.shape), relative=1e-12, absolute=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_does_not_depend_on_the_others(level: str, dtype: torch.dtype) -> None:
    tokens, heads, kv_heads, width = 21, 3, 1, 20
    qkv = qkv_of((7, tokens, heads, kv_heads, width), dtype)
    together = causal_attention(qkv, tokens, heads, kv_heads, 0.2).view(7, tokens, -1)
    for window in range(7):
        alone = qkv.view(7, tokens, -1)[window].contiguous()
        assert torch.equal(causal_attention(alone, tokens, heads, kv_heads, 0.2), together[window])


def test_large_scores_do_not_overflow(level: str) -> None:
    qkv = qkv_of((1, 19, 1, 1, 8)) * 100
    expected = causal_attention_reference(qkv.double(), 19, 1, 1, 1.0)
    assert_near(causal_attention(qkv, 19, 1, 1, 1.0), expected, relative=1e-3, absolute=1e-2)


def test_other_dtypes_take_the_oracle() -> None:
    qkv = qkv_of((2, 5, 3, 1, 4)).double()
    assert torch.equal(causal_attention(qkv, 5, 3, 1, 0.5), causal_attention_reference(qkv, 5, 3, 1, 0.5))


BAD = [
    ((4, 1, 1, 1.0), "10 rows are not windows of 4 tokens"),
    ((5, 4, 3, 1.0), "4 .*3"),
    ((5, 5, 1, 1.0), "12 columns are not"),
    ((5, 2, 1, 0.0), "scale: 0.* is not a positive number"),
    ((5, 2, 1, float("inf")), "scale: inf is not a positive number"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments: tuple[int, int, int, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        causal_attention(noise(10, 12), *arguments)
    with pytest.raises(ValueError, match=message):
        _C.causal_attention(np.ones((10, 12), np.float32), *arguments, np.arange(5), np.ones((10, 6), np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", [[], [0], [20], [2, 5, 8, 11, 14, 17, 20], [0, 1, 19], list(range(21))])
def test_some_queries_alone_have_the_bits_they_have_among_all(level: str, dtype: torch.dtype, asked: list[int]) -> None:
    tokens, heads, kv_heads, width = 21, 6, 2, 20
    qkv = qkv_of((3, tokens, heads, kv_heads, width), dtype)
    every = causal_attention(qkv, tokens, heads, kv_heads, 0.2).view(3, tokens, -1)
    others = [token for token in range(tokens) if token not in asked]
    qkv.view(3, tokens, -1)[:, others, : heads * width] = float("nan")  # nobody may look at these
    found = causal_attention(qkv, tokens, heads, kv_heads, 0.2, asked=torch.tensor(asked, dtype=torch.int64))
    assert torch.equal(found.view(3, len(asked), heads * width), every[:, asked])


@pytest.mark.parametrize("asked", [[-1], [5], [1, 1], [3, 2], [[0]], [0.0]])
def test_tokens_that_cannot_be_asked_for(asked: list[int]) -> None:
    with pytest.raises(RequestError, match="asked: expected"):
        causal_attention(noise(10, 12), 5, 2, 2, 1.0, asked=torch.tensor(asked))
    with pytest.raises((ValueError, TypeError), match="asked: expected"):
        _C.causal_attention(
            np.ones((10, 12), np.float32), 5, 2, 2, 1.0, np.array(asked), np.ones((2 * len(asked), 4), np.float32)
        )


def tree_positions(windows: int, tokens: int, seed: int) -> torch.Tensor:
    """Random trees, depth first: each row goes on, or back to some earlier position. int64 [windows · tokens]."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(windows):
        at = -1
        for token in range(tokens):
            at = at + 1 if token == 0 or generator.random() < 0.8 else int(generator.integers(0, at + 2))
            rows.append(at)
    return torch.tensor(rows, dtype=torch.int64)


def branch(positions: list[int], row: int) -> list[int]:
    """The rows of the text that ends in a row of a tree, by walking back."""
    found, wanted = [row], positions[row] - 1
    for before in range(row - 1, -1, -1):
        if positions[before] == wanted:
            found.append(before)
            wanted -= 1
    return found[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 5, 3, 1, 16), (1, 67, 4, 2, 33), (3, 130, 9, 3, 64)])
def test_trees_against_float64(level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    windows, tokens, heads, kv_heads, _ = shape
    qkv = qkv_of(shape, dtype)
    for pattern in {1, windows}:
        positions = tree_positions(pattern, tokens, seed=tokens)
        expected = causal_attention_reference(qkv.double(), tokens, heads, kv_heads, 0.3, positions)
        found = causal_attention(qkv, tokens, heads, kv_heads, 0.3, positions=positions)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
        assert_near(found, expected, relative=tolerance, absolute=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_tree_has_the_bits_of_its_text_alone(level: str, dtype: torch.dtype) -> None:
    tokens, heads, kv_heads, width = 90, 3, 1, 20
    qkv = qkv_of((1, tokens, heads, kv_heads, width), dtype)
    positions = tree_positions(1, tokens, seed=4)
    together = causal_attention(qkv, tokens, heads, kv_heads, 0.3, positions=positions)
    assert int((positions.diff() <= 0).sum()) > 10, "not much of a tree"
    for row in range(0, tokens, 7):
        rows = branch(positions.tolist(), row)
        alone = causal_attention(qkv[rows].contiguous(), len(rows), heads, kv_heads, 0.3)
        assert torch.equal(alone[-1], together[row])


def test_some_queries_of_a_tree_have_the_bits_they_have_among_all(level: str) -> None:
    tokens, heads, kv_heads, width = 90, 4, 2, 20
    qkv = qkv_of((3, tokens, heads, kv_heads, width))
    positions = tree_positions(3, tokens, seed=5)
    every = causal_attention(qkv, tokens, heads, kv_heads, 0.3, positions=positions).view(3, tokens, -1)
    for asked in ([89], list(range(0, 90, 7)), [0, 3, 4, 5, 6, 7, 8, 9, 60]):
        found = causal_attention(qkv, tokens, heads, kv_heads, 0.3, positions=positions, asked=torch.tensor(asked))
        assert torch.equal(found.view(3, len(asked), -1), every[:, asked])


def test_one_text_is_the_simplest_tree(level: str) -> None:
    qkv = qkv_of((4, 23, 3, 3, 16))
    plain = causal_attention(qkv, 23, 3, 3, 0.3)
    assert torch.equal(causal_attention(qkv, 23, 3, 3, 0.3, positions=torch.arange(23)), plain)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 1, 2], "positions: 3 are not those of windows of 5 tokens"),
        ([1, 2, 3, 4, 5], "positions: "),
        ([0, 1, 3, 4, 5], "positions: "),
        ([0, 1, -1, 0, 1], "positions: "),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "positions: "),
    ],
)
def test_positions_that_are_no_tree(positions: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        causal_attention(noise(10, 12), 5, 2, 1, 1.0, positions=torch.tensor(positions))
    with pytest.raises(ValueError, match=message):
        _C.causal_attention(
            np.ones((10, 12), np.float32), 5, 2, 1, 1.0, np.arange(5), np.ones((10, 6), np.float32), np.array(positions)
        )


# Sliding windows of one token, below and above a vector's sixteen, as long as the text, longer.
WINDOWS = [1, 2, 5, 16, 17, 40, 66, 67, 1000]


@pytest.mark.parametrize("cap", [0.0, 2.5])
@pytest.mark.parametrize("sliding_window", WINDOWS)
def test_sliding_windows_and_soft_caps_against_float64(level: str, sliding_window: int, cap: float) -> None:
    for shape in ((2, 67, 6, 2, 33), (1, 16, 3, 3, 16)):
        _, tokens, heads, kv_heads, _ = shape
        options: dict[str, Any] = {"sliding_window": sliding_window, "cap": cap}
        qkv = qkv_of(shape)
        expected = causal_attention_reference(qkv.double(), tokens, heads, kv_heads, 0.7, **options)
        found = causal_attention(qkv, tokens, heads, kv_heads, 0.7, **options)
        assert_near(found, expected, relative=1e-5, absolute=5e-6)
        few = qkv.bfloat16()
        expected = causal_attention_reference(few.double(), tokens, heads, kv_heads, 0.7, **options)
        assert_near(
            causal_attention(few, tokens, heads, kv_heads, 0.7, **options), expected, relative=2**-8, absolute=1e-5
        )


def test_a_long_sliding_window_and_no_cap_change_no_bit(level: str) -> None:
    qkv = qkv_of((3, 37, 6, 2, 20))
    plain = causal_attention(qkv, 37, 6, 2, 0.3)
    assert torch.equal(causal_attention(qkv, 37, 6, 2, 0.3, sliding_window=37), plain)


def test_the_oracle_of_sliding_windows_is_torchs_own() -> None:
    windows, tokens, heads, kv_heads, width = 2, 11, 6, 2, 16
    qkv = qkv_of((windows, tokens, heads, kv_heads, width)).double()
    by_head = qkv.view(windows, tokens, -1, width).transpose(1, 2)
    queries, keys, values = by_head.split([heads, kv_heads, kv_heads], dim=1)
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(-3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=seen, scale=0.3, enable_gqa=True
    )
    found = causal_attention_reference(qkv, tokens, heads, kv_heads, 0.3, sliding_window=4)
    assert_near(found, expected.transpose(1, 2).reshape(found.shape), relative=1e-12, absolute=1e-12)


@pytest.mark.parametrize("cap", [0.0, 2.5])
@pytest.mark.parametrize("sliding_window", [1, 5, 20, 50])
def test_with_a_sliding_window_a_query_does_not_depend_on_the_others(
    level: str, sliding_window: int, cap: float
) -> None:
    tokens, heads, kv_heads, width = 90, 4, 2, 20
    options: dict[str, Any] = {"sliding_window": sliding_window, "cap": cap}
    qkv = qkv_of((3, tokens, heads, kv_heads, width))
    every = causal_attention(qkv, tokens, heads, kv_heads, 0.3, **options).view(3, tokens, -1)
    for asked in ([89], list(range(0, 90, 7)), [0, 3, 4, 5, 6, 7, 8, 9, 60]):
        found = causal_attention(qkv, tokens, heads, kv_heads, 0.3, asked=torch.tensor(asked), **options)
        assert torch.equal(found.view(3, len(asked), -1), every[:, asked])
    alone = qkv.view(3, tokens, -1)[1].contiguous()
    assert torch.equal(causal_attention(alone, tokens, heads, kv_heads, 0.3, **options), every[1])
    positions = tree_positions(1, tokens, seed=4)
    together = causal_attention(alone, tokens, heads, kv_heads, 0.3, positions=positions, **options)
    expected = causal_attention_reference(alone.double(), tokens, heads, kv_heads, 0.3, positions, **options)
    assert_near(together, expected, relative=1e-5, absolute=5e-6)
    for row in range(0, tokens, 7):
        rows = branch(positions.tolist(), row)
        text = causal_attention(alone[rows].contiguous(), len(rows), heads, kv_heads, 0.3, **options)
        assert torch.equal(text[-1], together[row])


def test_bad_sliding_windows_and_caps() -> None:
    arguments = (np.ones((10, 12), np.float32), 5, 2, 2, 1.0, np.arange(5), np.ones((10, 4), np.float32), None)
    for sliding_window, cap, message in ((-1, 0.0, "sliding_window"), (0, -1.0, "cap: "), (0, float("nan"), "cap: ")):
        with pytest.raises(RequestError, match="sliding_window, cap: expected numbers from 0 on"):
            causal_attention(noise(10, 12), 5, 2, 2, 1.0, sliding_window=sliding_window, cap=cap)
        with pytest.raises(ValueError, match=message):
            _C.causal_attention(*arguments, sliding_window, cap)

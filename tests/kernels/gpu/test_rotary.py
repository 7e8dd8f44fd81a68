from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.rotary import CONFIGS, launch_rotary
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.reference.blocks import NO_NORMS, HeadNorms, rotary_reference
from layercoop_fast.kernels.rotary import rotary_

# rows, tokens of a window, query heads, key heads, head width, columns behind them
SHAPES = [(1, 1, 1, 1, 2, 0), (6, 3, 3, 1, 6, 6), (0, 2, 2, 2, 4, 0), (5, 5, 14, 7, 10, 3), (4, 2, 0, 2, 64, 1)]


def given(shape, dtype: torch.dtype, device: str):
    rows, tokens, queries, keys, width, rest = shape
    x = noise(rows, (queries + keys) * width + rest, dtype=dtype)
    tables = [noise(tokens, width, dtype=dtype, seed=seed) for seed in (1, 2)]
    norms = [noise(width, dtype=dtype, seed=seed) for seed in (3, 4)]
    return [each.to(device) for each in (x, *tables, *norms)]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_against_float64(shape, norm: bool, device: str) -> None:
    x, cos, sin, query_norm, key_norm = given(shape, torch.float32, device)
    wide = HeadNorms(query_norm.double(), key_norm.double(), 1e-6) if norm else NO_NORMS
    expected = rotary_reference(x.double(), cos.double(), sin.double(), shape[2], shape[3], wide)
    rotary_(x, cos, sin, shape[2], shape[3], HeadNorms(query_norm, key_norm, 1e-6) if norm else NO_NORMS)
    assert_near(x, expected, relative=1e-5, absolute=1e-5)


@pytest.mark.parametrize("norm", ["none", "query", "key", "both"])
def test_fp16_rounds_where_the_models_do(norm: str, device: str) -> None:
    shape = (6, 3, 3, 2, 16, 16)
    x, cos, sin, query_norm, key_norm = given(shape, torch.float16, device)
    norms = HeadNorms(
        query_norm if norm in ("query", "both") else None, key_norm if norm in ("key", "both") else None, 1e-6
    )
    expected = rotary_reference(x, cos, sin, 3, 2, norms)
    rotary_(x, cos, sin, 3, 2, norms)
    if norm == "none":
        assert torch.equal(x, expected)
    # A quotient on the border between two numbers may be rounded the other way.
    assert_near(x, expected, relative=2e-3, absolute=2e-3)


def test_bf16(device: str) -> None:
    x, cos, sin, _, _ = given((6, 3, 3, 2, 16, 16), torch.bfloat16, device)
    expected = rotary_reference(x, cos, sin, 3, 2)
    rotary_(x, cos, sin, 3, 2)
    assert_near(x, expected, relative=2**-7, absolute=2**-6)  # three roundings, which the interpreter cuts off instead


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    x, cos, sin, _, _ = given((3, 3, 17, 2, 6, 0), torch.float32, device)
    expected = rotary_reference(x, cos, sin, 17, 2)
    launch_rotary(x, cos, sin, 17, 2, config=config)
    assert_near(x, expected, relative=1e-5, absolute=1e-6)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize(("shape", "page"), [((1, 1, 1, 1, 2), 1), ((5, 5, 6, 2, 10), 4), ((3, 3, 17, 1, 64), 16)])
def test_keys_and_values_go_into_pages(shape, page: int, norm: bool, device: str) -> None:
    rows, _, queries, keys, width = shape
    x, cos, sin, query_norm, key_norm = given((*shape, keys * width), torch.float32, device)
    norms = HeadNorms(query_norm, key_norm, 1e-6) if norm else NO_NORMS
    pages = noise(rows + 2, 2, keys, page, width, seed=7).to(device)
    at = torch.randperm(rows + 2, generator=torch.Generator().manual_seed(8))[:rows].to(device, torch.int32)
    slot = torch.arange(rows, device=device, dtype=torch.int32) % page
    expected, expected_pages = rotary_reference(x, cos, sin, queries, keys, norms), pages.clone()
    for row in range(rows):
        heads = expected[row, queries * width :].view(2, keys, width)
        expected_pages[int(at[row]), :, :, int(slot[row])] = heads
    rotary_(x, cos, sin, queries, keys, norms, PagePlaces(pages, at, slot))
    assert_near(x, expected, relative=1e-5, absolute=1e-6)
    assert_near(pages, expected_pages, relative=1e-5, absolute=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pages": torch.zeros(4, 2, 3, 4, 16)},
            r"pages: expected contiguous \[P, 2, 2, PAGE, 16\], got \[4, 2, 3",
        ),
        ({"pages": torch.zeros(4, 2, 2, 4, 16).half()}, "pages: expected torch.float32 on .*, got torch.float16"),
        ({"page": torch.zeros(5, dtype=torch.int32)}, r"page: expected contiguous int32 or int64 \[6\]"),
        ({"slot": torch.zeros(6)}, r"slot: expected contiguous int32 or int64 \[6\]"),
    ],
)
def test_places_that_do_not_fit(change: dict[str, torch.Tensor], message: str, device: str) -> None:
    x, cos, sin, _, _ = given((6, 3, 3, 2, 16, 32), torch.float32, device)
    at = torch.zeros(6, dtype=torch.int32)
    places = {"pages": torch.zeros(4, 2, 2, 4, 16), "page": at, "slot": at, **change}
    with pytest.raises(RequestError, match=message):
        rotary_(x, cos, sin, 3, 2, into=PagePlaces(**{name: each.to(device) for name, each in places.items()}))
    with pytest.raises(RequestError, match=r"x: 112 columns are not 2 \+ 2 · 2 heads of 16"):
        fitting = PagePlaces(torch.zeros(4, 2, 2, 4, 16).to(device), at.to(device), at.to(device))
        rotary_(x, cos, sin, 2, 2, into=fitting)


def test_bad_arguments(device: str) -> None:
    x, cos, sin, query_norm, _ = given((6, 3, 3, 2, 16, 0), torch.float32, device)
    with pytest.raises(RequestError, match=r"x: 80 columns do not hold 4 \+ 2 heads of 16"):
        rotary_(x, cos, sin, 4, 2)
    with pytest.raises(RequestError, match=r"query_norm: expected shape \[48\], got \[15\]"):
        rotary_(x, cos, sin, 3, 2, HeadNorms(query_norm[:15]))

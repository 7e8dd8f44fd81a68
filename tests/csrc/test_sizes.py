"""Sizes that no machine has, at the extension's edge: refused in one line before anything is computed from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from layercoop_fast import _C

MOST = 2**31
HUGE = [MOST + 1, 2**53, 2**62, 2**63 - 1]


def empty(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """An array without elements, which may claim any extent beside its 0."""
    return np.empty(shape, dtype=dtype)


def decode_model(**sizes: int) -> _C.DecodeModel:
    usual = {"hidden": 8, "heads": 2, "kv_heads": 1, "width": 4, "inner": 8}
    return _C.DecodeModel(**{**usual, **sizes}, scale=1.0, activation="silu")


def attention(**sizes: int) -> None:
    usual = {"tokens": 1, "heads": 1, "kv_heads": 1}
    x, asked = np.zeros((1, 6), dtype=np.float32), np.zeros(1, dtype=np.int64)
    _C.causal_attention(x, **{**usual, **sizes}, scale=1.0, asked=asked, out=np.zeros((1, 2), dtype=np.float32))


def rotary(query_heads: int, key_heads: int) -> None:
    angles = np.zeros((1, 2), dtype=np.float32)
    _C.rotary(np.zeros((1, 4), dtype=np.float32), angles, angles, query_heads, key_heads)


def loss(first_word: int) -> None:
    numbers = np.zeros((1, 3), dtype=np.float32)
    _C.running_loss(numbers, np.zeros(1, dtype=np.int64), first_word, numbers.copy())


def filled(first: int) -> None:
    _C.PackedMatrix("fp32", 4, 4).fill(first, np.zeros((1, 4), dtype=np.float32), "fp32")


def unpacked(first: int) -> None:
    _C.PackedMatrix("fp32", 4, 4).unpack(first, np.zeros((1, 4), dtype=np.float32))


CALLS: dict[str, Callable[[int], object]] = {
    "PackedMatrix rows": lambda size: _C.PackedMatrix("fp32", size, 1),
    "PackedMatrix columns": lambda size: _C.PackedMatrix("int4", 1, size),
    "fill": filled,
    "unpack": unpacked,
    "hidden": lambda size: decode_model(hidden=size),
    "heads": lambda size: decode_model(heads=size),
    "kv_heads": lambda size: decode_model(heads=size, kv_heads=size),
    "width": lambda size: decode_model(width=size - size % 2),
    "inner": lambda size: decode_model(inner=size),
    "window": lambda size: decode_model().add_block(window=size),
    "attention tokens": lambda size: attention(tokens=size),
    "attention heads": lambda size: attention(heads=size),
    "attention kv_heads": lambda size: attention(heads=size, kv_heads=size),
    "rotary query_heads": lambda size: rotary(size, 0),
    "rotary key_heads": lambda size: rotary(0, size),
    "first_word": loss,
    "swiglu columns": lambda size: _C.swiglu(empty(0, size - size % 2), empty(0, 1)),
    "norm columns": lambda size: _C.rms_norm(empty(0, size), np.ones(1, dtype=np.float32), 1e-5, empty(0, size)),
    "multiply rows": lambda size: _C.PackedMatrix("fp32", 1, 0).multiply(empty(size, 0), empty(size, 1)),
    "quantise columns": lambda size: _C.quantise_int8(
        empty(0, size), "fp32", empty(0, size, dtype=np.int8), empty(0, 1, dtype=np.uint16)
    ),
    "max_states": lambda size: _C.Plan(_C.pack_masks(np.ones((1, 3), dtype=np.bool_)), 3, size),
    "num_threads": _C.set_num_threads,
    "n_players": lambda size: _C.unpack_masks(np.zeros((1, 1), dtype=np.uint64), size),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("size", HUGE)
def test_a_size_beyond_all_machines_is_refused(call: str, size: int) -> None:
    with pytest.raises((ValueError, MemoryError)):  # NumPy has no array of some of them
        CALLS[call](size)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("first_word", "fill", "unpack", "window")])
@pytest.mark.parametrize("size", [-1, -(2**62)])
def test_a_size_below_nothing_is_refused(call: str, size: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        CALLS[call](size)


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": MOST, "kv_heads": MOST, "width": MOST},
        {"heads": 2**30, "kv_heads": 2**29},
        {"heads": 4, "kv_heads": 4, "width": 2**28},
        {"inner": 2**30 + 1},
        {"width": MOST},
    ],
)
def test_products_of_sizes_are_sizes_too(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is above 2147483648"):
        decode_model(**sizes)


def test_the_largest_sizes_that_are_taken_do_not_overflow() -> None:
    page = decode_model(heads=1, kv_heads=1, width=2**29).kv_page_bytes("fp32")
    assert page == 2 * 2**29 * _C.KV_PAGE * 4
    many = decode_model(heads=2**28, kv_heads=2**28, width=2)
    assert many.kv_page_bytes("fp32") == 2**28 * (2 + 16) * _C.KV_PAGE * 4
    with pytest.raises(MemoryError):
        _C.PackedMatrix("fp32", MOST, MOST)


def test_no_more_likely_words_are_found_than_there_are() -> None:
    model = decode_model()
    vector = np.ones(8, dtype=np.float32)
    words = _C.PackedMatrix("fp32", 3, 8)
    model.set_rotaries([(np.ones((16, 2), dtype=np.float32), np.zeros((16, 2), dtype=np.float32))])
    model.set_ends(embedding=words, final_norm=(vector, 1e-5), head=words)
    row = np.zeros(1, dtype=np.int32)
    for wanted, top in ((row, 4), (row[:0], 2**57), (row[:0], 2**40)):
        values, found = empty(len(wanted), top), empty(len(wanted), top, dtype=np.int64)
        with pytest.raises(ValueError, match=r"top: \d+ is not in 1..3"):
            model.run(
                np.zeros(64, dtype=np.uint8), "fp32", tokens=row, positions=row, sequence=row, parent=row - 1,
                fork=row, masks=np.zeros((1, 0), dtype=np.uint8), tables=np.zeros((1, 0, 1), dtype=np.int32),
                wanted=wanted, top=(values, found),
            )  # fmt: skip

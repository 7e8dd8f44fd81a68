from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from layercoop_fast import _C

PLAYERS = [1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512]


def packed_by_numpy(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    count, n_players = masks.shape
    padded = np.zeros((count, -(-n_players // 64) * 64), dtype=bool)
    padded[:, :n_players] = masks
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


@pytest.fixture(params=_C.isa_available())
def level(request: pytest.FixtureRequest, restore_core: None) -> str:
    _C.set_isa(request.param)
    return _C.isa()


@pytest.mark.parametrize("n_players", PLAYERS)
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_pack_and_unpack(level: str, n_players: int, count: int) -> None:
    masks = np.random.default_rng(n_players).random((count, n_players)) < 0.5
    packed = _C.pack_masks(masks)
    assert packed.dtype == np.uint64
    np.testing.assert_array_equal(packed, packed_by_numpy(masks))
    back = _C.unpack_masks(packed, n_players)
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back.view(np.uint8), masks.view(np.uint8))


@settings(max_examples=100, deadline=None)
@given(masks=hnp.arrays(bool, st.tuples(st.integers(0, 9), st.integers(1, 140))))
def test_levels_agree(masks: npt.NDArray[np.bool_]) -> None:
    before = _C.isa()
    try:
        for name in _C.isa_available():
            _C.set_isa(name)
            packed = _C.pack_masks(masks)
            np.testing.assert_array_equal(packed, packed_by_numpy(masks), err_msg=name)
            np.testing.assert_array_equal(_C.unpack_masks(packed, masks.shape[1]), masks, err_msg=name)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("n_players", [7, 70])
def test_any_byte_but_zero_is_kept(level: str, n_players: int) -> None:
    bytes_ = np.resize(np.arange(256, dtype=np.uint8), (40, n_players))
    np.testing.assert_array_equal(_C.pack_masks(bytes_.view(bool)), packed_by_numpy(bytes_ != 0))


@pytest.mark.parametrize("offset", [1, 3, 17])
def test_unaligned_memory(level: str, offset: int) -> None:
    buffer = np.random.default_rng(offset).random(offset + 50 * 65) < 0.5
    masks = buffer[offset:].reshape(50, 65)
    np.testing.assert_array_equal(_C.pack_masks(masks), packed_by_numpy(masks))


def test_more_masks_than_one_range(level: str) -> None:
    masks = np.random.default_rng(0).random((30_001, 65)) < 0.5
    packed = _C.pack_masks(masks)
    np.testing.assert_array_equal(packed, packed_by_numpy(masks))
    np.testing.assert_array_equal(_C.unpack_masks(packed, 65), masks)


@pytest.mark.parametrize("n_players", PLAYERS)
def test_popcounts(n_players: int) -> None:
    masks = np.random.default_rng(n_players).random((50, n_players)) < 0.5
    counts = _C.popcounts(_C.pack_masks(masks))
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, masks.sum(axis=1))


GOOD = np.ones((4, 10), dtype=bool)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([[True]], TypeError, r"expected a C-contiguous numpy array bool\[any, any\], got list"),
        (None, TypeError, "got NoneType"),
        (GOOD.view(np.uint8), TypeError, "got dtype uint8"),
        (GOOD.astype(object), TypeError, "got dtype object"),
        (GOOD[0], ValueError, r"got shape \(10,\)"),
        (GOOD[:, ::2], ValueError, "got another memory layout"),
        (np.asfortranarray(GOOD), ValueError, "got another memory layout"),
        (np.ones((4, 0), dtype=bool), ValueError, r"0 players are not in 1\.\.512"),
        (np.ones((4, 513), dtype=bool), ValueError, r"513 players are not in 1\.\.512"),
    ],
)
def test_bad_masks(masks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^masks: .*{message}"):
        _C.pack_masks(masks)


def call_plan(packed: Any, n_players: int) -> object:
    return _C.Plan(packed, n_players, 8)


@pytest.mark.parametrize("function", [_C.unpack_masks, _C.trie_counts, call_plan])
@pytest.mark.parametrize(
    ("packed", "n_players", "error", "message"),
    [
        ("text", 8, TypeError, r"packed: expected a C-contiguous numpy array uint64\[any, any\], got str"),
        (np.zeros((2, 1), dtype=np.int64), 8, TypeError, "got dtype int64"),
        (np.zeros((2, 1), dtype=">u8"), 8, TypeError, "got dtype >u8"),
        (np.zeros(2, dtype=np.uint64), 8, ValueError, r"got shape \(2,\)"),
        (np.zeros((2, 4), dtype=np.uint64)[:, ::2], 128, ValueError, "got another memory layout"),
        (np.zeros((2, 1), dtype=np.uint64), 0, ValueError, r"n_players: 0 is not in 1\.\.512"),
        (np.zeros((2, 9), dtype=np.uint64), 513, ValueError, r"n_players: 513 is not in 1\.\.512"),
        (np.zeros((2, 1), dtype=np.uint64), 65, ValueError, "packed: 1 words a row; 65 players need 2"),
        (np.array([[0], [1 << 8]], dtype=np.uint64), 8, ValueError, "row 1 has a bit set past the last of 8 players"),
        (np.array([[9, 0], [9, 1 << 6]], dtype=np.uint64), 70, ValueError, "row 1 has a bit set past the last of 70"),
    ],
)
def test_bad_packed(
    function: Callable[[Any, int], object], packed: Any, n_players: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(packed, n_players)


@pytest.mark.parametrize("n_words", [0, 9])
def test_bad_width_of_popcounts(n_words: int) -> None:
    with pytest.raises(ValueError, match=rf"{n_words} words a row are not in 1\.\.8"):
        _C.popcounts(np.zeros((2, n_words), dtype=np.uint64))

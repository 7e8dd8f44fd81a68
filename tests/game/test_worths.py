"""worths.npz and mask files: what is written is read again, and nothing else is."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.game.worths import Worths, load_masks


def some_worths(**changes) -> Worths:
    arrays = {
        "masks": np.array([[True, False], [True, True]]),
        "worths": np.array([np.nan, 1.0]),
        "nll": np.array([np.inf, 2.5]),
        "window_nll": np.array([[1.0, np.inf], [2.0, 3.0]]),
        "window_tokens": np.array([7, 7]),
    }
    return Worths(**{**arrays, **changes}, fingerprints={"model": "abc", "numerics": {"threads": 2}})


def test_round_trip_with_nan_and_infinity(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "worths.npz"
    some_worths().save(str(path))  # a string is as good as a path
    read = Worths.load(str(path))
    for name in ("masks", "worths", "nll", "window_nll", "window_tokens"):
        assert np.array_equal(getattr(read, name), getattr(some_worths(), name), equal_nan=name != "masks")
    assert read.fingerprints == some_worths().fingerprints
    assert read.n_not_finite == 1
    assert [item.name for item in path.parent.iterdir()] == ["worths.npz"]


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "worths.npz"
    path.write_text("precious")
    with pytest.raises(RequestError, match="exists already"):
        some_worths().save(path)
    assert path.read_text() == "precious"
    some_worths().save(path, force=True)
    assert Worths.load(path).worths[1] == 1.0


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "worths.npz"
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        Worths.load(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(RequestError, match=r"not a worths.npz"):
        Worths.load(path)
    np.savez(path, masks=np.ones((1, 2), bool))
    with pytest.raises(RequestError, match=r"not a worths.npz"):
        Worths.load(path)
    some_worths(worths=np.array([1, 2])).save(path, force=True)
    with pytest.raises(RequestError, match="worths should be a 1-dimensional array of float64"):
        Worths.load(path)
    some_worths(worths=np.array([1.0])).save(path, force=True)
    with pytest.raises(RequestError, match="different lengths"):
        Worths.load(path)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_of_bool_or_zero_and_one(tmp_path: Path, dtype: type) -> None:
    masks = np.array([[1, 0, 1], [0, 0, 1]], dtype)
    np.save(tmp_path / "masks.npy", masks)
    read = load_masks(tmp_path / "masks.npy", 3)
    assert read.dtype == np.bool_
    assert np.array_equal(read, masks.astype(bool))


def test_mask_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "masks.npy"
    with pytest.raises(RequestError, match="cannot be read"):
        load_masks(path, 3)
    for wrong, message in [
        (np.ones((2, 4), bool), r"shape \[2, 4\]: masks of 3 players are \[M, 3\]"),
        (np.ones(3, bool), r"shape \[3\]"),
        (np.full((2, 3), 2), "dtype int64: masks are bool, or 0 and 1"),
        (np.ones((2, 3)), "dtype float64"),
        (np.array([["a", "b", "c"]]), "dtype <U1"),
    ]:
        np.save(path, wrong)
        with pytest.raises(RequestError, match=message):
            load_masks(path, 3)
    np.save(path, np.array([[None, 1, 2]], dtype=object), allow_pickle=True)
    with pytest.raises(
        RequestError, match=r"only numbers, bools and text are read \(no object arrays and no pickles\)"
    ):
        load_masks(path, 3)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "masks.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RequestError, match="pickles are not read"):
        load_masks(tmp_path / "masks.npy", 3)
    assert not (tmp_path / "sprung").exists()

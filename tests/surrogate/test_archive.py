"""What a saved fit says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.surrogate.archive import read_archive, write_archive
from layercoop_fast.surrogate.surrogate import Surrogate


def test_a_file_of_another_form_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", "form/1", {"n": 1}, {"x": np.ones(3)})
    assert read_archive(tmp_path / "a", "form/1", ["x"])[0] == {"n": 1}
    with pytest.raises(RequestError, match="is not a file of the form form/2"):
        read_archive(tmp_path / "a", "form/2", ["x"])


def test_the_floor_of_the_logarithm_is_kept(tmp_path: Path) -> None:
    masks = np.array([[bool(row >> i & 1) for i in range(3)] for row in range(8)])
    surrogate = Surrogate.fit(masks, np.linspace(0.25, 1.0, 8), ensemble=1)
    surrogate.save(tmp_path / "a")
    assert Surrogate.load(tmp_path / "a").link == surrogate.link

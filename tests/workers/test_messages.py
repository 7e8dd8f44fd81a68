"""Messages arrive as they were sent, and nothing in them is executed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from layercoop_fast.workers.messages import pack, unpack


def test_there_and_back() -> None:
    nll = np.array([[1.5, np.nan], [np.inf, -0.0]])
    sent = pack("rows", {"finished": True, "line": "two\nlines, ü"}, rows=np.arange(2), nll=nll, none=np.empty((0, 3)))
    kind, about, arrays = unpack(sent)
    assert (kind, about) == ("rows", {"finished": True, "line": "two\nlines, ü"})
    assert list(arrays) == ["rows", "nll", "none"]
    assert arrays["nll"].tobytes() == nll.tobytes()
    assert arrays["none"].shape == (0, 3)


def test_no_pickle() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be"):
        pack("rows", rows=np.array([object()]))
    plain = pack("rows", rows=np.arange(3))
    at = plain.index(b"\x93NUMPY")
    poisoned = plain[:at] + plain[at:].replace(b"'<i8'", b"'|O' ") + pickle.dumps([1, 2, 3])
    with pytest.raises(ValueError, match="Object arrays cannot be"):
        unpack(poisoned)

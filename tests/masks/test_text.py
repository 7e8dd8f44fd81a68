from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.text import mask_of, text_of


def test_masks_as_people_write_them(tmp_path: Path) -> None:
    assert mask_of("1,3-4", 6).tolist() == [3, 0, 3, 0, 0, 3]
    assert mask_of("1.attn,2.mlp, 2.attn", 4).tolist() == [3, 2, 0, 3]
    assert mask_of("full", 3).tolist() == [3, 3, 3]
    (tmp_path / "layercoop.json").write_text(json.dumps({"removed": [2, "0.mlp"], "kept": [1, 3, "0.attn"]}))
    assert mask_of(str(tmp_path), 4).tolist() == mask_of(str(tmp_path / "layercoop.json"), 4).tolist() == [1, 3, 0, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12).filter(any))
def test_a_mask_comes_back_from_its_text(halves: list[int]) -> None:
    mask = np.array(halves, dtype=np.uint8)
    assert mask_of(text_of(mask), len(mask)).tolist() == halves


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2-1", "mask=2-1: the range ends before it begins"),
        ("fast", "mask= takes blocks like"),
        ("6", "mask=6: the model has blocks 0 to 5"),
        ("0-5", "mask=0-5 removes every block"),
        ("nowhere.json", "mask= takes a folder that `prune` wrote"),
    ],
)
def test_other_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        mask_of(text, 6)


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layercoop.json").write_text(json.dumps({"removed": [2], "kept": [0, 1, 3]}))
    with pytest.raises(RequestError, match="about a model of 4 blocks, and this one has 6"):
        mask_of(str(tmp_path), 6)


def test_a_size_of_a_nested_family(tmp_path: Path) -> None:
    folder = tmp_path / "out@home"
    folder.mkdir()
    sizes = [{"n_removed": 1, "removed": [2]}, {"n_removed": 3, "removed": [2, "0.mlp", "0.attn"]}]
    record = {"removed": [2, 0], "kept": [1, 3], "nested": {"sizes": sizes}}
    (folder / "layercoop.json").write_text(json.dumps(record))
    assert mask_of(f"{folder}@1", 4).tolist() == [3, 3, 0, 3]
    assert mask_of(f"{folder / 'layercoop.json'}@3", 4).tolist() == mask_of(str(folder), 4).tolist() == [0, 3, 0, 3]
    with pytest.raises(RequestError, match="no mask without 2 players: @1, @3"):
        mask_of(f"{folder}@2", 4)
    (folder / "layercoop.json").write_text(json.dumps({**record, "nested": None}))
    with pytest.raises(RequestError, match="no family of sizes, so there is no @1: `prune --nested` writes one"):
        mask_of(f"{folder}@1", 4)
    (folder / "layercoop.json").write_text(json.dumps({**record, "nested": {"sizes": [3]}}))
    with pytest.raises(RequestError, match="does not list what was removed"):
        mask_of(f"{folder}@1", 4)
    with pytest.raises(RequestError, match="mask= takes blocks like"):
        mask_of("nowhere@1", 4)

"""Tensors are read from safetensors files as the safetensors library reads them, and damage is said in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from layercoop_fast.engine import weight_files
from layercoop_fast.engine.weight_files import WeightFiles
from layercoop_fast.errors import RequestError, RunError

TENSORS = {
    "a.weight": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "b.weight": torch.randn(3, 300_001, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "counts": torch.arange(11),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
}


def read(files: WeightFiles, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    stored = files.tensors[name]
    out = torch.full(stored.shape, 77, dtype=dtype or stored.dtype)
    files.read(stored, out)
    return out


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = WeightFiles(tmp_path)
    assert files.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert files.tensors[name].dtype == tensor.dtype
        assert torch.equal(read(files, name), tensor)


def test_a_large_tensor_is_read_in_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most so many bytes, since some systems refuse more."""
    monkeypatch.setattr(weight_files, "_MOST_AT_ONCE", 100_000)
    asked: list[int] = []
    preadv = os.preadv

    def note(descriptor: int, rooms: list[memoryview], at: int) -> int:
        asked.extend(map(len, rooms))
        return preadv(descriptor, rooms, at)

    monkeypatch.setattr(os, "preadv", note)
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert torch.equal(read(WeightFiles(tmp_path), "b.weight"), TENSORS["b.weight"])
    assert max(asked) == 100_000
    assert len(asked) == 19


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_dtype_is_what_torch_converts_to(tmp_path: Path, dtype: torch.dtype) -> None:
    """More than one piece of staging memory, and an end that is no whole piece."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    files = WeightFiles(tmp_path)
    for name in ("a.weight", "b.weight"):
        assert torch.equal(read(files, name, dtype), TENSORS[name].to(dtype))


def test_an_index_names_several_files(tmp_path: Path) -> None:
    places = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(TENSORS)}
    for file in set(places.values()):
        save_file({name: TENSORS[name] for name in TENSORS if places[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    files = WeightFiles(tmp_path)
    assert all(torch.equal(read(files, name), tensor) for name, tensor in TENSORS.items())
    (tmp_path / places["counts"]).unlink()
    with pytest.raises(RequestError, match=r"lacks model-00001-of-00002.safetensors, which its .* names"):
        WeightFiles(tmp_path)
    index.write_text("[]")
    with pytest.raises(RequestError, match="is not an index"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 40, -1, -1000])
def test_a_file_cut_short(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    with pytest.raises(RequestError, match=r"damaged safetensors file \(model.safetensors: .*\): fetch or copy it"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": "two", "data_offsets": [0, 8]},
        {"dtype": "F32"},
        7,
    ],
)
def test_a_header_that_makes_no_sense(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(RequestError, match="damaged safetensors file"):
        WeightFiles(tmp_path)


def test_numbers_of_an_unknown_kind(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(RequestError, match="holds a tensor of dtype F4"):
        WeightFiles(tmp_path)


def test_no_safetensors_at_all(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="weights are read from safetensors files only"):
        WeightFiles(tmp_path)


def test_a_file_cut_short_while_it_is_open(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    files = WeightFiles(tmp_path)
    os.truncate(file, files.tensors["a.weight"].begin + 10)
    with pytest.raises(RunError, match="was cut short after it was opened"):
        read(files, "a.weight")

"""Small GGUF files that ask for everything are refused before anything is built."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.export.gguf import cut_gguf
from layercoop_fast.masks.text import parse_removed

GIB = 2**30


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + GIB, before[1]))
    started = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < 10


def made(path: Path, names: list[str], values: dict[str, Any], *, alignment: int | None = None) -> Path:
    """A llama of these tensors, each of one number."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in {"llama.block_count": ("uint32", 4), **values}.items():
        getattr(writer, f"add_{kind}")(key, value)
    for name in names:
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BLOCKS = [f"blk.{block}.attn_norm.weight" for block in range(4)]
HEADS = {"llama.attention.head_count": ("uint32", 4), "llama.feed_forward_length": ("uint32", 8)}


@pytest.mark.parametrize(
    ("names", "values", "removed", "said"),
    [
        (BLOCKS, {"llama.block_count": ("uint64", 2**63)}, "1", "is 9223372036854775808: models of 1 to 4,096 blocks"),
        (BLOCKS, {"llama.block_count": ("uint32", 2**24)}, "1", "is 16777216: models of 1 to 4,096 blocks"),
        (BLOCKS, {"llama.block_count": ("uint32", 0)}, "1", "is 0: models of 1 to 4,096 blocks"),
        (BLOCKS, {**HEADS, "llama.embedding_length": ("uint32", 2**18)}, "1.mlp,0.attn", "is too small for that"),
        (BLOCKS, {**HEADS, "llama.embedding_length": ("uint32", 2**31)}, "1.mlp,0.attn", "lacks the key"),
        (BLOCKS, {**HEADS, "llama.attention.head_count": ("uint64", 2**40)}, "1.attn", "entries that are no counts"),
        ([*BLOCKS, "blk.99.attn_q.weight"], {}, "1", "'blk.99.attn_q.weight', which is of none of its 4 blocks"),
        ([*BLOCKS, "blk.٣.attn_q.weight"], {}, "1", "which is of none of its 4 blocks"),
        ([*BLOCKS, "blk.03.attn_q.weight"], {}, "1", "which is of none of its 4 blocks"),
    ],
)
def test_numbers_that_ask_for_everything(
    names: list[str], values: dict[str, Any], removed: str, said: str, tmp_path: Path
) -> None:
    file = made(tmp_path / "model.gguf", names, values)
    with pytest.raises(RequestError, match=said):
        cut_gguf(file, parse_removed(removed), tmp_path / "cut.gguf")
    assert not (tmp_path / "cut.gguf").exists()


@pytest.mark.parametrize("alignment", [2**30, 2**31])
def test_an_alignment_of_a_gigabyte(alignment: int, tmp_path: Path) -> None:
    file = made(tmp_path / "model.gguf", BLOCKS, {}, alignment=64)
    content = file.read_bytes()
    key = b"general.alignment" + (4).to_bytes(4, "little")
    assert content.count(key) == 1
    at = content.find(key) + len(key)
    file.write_bytes(content[:at] + alignment.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(RequestError, match=f"general.alignment of {alignment}, which is no power of two up to 65,536"):
        cut_gguf(file, parse_removed("1"), tmp_path / "cut.gguf")


def test_tensors_that_lie_in_each_other(tmp_path: Path) -> None:
    file = made(tmp_path / "model.gguf", BLOCKS, {})
    content = file.read_bytes()
    field = (128).to_bytes(8, "little")  # the place of the second of four tensors of 128 bytes
    assert content.count(field) == 1
    for place, said in (
        (0, "two tensors lie in the same place"),
        (32, "overlaps the tensor behind it"),
        (136, "begin"),
    ):
        file.write_bytes(content.replace(field, place.to_bytes(8, "little")))
        with pytest.raises(RequestError, match=said):
            cut_gguf(file, parse_removed("1"), tmp_path / "cut.gguf")


def test_the_fuzzers_own_files_are_taken_where_nothing_is_wrong(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
    from small_files import gguf_bytes

    taken = 0
    for seed in range(60):
        file = tmp_path / f"{seed}.gguf"
        file.write_bytes(gguf_bytes(Random(seed)))
        try:
            taken += cut_gguf(file, parse_removed("0"), tmp_path / f"cut {seed}.gguf").out.exists()
        except RequestError:
            continue
    assert taken > 5

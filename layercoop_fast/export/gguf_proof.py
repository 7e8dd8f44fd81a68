"""Proof that a cut GGUF file is the source without the removed parts: it is read back and compared byte by byte.

Imports no torch. The expected content is derived here from the source and the kept blocks, independently of the writer.
`compare_logits` also compares outputs, where transformers can read both files.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.deci import ATTENTION, MLP, Block
from layercoop_fast.export.gguf_file import GGUF, GGUFTensor, Value, read_gguf
from layercoop_fast.export.gguf_rules import block_count

_PIECE = 8 * 2**20
_OF_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)", re.DOTALL)


def check_cut(made: Path, source: GGUF, values: dict[str, Value], blocks: Sequence[Block]) -> dict[str, int]:
    """Compare a cut file with its source; return the number of tensors and bytes compared.

    Args:
        made: the file that was written.
        source: the header of the file it was cut from.
        values: the key-values that it must have.
        blocks: where the halves of each of its blocks come from.

    Raises `RunError` with the first difference.
    """
    try:
        found = read_gguf(made)
    except RequestError as error:
        raise _wrong(str(error)) from error
    if (found.version, found.alignment) != (source.version, source.alignment) or found.values != values:
        raise _wrong("its key-values are not those that were written")
    if block_count(found.values) != len(blocks):
        raise _wrong(f"it states {block_count(found.values)} blocks, and {len(blocks)} were kept")
    wanted, there = _wanted(source.tensors, blocks), {tensor.name: tensor for tensor in found.tensors}
    if missing := wanted.keys() - there.keys():
        raise _wrong(f"it lacks the tensor {min(missing)}")
    compared = 0
    with (
        made.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        source.path.open("rb") as original,
        mmap.mmap(original.fileno(), 0, access=mmap.ACCESS_READ) as before,
    ):
        for name, tensor in there.items():
            old = wanted.get(name)
            is_placeholder = old is None and not all(block.is_original for block in blocks)
            if old is None and not is_placeholder:
                raise _wrong(f"it has a tensor {name} that is not from the source")
            if old is not None and (old.dims, old.kind, old.n_bytes) != (tensor.dims, tensor.kind, tensor.n_bytes):
                raise _wrong(f"{name} has another shape or type than {old.name} of the source")
            if not _same(content, tensor, before, old):
                raise _wrong(f"{name} does not hold the bytes of {'zeros' if old is None else old.name}")
            compared += tensor.n_bytes
    return {"tensors": len(there), "bytes": compared}


def compare_logits(made: Path, source: GGUF, removed: frozenset[tuple[int, str]]) -> dict[str, Any]:
    """Compare the logits of a cut file with the masked pass on its source, both opened by transformers.

    Returns the result of `Reference.check`, or `done` False with the reason where the files cannot be opened here.
    Raises `RunError` where the logits differ.
    """
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if find_spec(module) is None:
            return {"done": False, "reason": f"{module} is not installed"}
    from layercoop_fast.export.gguf_logits import compare

    return compare(made, source, removed)


def _wanted(tensors: Sequence[GGUFTensor], blocks: Sequence[Block]) -> dict[str, GGUFTensor]:
    """The kept tensors of the source, by the names that they must have."""
    numbers: dict[tuple[str, int], list[int]] = {}
    for new, block in enumerate(blocks):
        for part, old in ((ATTENTION, block.attention), (MLP, block.mlp)):
            if old is not None:
                numbers.setdefault((part, old), []).append(new)
    wanted = {}
    for tensor in tensors:
        match = _OF_BLOCK.fullmatch(tensor.name)
        if match is None:
            wanted[tensor.name] = tensor
            continue
        part = MLP if match[2].startswith("ffn_") else ATTENTION
        for new in numbers.get((part, int(match[1])), []):
            wanted[f"blk.{new}.{match[2]}"] = tensor
    return wanted


def _same(content: mmap.mmap, tensor: GGUFTensor, before: mmap.mmap, old: GGUFTensor | None) -> bool:
    """Whether a tensor holds the bytes of another, or zeros where there is no other."""
    assert tensor.offset is not None
    for start in range(0, tensor.n_bytes, _PIECE):
        size = min(_PIECE, tensor.n_bytes - start)
        piece = content[tensor.offset + start : tensor.offset + start + size]
        if old is None:
            if piece.count(0) != size:
                return False
        else:
            assert old.offset is not None
            if piece != before[old.offset + start : old.offset + start + size]:
                return False
    return True


def _wrong(what: str) -> RunError:
    return RunError(f"the cut file is not the source without the removed parts: {what}; nothing was written")

"""Removing blocks, or halves of blocks, from a GGUF file: names and counts are rewritten, weights are copied unchanged.

    cut = cut_gguf(Path("model-Q4_K_M.gguf"), parse_removed("3,7,13-18"), Path("smaller.gguf"))

Weights are not decoded, so that any quantisation is preserved, and torch is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.export.deci import halved, joined, renamed
from layercoop_fast.export.gguf_file import GGUF, GGUFTensor, read_gguf, write_gguf
from layercoop_fast.export.gguf_proof import check_cut, compare_logits
from layercoop_fast.export.gguf_rules import architecture, block_count, rewritten
from layercoop_fast.files import check_target
from layercoop_fast.masks.halves import PARTS
from layercoop_fast.masks.text import RemovedHalves


@dataclass(frozen=True)
class Cut:
    """A written file, and the sizes of both files.

    Attributes:
        out: the file.
        architecture: its name in llama.cpp.
        blocks: number of blocks before (`full`) and after (`pruned`).
        without_attention: number of written blocks without attention.
        without_mlp: number of written blocks without MLP.
        params: number of parameters, `full` and `pruned`.
        file_bytes: bytes of the files, `full` and `pruned`.
        verified: `done`, the number of `tensors` and `bytes` that were compared with the source's, and `logits` (None
            where not requested; else as `verified` of a checkpoint, with `reason` where transformers cannot open the
            files here).
    """

    out: Path
    architecture: str
    blocks: dict[str, int]
    without_attention: int
    without_mlp: int
    params: dict[str, int]
    file_bytes: dict[str, int]
    verified: dict[str, Any] = field(default_factory=dict)


def cut_gguf(
    model: Path,
    removed: RemovedHalves,
    out: Path,
    *,
    n_layers: int | None = None,
    force: bool = False,
    verify: bool = True,
    logits: bool = False,
) -> Cut:
    """Write `model` without the halves `removed` to the file `out`.

    Args:
        model: a GGUF file of version 2 or 3, little-endian, in one piece.
        removed: blocks or halves of blocks; halves of the architecture `llama` only.
        out: the file to write, not the model itself.
        n_layers: number of layers of the model that `removed` was found on, where it is known.
        force: replace an existing file.
        verify: read the file back before it is renamed to `out`, and compare every tensor with the source, byte by
            byte.
        logits: also open both files with transformers, where it reads them, and compare the masked pass on the source
            with the logits of the result. This needs torch and memory for the unpacked weights.

    Raises `RequestError` before anything is written where the request or the file is wrong, and `RunError` where the
    written file is not the source without the removed parts; nothing is left behind then.
    """
    check_target(out, force=force)
    if out.exists() and model.exists() and out.samefile(model):
        raise RequestError(f"{out} is the model itself: name another file to write")
    source = read_gguf(model)
    _check_whole(source)
    n_blocks = block_count(source.values)
    if n_layers not in (None, n_blocks):
        raise RequestError(f"the search was on a model of {n_layers} layers, and {model} has {n_blocks}")
    if beyond := sorted({block for block, _ in removed if block >= n_blocks}):
        raise RequestError(f"{model} has blocks 0 to {n_blocks - 1}, so block {beyond[0]} cannot be removed")
    blocks = joined(n_blocks, removed)
    if not blocks:
        raise RequestError("at least one block must be kept")
    tensors = renamed(source.tensors, blocks, n_blocks)
    if all(block.is_original for block in blocks):
        values = rewritten(source.values, [number for number in range(n_blocks) if (number, PARTS[0]) not in removed])
    elif (name := architecture(source.values)) == "llama":
        values, tensors = halved(source.values, tensors, blocks, n_blocks, model.stat().st_size)
    else:
        raise RequestError(f"halves of blocks can be removed from the architecture llama only, and this is {name!r}")
    verified: dict[str, Any] = {"done": False, "tensors": 0, "bytes": 0, "logits": None}

    def check(made: Path) -> None:
        verified.update(done=True, **check_cut(made, source, values, blocks))
        if logits:
            verified["logits"] = compare_logits(made, source, removed)

    write_gguf(out, source, values, tensors, force=force, check=check if verify else None)
    return Cut(
        out,
        architecture(values),
        {"full": n_blocks, "pruned": len(blocks)},
        sum(block.attention is None for block in blocks),
        sum(block.mlp is None for block in blocks),
        {"full": _parameters(source.tensors), "pruned": _parameters(tensors)},
        {"full": source.path.stat().st_size, "pruned": out.stat().st_size},
        verified,
    )


def _check_whole(source: GGUF) -> None:
    """Raise `RequestError` for one part of a split model."""
    parts = source.values["split.count"].scalar() if "split.count" in source.values else 1
    if parts not in (0, 1) or re.search(r"-\d{5}-of-\d{5}\.gguf$", source.path.name):
        raise RequestError(f"{source.path} is one part of a split model: join the parts first (with llama-gguf-split)")


def _parameters(tensors: Sequence[GGUFTensor]) -> int:
    return sum(tensor.n_parameters for tensor in tensors)

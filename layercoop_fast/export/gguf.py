"""Cutting blocks, or halves of blocks, out of a GGUF file: names and counts are rewritten, weights copied as they are.

    cut = cut_gguf(Path("model-Q4_K_M.gguf"), parse_removed("3,7,13-18"), Path("smaller.gguf"))

No weight is decoded, so any quantisation stays what it is, and nothing of torch is loaded.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.deci import ATTENTION, MLP, halved, joined, renamed
from layercoop_fast.export.gguf_file import GGUF, Tensor, read_gguf, write_gguf
from layercoop_fast.export.gguf_proof import check_cut, compare_logits
from layercoop_fast.export.gguf_rules import architecture, block_count, rewritten
from layercoop_fast.files import RECORD, check_target
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import as_saved, read_json

PARTS = (ATTENTION, MLP)
_ITEM = re.compile(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?(?:\.(attn|mlp))?\s*")
Halves = frozenset[tuple[int, str]]
"""What goes: (block, "attn" or "mlp"); a whole block is both of its halves."""


@dataclass(frozen=True)
class Cut:
    """What was written, and the sizes of both files."""

    out: Path
    architecture: str
    blocks: dict[str, int]
    """Number of blocks, before and after: `full`, `pruned`."""
    without_attention: int
    without_mlp: int
    params: dict[str, int]
    file_bytes: dict[str, int]
    verified: dict[str, Any] = field(default_factory=dict)
    """What was proven: `done`, `tensors` and `bytes` that were compared with the source's, and `logits` (null where not
    asked for; else as `verified` of a checkpoint, with `reason` where transformers cannot open the files here)."""


def parse_removed(text: str, option: str = "--remove") -> Halves:
    """Read `3,7,13-18` or `12.attn,13.mlp,20-22.mlp`. Raises `RequestError` where it says something else."""
    # Ranges may be long and many: their ends are marked, and what lies between is counted out once.
    marked = {part: np.zeros(MAX_PLAYERS + 1, np.int64) for part in PARTS}
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise RequestError(
                f"{option} takes blocks like 3,7,13-18 or halves like 12.attn,13.mlp, not {reprlib.repr(text)}"
            )
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise RequestError(f"{option} {item.strip()}: the range ends before it begins")
        if last >= MAX_PLAYERS:
            raise RequestError(f"{option} {item.strip()}: blocks have numbers up to {MAX_PLAYERS - 1:,}")
        for part in (match[3],) if match[3] else PARTS:
            marked[part][first] += 1
            marked[part][last + 1] -= 1
    return frozenset(
        (block, part) for part, marks in marked.items() for block in np.flatnonzero(np.cumsum(marks)).tolist()
    )


def removed_of(folder: Path, option: str = "--from") -> tuple[Halves, int]:
    """Read what a search removed from the `layercoop.json` of the folder it wrote, and of how many layers.

    `FOLDER@3` is the mask without 3 players of a family that `prune --nested` found.
    """
    folder, size = family_size(folder)
    path = folder / RECORD if os.path.isdir(folder) else folder
    takes = f"{option} takes a folder that `prune` wrote"
    record = read_json(path, hint=takes)
    with as_saved(path, f"it does not list what was removed and kept: {takes}"):
        removed, kept = (_units(record[name]) for name in ("removed", "kept"))
        sizes = {one["n_removed"]: _units(one["removed"]) for one in (record.get("nested") or {"sizes": []})["sizes"]}
    layers = 1 + max((block for block, _ in removed | kept), default=-1)
    if size is None:
        return removed, layers
    if not sizes:
        raise RequestError(f"{path} holds no family of sizes, so there is no @{size}: `prune --nested` writes one")
    if size not in sizes:
        raise RequestError(f"{path} holds no mask without {size} players: {', '.join(f'@{one}' for one in sizes)}")
    return sizes[size], layers


def family_size(folder: Path) -> tuple[Path, int | None]:
    """`FOLDER@3` as folder and size; a path that is there as it is has no size.

    The text may be no path at all: `os.path` says so, where `Path.exists` raises for a name that is too long.
    """
    base, at, size = str(folder).rpartition("@")
    if not at or not base or not size.isdecimal() or len(size) > 6 or os.path.exists(folder):
        return folder, None
    return Path(base), int(size)


def cut_gguf(
    model: Path,
    removed: Halves,
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
        out: the file to write; never the model itself.
        n_layers: number of layers of the model that `removed` was found on, where that is known.
        force: replace what is there.
        verify: read the file back before it takes its place, and compare every tensor with the source, byte by byte.
        logits: also open both files by transformers, where it reads them, and compare the masked pass on the source
            with the logits of the result. That takes torch and the memory for unpacked weights.

    Raises `RequestError` before anything is written where the request or the file is wrong, and `RunError` where what
    was written is not the source without what was removed; nothing is left then.
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
        raise RequestError(f"{model} has blocks 0 to {n_blocks - 1}, and block {beyond[0]} is to go")
    blocks = joined(n_blocks, removed)
    if not blocks:
        raise RequestError("at least one block must be kept")
    tensors = renamed(source.tensors, blocks, n_blocks)
    if all(block.is_original for block in blocks):
        values = rewritten(source.values, [number for number in range(n_blocks) if (number, PARTS[0]) not in removed])
    elif (name := architecture(source.values)) == "llama":
        values, tensors = halved(source.values, tensors, blocks, n_blocks, model.stat().st_size)
    else:
        raise RequestError(f"halves of blocks can go from the architecture llama only, and this is {name!r}")
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
    """Refuse a file that is one of several."""
    parts = source.values["split.count"].scalar() if "split.count" in source.values else 1
    if parts not in (0, 1) or re.search(r"-\d{5}-of-\d{5}\.gguf$", source.path.name):
        raise RequestError(
            f"{source.path} is one part of a split model: join the parts first (llama-gguf-split --merge)"
        )


def _units(labels: list[Any]) -> Halves:
    """`[12, "13.mlp"]` as halves. Raises `ValueError` for any other list."""
    halves: set[tuple[int, str]] = set()
    if not isinstance(labels, list):
        raise ValueError("no list of layers")  # noqa: TRY004 (one kind for all that a record can hold)
    for label in labels:
        match = _ITEM.fullmatch(str(label)) if type(label) in (int, str) else None
        if match is None or match[2] is not None or int(match[1]) >= MAX_PLAYERS:
            raise ValueError(f"no layer: {str(label)[:40]!r}")
        halves |= {(int(match[1]), part) for part in ((match[3],) if match[3] else PARTS)}
    return frozenset(halves)


def _parameters(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.n_parameters for tensor in tensors)

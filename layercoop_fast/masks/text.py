"""Masks as people write them: what to leave out, or a folder that says so."""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import as_saved, read_json
from layercoop_fast.masks.halves import PARTS, WHOLE, Halves


def mask_of(text: str, n_layers: int, option: str = "mask=") -> Halves:
    """The halves of blocks that stay, uint8 [L].

    Args:
        text: what goes, `3,7,13-18` or halves like `12.attn,13.mlp`; or a folder that `prune` wrote, whose
            `layercoop.json` says what goes, or `FOLDER@3` for one size of a nested family. `full` removes nothing.
        n_layers: number of blocks L.
        option: what the user calls this, for errors: a parameter (`mask=`), or a command of a chat (`/mask`).

    Raises `RequestError` for what is neither, for blocks that are not there, and where nothing would stay.
    """
    if text.strip() == "full":
        return np.full(n_layers, WHOLE, dtype=np.uint8)
    path, _ = family_size(Path(text))
    if os.path.isdir(path) or path.suffix == ".json":
        removed, counted = removed_of(Path(text), option)
        if counted != n_layers:
            raise RequestError(
                f"{_with(option, text)} is about a model of {counted} blocks, and this one has {n_layers}"
            )
    else:
        removed = parse_removed(text, option)
    return _without(removed, text, n_layers, option)


def blocks_mask(text: str, n_layers: int, option: str = "mask=") -> Halves:
    """The halves of blocks that stay, uint8 [L], of `3,7,13-18`, `12.attn` or `full`: `mask_of` without files."""
    if text.strip() == "full":
        return np.full(n_layers, WHOLE, dtype=np.uint8)
    return _without(parse_removed(text, option), text, n_layers, option)


def _without(removed: RemovedHalves, text: str, n_layers: int, option: str) -> Halves:
    halves = np.full(n_layers, WHOLE, dtype=np.uint8)
    for block, part in removed:
        if block >= n_layers:
            raise RequestError(f"{_with(option, text)}: the model has blocks 0 to {n_layers - 1}")
        halves[block] &= ~np.uint8(1 << PARTS.index(part))
    if not halves.any():
        raise RequestError(f"{_with(option, text)} removes every block: at least one must be kept")
    return halves


def _with(option: str, value: str) -> str:
    return f"{option}{value}" if option.endswith("=") else f"{option} {value}"


def text_of(mask: Halves) -> str:
    """A mask, uint8 [L], as `mask_of` reads it: what it leaves out, `full` where that is nothing."""
    whole = [int(block) for block in np.flatnonzero(mask == 0)]
    runs: list[list[int]] = []
    for block in whole:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    parts += [
        f"{block}.{'mlp' if mask[block] == 1 else 'attn'}" for block in np.flatnonzero((mask > 0) & (mask < WHOLE))
    ]
    return ",".join(parts) or "full"


_ITEM = re.compile(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?(?:\.(attn|mlp))?\s*")


RemovedHalves = frozenset[tuple[int, str]]
"""What goes: (block, "attn" or "mlp"); a whole block is both of its halves."""


def parse_removed(text: str, option: str = "remove=") -> RemovedHalves:
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
            raise RequestError(f"{_with(option, item.strip())}: the range ends before it begins")
        if last >= MAX_PLAYERS:
            raise RequestError(f"{_with(option, item.strip())}: blocks have numbers up to {MAX_PLAYERS - 1:,}")
        for part in (match[3],) if match[3] else PARTS:
            marked[part][first] += 1
            marked[part][last + 1] -= 1
    return frozenset(
        (block, part) for part, marks in marked.items() for block in np.flatnonzero(np.cumsum(marks)).tolist()
    )


def removed_of(folder: Path, option: str = "source=") -> tuple[RemovedHalves, int]:
    """Read what a search removed from the `layercoop.json` of the folder it wrote, and of how many layers.

    `FOLDER@3` is the mask without 3 players of a family that a nested `prune` found.
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
        raise RequestError(f"{path} holds no family of sizes, so there is no @{size}: a nested `prune` writes one")
    if size not in sizes:
        raise RequestError(f"{path} holds no mask without {size} players: {', '.join(f'@{one}' for one in sizes)}")
    return sizes[size], layers


def family_size(folder: Path) -> tuple[Path, int | None]:
    """`FOLDER@3` as folder and size; a path that exists has no size.

    The text may be no path at all: `os.path` says so, where `Path.exists` raises for a name that is too long.
    """
    base, at, size = str(folder).rpartition("@")
    if not at or not base or not size.isdecimal() or len(size) > 6 or os.path.exists(folder):
        return folder, None
    return Path(base), int(size)


def _units(labels: list[Any]) -> RemovedHalves:
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

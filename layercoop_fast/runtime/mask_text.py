"""Masks as people write them: what to leave out, or a folder that says so."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.gguf import family_size, parse_removed, removed_of
from layercoop_fast.runtime.masks import WHOLE, Halves

_BITS = {"attn": 1, "mlp": 2}


def mask_of(text: str, n_layers: int, option: str = "--mask") -> Halves:
    """The halves of blocks that stay, uint8 [L].

    Args:
        text: what goes, `3,7,13-18` or halves like `12.attn,13.mlp`; or a folder that `prune` wrote, whose
            `layercoop.json` says what goes, or `FOLDER@3` for one size of a nested family. `full` removes nothing.
        n_layers: number of blocks L.
        option: what the user calls this, for errors.

    Raises `RequestError` for what is neither, for blocks that are not there, and where nothing would stay.
    """
    if text.strip() == "full":
        return np.full(n_layers, WHOLE, dtype=np.uint8)
    path, _ = family_size(Path(text))
    if os.path.isdir(path) or path.suffix == ".json":
        removed, counted = removed_of(Path(text), option)
        if counted != n_layers:
            raise RequestError(f"{option} {text} is about a model of {counted} blocks, and this one has {n_layers}")
    else:
        removed = parse_removed(text, option)
    halves = np.full(n_layers, WHOLE, dtype=np.uint8)
    for block, part in removed:
        if block >= n_layers:
            raise RequestError(f"{option} {text}: the model has blocks 0 to {n_layers - 1}")
        halves[block] &= ~np.uint8(_BITS[part])
    if not halves.any():
        raise RequestError(f"{option} {text} removes every block: at least one must be kept")
    return halves


def text_of(mask: Halves) -> str:
    """A mask as `mask_of` reads it: what it leaves out, `full` where that is nothing."""
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

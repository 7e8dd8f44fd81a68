"""What changed the weights of a pruned checkpoint beside the removal of layers, by its `layercoop.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layercoop_fast.files import RECORD
from layercoop_fast.inputs.text import as_saved, read_json
from layercoop_fast.masks.text import family_size


def changes(record: Mapping[str, Any]) -> list[str]:
    """Those of "a repair", "healing" and "quantisation" after which the weights are no longer those of the base."""
    found = {
        "a repair": (record.get("repair") or {}).get("kept"),
        "healing": (record.get("healing") or {}).get("kept"),
        "quantisation": "quantised" in record,
    }
    return [name for name, holds in found.items() if holds]


def lost_in_a_cut(source: Path) -> list[str]:
    """Those of "a repair" and "healing" that a cut of the base by what a folder says was removed does not have.

    Quantisation is left out: a file to cut has its own. Of one size of a family (`FOLDER@3`) there is no checkpoint,
    and nothing that could be lost.

    Raises `RequestError` where the record is damaged.
    """
    folder, size = family_size(source)
    if size is not None:
        return []
    path = folder / RECORD if folder.is_dir() else folder
    with as_saved(path):
        return [name for name in changes(read_json(path)) if name != "quantisation"]

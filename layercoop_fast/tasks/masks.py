"""Several masks with names, as people write them: `a=13-18,b=pruned@3`, or the rows of a .npy."""

from __future__ import annotations

import re
from pathlib import Path

from layercoop_fast.errors import RequestError
from layercoop_fast.game.worths import load_masks
from layercoop_fast.masks.types import Masks

FULL = "full"
"""The mask that keeps everything: others are compared with it."""
_MOST = 4096
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.*)", re.DOTALL)
# A mask has commas of its own; the next one begins with a name.
_NEXT = re.compile(r",(?=[A-Za-z0-9][A-Za-z0-9._-]{0,63}=)")


def named_masks(text: str) -> dict[str, str | Masks]:
    """Masks by name, `full` before all others.

    Args:
        text: NAME=WHAT GOES, several with commas between them, each as `masks.text.mask_of` reads it; one without a
            name is called by its text. Or a .npy of bool [M, L] or [M, 2L], whose rows are called 0, 1, and so on.

    Raises `RequestError` for a name that is given twice, for no mask, and for more than 4,096.
    """
    found: dict[str, str | Masks] = {FULL: FULL}
    if text.endswith(".npy"):
        rows = load_masks(Path(text))
        if not 1 <= len(rows) <= _MOST:
            raise RequestError(f"{text} has {len(rows)} masks: 1 to {_MOST:,} are scored in one run")
        return {**found, **{str(number): row for number, row in enumerate(rows)}}
    for part in _NEXT.split(text):
        named = _NAMED.fullmatch(part.strip())
        name, what = (named[1], named[2].strip()) if named else (part.strip(), part.strip())
        if not what:
            raise RequestError(f"masks={text} names no blocks: write a=13-18,b=pruned, or full for all blocks")
        if name == FULL and what != FULL:
            raise RequestError(f"masks={text}: {FULL} is the name of the full model, give this mask another one")
        if name in found and name != FULL:
            raise RequestError(f"masks={text} has two masks {name}: give each a name of its own")
        found[name] = what
    return found

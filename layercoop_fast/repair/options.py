"""What a repair is fitted to. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layercoop_fast.inputs.options import REPAIR, REPAIR_TOKENS, shell


@dataclass(frozen=True, kw_only=True)
class RepairTexts:
    """What a repair is fitted to.

    Attributes:
        repair_text: SPECs of the texts; None: those of `repair.texts.default_texts`.
        repair_tokens: number of tokens, over all texts.
    """

    repair_text: Sequence[str] | None = field(
        default=None,
        metadata=shell(
            "Text to fit a repair to; give the option once for each text. Default: the calibration text, builtin, "
            "builtin-docstrings and builtin-code.",
            panel=REPAIR,
            read="texts",
        ),
    )
    repair_tokens: int = field(
        default=REPAIR_TOKENS, metadata=shell("Number of tokens to fit a repair to, over all its texts.", panel=REPAIR)
    )

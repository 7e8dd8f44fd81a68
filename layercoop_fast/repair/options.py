"""What a repair is fitted to. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layercoop_fast.inputs.options import REPAIR, REPAIR_TOKENS, option


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """What a repair is fitted to.

    Attributes:
        repair_text: SPECs of the texts; None: those of `repair.texts.default_texts`.
        repair_tokens: number of tokens, over all texts.
    """

    repair_text: Sequence[str] | None = option(
        None,
        REPAIR,
        "Text to fit a repair to; give the option once for each text. Default: the calibration text, builtin, "
        "builtin-docstrings and builtin-code.",
        read="texts",
    )
    repair_tokens: int = option(REPAIR_TOKENS, REPAIR, "Number of tokens to fit a repair to, over all its texts.")

"""What a repair is fitted to. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import REPAIR, REPAIR_TOKENS, option

COMPUTES = ("small", "full")


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """What a repair is fitted to.

    Attributes:
        repair_text: SPECs of the texts; None: those of `repair.texts.default_texts`.
        repair_tokens: number of tokens, over all texts.
        repair_compute: "full": gated MLPs give up some neurons for a linear map of the stream (`repair/neurons.py`);
            "small": the output map before each gap alone is refitted, in less time and memory.
    """

    repair_text: Sequence[str] | None = option(
        None,
        REPAIR,
        "Text to fit a repair to; give the option once for each text. Default: the calibration text, builtin, "
        "builtin-docstrings, builtin-code and self, which the model writes.",
        read="texts",
    )
    repair_tokens: int = option(REPAIR_TOKENS, REPAIR, "Number of tokens to fit a repair to, over all its texts.")
    repair_compute: str = option(
        "full",
        REPAIR,
        "full: some neurons before each removed run become a linear map of the stream. small: the last linear map "
        "alone is refitted, in less time and memory.",
    )


def check_compute(compute: str) -> None:
    """Raise `RequestError` for a compute that is neither small nor full."""
    if compute not in COMPUTES:
        raise RequestError(f"repair_compute={compute!r} is neither {' nor '.join(COMPUTES)}")

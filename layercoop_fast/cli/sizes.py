"""Sizes of memory and files, as people write them."""

from __future__ import annotations

import re

from layercoop_fast.errors import RequestError

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}b": size for unit, size in list(_UNITS.items()) if unit in "kmgt" and unit}
_UNITS |= {f"{unit}ib": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}


def size_in_bytes(text: str | None, option: str = "--memory") -> int | None:
    """`4GiB`, `500MB` or `1073741824` in bytes; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise RequestError(f"{option} {text!r} is not a size: write 4GiB, 500MB or a number of bytes")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if size >= 2**63:
        raise RequestError(f"{option} {text!r} is more than any machine holds: write 4GiB, 500MB or a number of bytes")
    return int(size)


def count_of(text: str | None, option: str) -> int | None:
    """`1M`, `300k` or `250000` as a number; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)\s*", text)
    if match is None or float(match[1]) >= 2**40:
        raise RequestError(f"{option} {text!r} is not a number: write 1M, 300k or 250000")
    return round(float(match[1]) * _UNITS[match[2].lower()])

"""The header of a safetensors file, checked against the size of the file before any tensor is read.

The format: n in eight bytes, little-endian; n bytes of JSON, {name: {dtype, shape, data_offsets}}, with texts by name
under `__metadata__`; then the data. Source: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.text import parse_json

# The library's own limit.
_LONGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 16
# Bits of an element. Dtypes that are not listed are accepted without a check of their size: newer versions add some.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
_BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
_BITS |= dict.fromkeys(("U32", "I32", "F32"), 32)
_BITS |= dict.fromkeys(("U64", "I64", "F64", "C64"), 64)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a header describes it: `size` bytes from byte `begin` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True)
class Header:
    """The content of a header: tensors and texts, by name."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(file: Path, descriptor: int | None = None) -> Header:
    """The header of a file; `descriptor` is that of the file where it is open already.

    Raises `RequestError` where the file cannot be read, is not a safetensors file, or is shorter than its header says.
    """
    opened = descriptor
    try:
        if opened is None:
            opened = os.open(file, os.O_RDONLY)
        length = os.fstat(opened).st_size
        size = int.from_bytes(os.pread(opened, 8, 0), "little")
        if length < 8 or 8 + size > length:
            raise _damaged(file, f"its header ends beyond its {length} bytes")
        if size > _LONGEST_HEADER:
            raise _damaged(file, f"its header is longer than {_LONGEST_HEADER:,} bytes")
        content = os.pread(opened, size, 8)
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{file} cannot be read: {reason(error)}") from error
    finally:
        if opened is not None and descriptor is None:
            os.close(opened)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _damaged(file, "its header is not UTF-8 text") from error
    try:
        found = parse_json(text, "its header")
    except RequestError as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(file, "its header is not a JSON object")
    metadata = found.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise _damaged(file, "its metadata are not texts by name")
    return Header({name: _info(file, name, one, 8 + size, length) for name, one in found.items()}, metadata)


def _info(file: Path, name: str, found: Any, start: int, length: int) -> TensorInfo:
    """A tensor's description, checked."""
    form = _damaged(file, f"it does not say dtype, shape and place of {name}")
    if not isinstance(found, dict):
        raise form
    dtype, shape, place = found.get("dtype"), _counts(found.get("shape")), _counts(found.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or place is None or len(place) != 2:
        raise form
    if len(shape) > _MOST_DIMENSIONS:
        raise _damaged(file, f"{name} has {len(shape)} dimensions")
    first, last = place
    bits = _BITS.get(dtype)
    if first > last or (bits is not None and (last - first) * 8 != math.prod(shape) * bits):
        raise _damaged(file, f"the place of {name} does not fit its shape")
    if start + last > length:
        raise _damaged(file, f"it ends at byte {length}, and its header states at least {start + last} bytes")
    return TensorInfo(dtype, shape, start + first, last - first)


def _counts(found: Any) -> tuple[int, ...] | None:
    """A list of integers from 0 up to below 2^63, as a tuple; None where it is something else."""
    fits = isinstance(found, list) and all(type(one) is int and 0 <= one < 2**63 for one in found)
    return tuple(found) if fits else None


def _damaged(file: Path, how: str) -> RequestError:
    return RequestError(f"{file.parent} has a damaged safetensors file ({file.name}: {how}): fetch or copy it again")

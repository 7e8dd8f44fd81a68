"""Arrays from `.npy` and `.npz` files that are not trusted.

NumPy's own reader evaluates headers as Python literals, allocates what a header states, and unpacks members of archives
without a limit. Here a header must have the form that NumPy writes, and its sizes must fit the number of bytes in the
file, before anything is allocated. Pickles are never opened.
The format: b"\x93NUMPY", version (2 bytes), length of the header (2 bytes, from version 2 on 4), header, elements.
Source: NumPy's `lib/format.py`.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.files import reason

_MAGIC, _ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"
_LONGEST_HEADER = 10_000
_FIELD = re.compile(
    rb"\s*'(?P<name>descr|fortran_order|shape)'\s*:\s*"
    rb"(?:'(?P<descr>[^']{1,32})'|(?P<order>True|False)|\((?P<shape>[0-9, ]*)\))\s*(?:,|$)"
)
_PLAIN = re.compile(r"[<>|=](?:b1|[iu][1248]|f[248]|U[1-9][0-9]{0,9})")
_MOST_DIMENSIONS = 4
_LARGEST_DIMENSION = 2**40

# Arrays of an archive may unpack to this many bytes, or to this many times the bytes of the file. Masks and repeated
# numbers compress well, but the losses of many windows do not.
_MOST_EXPANDED, _MOST_TIMES = 2**28, 20
_MOST_MEMBERS = 64
_PIECE = 2**20


class _WrongError(Exception):
    """What is wrong with an array: the end of a sentence that begins with the name of its file."""


def read_array(path: Path, hint: str) -> NDArray[Any]:
    """The array of a `.npy` file, of any shape [...] of up to 4 dimensions: numbers, bools or text.

    Raises `RequestError` that names the file, and ends with `hint` where it holds something else.
    """
    try:
        with _opened(path, hint) as file:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:
                raise _WrongError("is not a plain .npy array but an .npz archive")
            size = file.seek(0, 2)
            file.seek(0)
            return _array(file, size)
    except _WrongError as error:
        raise RequestError(f"{path} {error}: {hint}") from error


def read_arrays(path: Path, wanted: Mapping[str, tuple[type[np.generic], int]], hint: str) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` file, by name, each of any shape [...] with the wanted number of dimensions.

    Args:
        path: the file.
        wanted: type and number of dimensions of each array by name; other arrays of the file are ignored.
        hint: how to correct the file, for errors.

    Raises `RequestError` that names the file where an array is missing, damaged, or of another type or shape.
    """
    found = {}
    with _opened(path, hint) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            archive = _archive(file)
            members = {name: _member(archive, name) for name in wanted}
            expanded = sum(member.file_size for member in members.values())
            if expanded > max(_MOST_EXPANDED, _MOST_TIMES * size):
                raise _WrongError(f"would unpack from {size:,} bytes to {expanded:,}")
            for name, (kind, dimensions) in wanted.items():
                with _unpacking(), archive.open(members[name]) as content:
                    found[name] = array = _array(content, members[name].file_size)
                if array.ndim != dimensions or not _is(array.dtype, kind):
                    form = "text" if kind is np.str_ else np.dtype(kind).name
                    raise RequestError(f"{path}: {name} should be a {dimensions}-dimensional array of {form}")
        except _WrongError as error:
            raise RequestError(f"{path} {error}: {hint}") from error
    return found


def _is(dtype: np.dtype[Any], kind: type[np.generic]) -> bool:
    return dtype.kind == "U" if kind is np.str_ else dtype == kind


@contextmanager
def _opened(path: Path, hint: str) -> Iterator[IO[bytes]]:
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{path} is not a file: {hint}")
        with path.open("rb") as file:
            yield file
    except LayercoopError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise RequestError(f"{path} cannot be read: {reason(error)}") from error
    except MemoryError as error:
        raise RequestError(f"{path} holds more than fits into memory") from error


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    with _unpacking():
        archive = zipfile.ZipFile(file)
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise _WrongError(f"is an archive of {len(archive.infolist())} members")
    return archive


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError as error:
        raise _WrongError(f"lacks {name}") from error
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _WrongError(f"has {name} in a compression that is not read")
    return member


@contextmanager
def _unpacking() -> Iterator[None]:
    """Turn every exception of `zipfile` and zlib into `_WrongError`: damaged archives make them raise many classes."""
    try:
        yield
    except (_WrongError, MemoryError):
        raise
    except Exception as error:
        raise _WrongError(f"is a damaged archive ({reason(error)})") from error


def _array(content: IO[bytes], size: int) -> NDArray[Any]:
    """An array from `size` bytes."""
    start = content.read(8)
    if len(start) < 8 or not start.startswith(_MAGIC):
        raise _WrongError("is not a plain .npy array (object arrays and pickles are not read)")
    width = {1: 2, 2: 4, 3: 4}.get(start[6])
    if width is None:
        raise _WrongError(f"is an array of format {start[6]}, which is not read")
    length = int.from_bytes(content.read(width), "little")
    if length > min(_LONGEST_HEADER, size):
        raise _WrongError("has a header longer than an array's")
    dtype, fortran_order, shape = _header(content.read(length))
    count, held = math.prod(shape), size - 8 - width - length
    if count * dtype.itemsize != held:
        raise _WrongError(f"is cut short or damaged: shape {list(shape)} of {dtype} does not fit its {held:,} bytes")
    array = np.empty(count, dtype)
    if held:
        _fill(content, array.view(np.uint8).data)
    if dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise _WrongError("is damaged: its bools are neither 0 nor 1")
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _fill(content: IO[bytes], room: memoryview) -> None:
    at = 0
    while at < len(room):
        piece = content.read(min(_PIECE, len(room) - at))
        if not piece:
            raise _WrongError("is cut short")
        room[at : at + len(piece)] = piece
        at += len(piece)
    content.read(1)  # zipfile checks the checksum of a member when its end is read


def _header(text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """Type, whether the order is Fortran's, and shape that a header states."""
    wrong = _WrongError("has an array with a header that NumPy does not write")
    match = re.fullmatch(rb"\s*\{(.*)\}\s*", text, re.DOTALL)
    if match is None:
        raise wrong
    fields: dict[str, re.Match[bytes]] = {}
    at, inner = 0, match[1].rstrip()
    while at < len(inner):
        field = _FIELD.match(inner, at)
        if field is None or field["name"].decode() in fields:
            raise wrong
        fields[field["name"].decode()] = field
        at = field.end()
    if len(fields) != 3:
        raise wrong
    descr, order, shape = fields["descr"]["descr"], fields["fortran_order"]["order"], fields["shape"]["shape"]
    if descr is None or order is None or shape is None:
        raise wrong
    kind = descr.decode("ascii", "replace")
    if not _PLAIN.fullmatch(kind):
        raise _WrongError(
            f"has an array of elements {kind!r}, and only numbers, bools and text are read (no object arrays and no "
            "pickles)"
        )
    sizes = shape.decode().replace(" ", "").removesuffix(",")
    parts = sizes.split(",") if sizes else []
    if len(parts) > _MOST_DIMENSIONS or not all(part.isdecimal() and len(part) <= 15 for part in parts):
        raise wrong
    dimensions = tuple(int(part) for part in parts)
    if max(dimensions, default=0) > _LARGEST_DIMENSION or math.prod(size or 1 for size in dimensions) > 2**60:
        raise _WrongError(f"has an array of shape {list(dimensions)}, which is too large")
    if kind[1] == "U" and int(kind[2:]) > 2**26:
        raise _WrongError("has a text that is too long")
    return np.dtype(kind), order == b"True", dimensions

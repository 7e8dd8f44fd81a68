"""The GGUF container: reading its header, and writing another file from parts of one, byte by byte.

This knows only the layout: key-values, tensor descriptions, then the tensors, each aligned. Values are decoded only on
demand, so that of a tokenizer of 100,000 tokens only the lengths are read, and quantised tensors are plain bytes.
Source: the format's description (ggml, docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeAlias

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason, written_whole

Scalar: TypeAlias = int | float | bool | str

# Value types of key-values: the letter of `struct` for each number, and the two types that are not numbers.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
INT32 = 5

# GGUFTensor types: elements and bytes of a block.
F32, F16, Q4_0 = 0, 1, 2
_BLOCKS = {
    F32: (1, 4),
    F16: (1, 2),
    Q4_0: (32, 18),
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
}
_MAGIC = int.from_bytes(b"GGUF", "little")
_PIECE = 8 * 2**20  # bytes copied at once

# Limits. Lengths of keys and names are from the format's description, dimensions from llama.cpp; the others are many
# times those of the largest models.
_LONGEST_KEY, _LONGEST_NAME, _MOST_DIMENSIONS = 65_535, 64, 4
_MOST_VALUES, _MOST_TENSORS, _MOST_STRINGS = 65_536, 100_000, 4_000_000
_LARGEST_ALIGNMENT = 65_536
# Bytes of the smallest key-value and of the smallest description of a tensor.
_LEAST_VALUE, _LEAST_TENSOR = 13, 24


@dataclass(frozen=True)
class Value:
    """The value of a key, as encoded in the file.

    Attributes:
        kind: its value type.
        raw: the encoded value; for an array, with its element type and length before it.
    """

    kind: int
    raw: bytes

    @property
    def element_kind(self) -> int | None:
        """The type of an array's elements; None where the value is not an array."""
        return struct.unpack_from("<I", self.raw)[0] if self.kind == ARRAY else None

    @property
    def n_elements(self) -> int:
        """Number of an array's elements; 0 where the value is not an array."""
        return int(struct.unpack_from("<Q", self.raw, 4)[0]) if self.kind == ARRAY else 0

    def scalar(self) -> Scalar | None:
        """The value itself, or None where it is an array."""
        if self.kind == ARRAY:
            return None
        if self.kind == STRING:
            return self.raw[8:].decode("utf-8", "replace")
        number: Scalar = struct.unpack(f"<{_NUMBERS[self.kind]}", self.raw)[0]
        return number

    def numbers(self) -> tuple[float, ...] | None:
        """The elements of an array of numbers, or None where the value is something else."""
        element, count = self.element_kind, self.n_elements
        if element is None or element not in _NUMBERS:
            return None
        return struct.unpack_from(f"<{count}{_NUMBERS[element]}", self.raw, 12)

    @classmethod
    def of_string(cls, text: str) -> Value:
        """Encode a string."""
        return cls(STRING, _string(text))

    @classmethod
    def of_number(cls, number: float, kind: int) -> Value:
        """Encode a number as the type `kind`."""
        return cls(kind, struct.pack(f"<{_NUMBERS[kind]}", number))

    @classmethod
    def of_numbers(cls, numbers: Sequence[float], element_kind: int) -> Value:
        """Encode an array of numbers of the type `element_kind`."""
        head = struct.pack("<IQ", element_kind, len(numbers))
        return cls(ARRAY, head + struct.pack(f"<{len(numbers)}{_NUMBERS[element_kind]}", *numbers))


@dataclass(frozen=True)
class GGUFTensor:
    """The description of a tensor, and the place of its bytes.

    Attributes:
        name: of the tensor.
        dims: sizes, the fastest-varying dimension first (the reverse of torch's order).
        kind: its tensor type.
        n_bytes: bytes in the file.
        offset: of the first byte in the source file; None for a tensor whose bytes are all zero, which every type
            decodes as 0.
    """

    name: str
    dims: tuple[int, ...]
    kind: int
    n_bytes: int
    offset: int | None

    @property
    def n_parameters(self) -> int:
        """Number of elements."""
        return prod(self.dims)


@dataclass(frozen=True)
class GGUF:
    """The header of a file."""

    path: Path
    version: int
    values: dict[str, Value]
    tensors: list[GGUFTensor]
    alignment: int


def zeros(name: str, dims: tuple[int, ...], kind: int) -> GGUFTensor:
    """The description of a tensor of zeros, which the source file does not hold."""
    elements, n_bytes = _BLOCKS[kind]
    return GGUFTensor(name, dims, kind, prod(dims) // elements * n_bytes, None)


def read_gguf(path: Path) -> GGUF:
    """Read the header of a file.

    Every count, length and offset is checked against the size of the file, and tensors must not overlap, so that the
    result is never many times larger than the file.

    Raises `RequestError` where it is not a GGUF file, damaged, or of a version that is not supported.
    """
    try:
        if not path.is_file():
            raise RequestError(f"{path} is not a file: name a model's .gguf")
        if path.stat().st_size < 24:
            raise RequestError(f"{path} is not a GGUF file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(path, content).parsed()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {reason(error)}") from error


def write_gguf(
    out: Path,
    source: GGUF,
    values: dict[str, Value],
    tensors: Sequence[GGUFTensor],
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file of these key-values and tensors, with bytes copied from `source`; whole or not at all.

    `check` is called with the complete file before it is renamed to `out`; its exceptions are passed on.
    """
    head = [struct.pack("<IIQQ", _MAGIC, source.version, len(tensors), len(values))]
    for key, value in values.items():
        head += [_string(key), struct.pack("<I", value.kind), value.raw]
    place = 0
    for tensor in tensors:
        n_dims = len(tensor.dims)
        head += [_string(tensor.name), struct.pack(f"<I{n_dims}QIQ", n_dims, *tensor.dims, tensor.kind, place)]
        place += _aligned(tensor.n_bytes, source.alignment)
    header = b"".join(head)
    with written_whole(out, force=force) as made:
        with made.open("wb") as target, source.path.open("rb") as bytes_of:
            target.write(header.ljust(_aligned(len(header), source.alignment), b"\0"))
            for tensor in tensors:
                for piece in _pieces(tensor, bytes_of):
                    target.write(piece)
                target.write(bytes(_aligned(tensor.n_bytes, source.alignment) - tensor.n_bytes))
        if check is not None:
            check(made)


def _pieces(tensor: GGUFTensor, file: BinaryIO) -> Iterable[bytes]:
    """The bytes of a tensor, a few MiB at a time."""
    if tensor.offset is not None:
        file.seek(tensor.offset)
    for start in range(0, tensor.n_bytes, _PIECE):
        size = min(_PIECE, tensor.n_bytes - start)
        piece = bytes(size) if tensor.offset is None else file.read(size)
        if len(piece) != size:
            raise RequestError(f"{file.name} became shorter while it was read")
        yield piece


class _Header:
    """A walk over the header; `_at` is the next byte. Every length is checked before it is used."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._at = path, content, 0
        self._strings = 0

    def parsed(self) -> GGUF:
        magic, version = self._unpack("II")
        if magic != _MAGIC:
            raise RequestError(f"{self._path} is not a GGUF file")
        if version & 0xFFFF == 0:
            raise RequestError(f"{self._path} is a big-endian GGUF file, which is not read: convert it first")
        if version not in (2, 3):
            raise RequestError(f"{self._path} is GGUF version {version}; versions 2 and 3 are read")
        n_tensors, n_values = self._unpack("QQ")
        if n_values * _LEAST_VALUE + n_tensors * _LEAST_TENSOR > len(self._content) - self._at:
            raise RequestError(f"{self._path} is cut short within its header")
        if n_values > _MOST_VALUES or n_tensors > _MOST_TENSORS:
            raise RequestError(
                f"{self._path} has {n_values:,} key-values and {n_tensors:,} tensors: at most {_MOST_VALUES:,} and "
                f"{_MOST_TENSORS:,} are read"
            )
        values: dict[str, Value] = {}
        for _ in range(n_values):
            key = self._text(_LONGEST_KEY)
            if key in values:
                raise RequestError(f"{self._path} has the key {key!r} twice")
            values[key] = self._value()
        described = [self._described() for _ in range(n_tensors)]
        alignment = values["general.alignment"].scalar() if "general.alignment" in values else 32
        if type(alignment) is not int or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise RequestError(
                f"{self._path} has a general.alignment of {alignment!r}, which is not a power of two up to "
                f"{_LARGEST_ALIGNMENT:,}"
            )
        return GGUF(self._path, version, values, self._placed(described, alignment), alignment)

    def _placed(self, described: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> list[GGUFTensor]:
        """The tensors with the offsets of their bytes; one of unknown type extends to the next tensor."""
        start = _aligned(self._at, alignment)
        end = len(self._content)
        places = [*sorted({start + offset for *_, offset in described}), end]
        next_place = dict(pairwise(places))
        tensors = []
        for name, dims, kind, offset in described:
            place = start + offset
            room = next_place.get(place, place) - place
            if place > end or offset % alignment:
                raise RequestError(f"{self._path} is cut short or damaged: {name} does not begin where a tensor can")
            n_bytes = room
            if kind in _BLOCKS:
                elements, size = _BLOCKS[kind]
                if dims and dims[0] % elements:
                    raise RequestError(f"{self._path} gives {name} rows that are not whole blocks of its type")
                n_bytes = prod(dims) // elements * size
            elif prod(dims) > 8 * n_bytes:  # every type has at least one bit per element
                raise RequestError(f"{self._path} is cut short or damaged: {name} is larger than its place")
            if n_bytes > end - place:
                raise RequestError(f"{self._path} is cut short: {name} ends beyond the file's {end:,} bytes")
            if n_bytes > room:
                raise RequestError(f"{self._path} is damaged: {name} overlaps the tensor behind it")
            tensors.append(GGUFTensor(name, dims, kind, n_bytes, place))
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise RequestError(f"{self._path} names a tensor twice")
        filled = [tensor.offset for tensor in tensors if tensor.n_bytes]
        if len(set(filled)) != len(filled):
            raise RequestError(f"{self._path} is damaged: two tensors lie in the same place")
        return tensors

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(_LONGEST_NAME)
        (n_dims,) = self._unpack("I")
        if n_dims > _MOST_DIMENSIONS:
            raise RequestError(f"{self._path} gives {name!r} {n_dims} dimensions")
        *dims, kind, offset = self._unpack(f"{n_dims}QIQ")
        return name, tuple(dims), kind, offset

    def _value(self) -> Value:
        (kind,) = self._unpack("I")
        begin = self._at
        self._skip(kind)
        return Value(kind, self._content[begin : self._at])

    def _skip(self, kind: int) -> None:
        if kind in _NUMBERS:
            self._advance(struct.calcsize(f"<{_NUMBERS[kind]}"))
        elif kind == STRING:
            self._advance(*self._unpack("Q"))
        elif kind == ARRAY:
            element, count = self._unpack("IQ")
            if element in _NUMBERS:
                self._advance(count * struct.calcsize(f"<{_NUMBERS[element]}"))
            elif element == STRING:
                self._strings += count
                if 8 * count > len(self._content) - self._at:
                    raise RequestError(f"{self._path} is cut short within its header")
                if self._strings > _MOST_STRINGS:
                    raise RequestError(f"{self._path} holds more than {_MOST_STRINGS:,} strings in arrays")
                for _ in range(count):
                    self._advance(*self._unpack("Q"))
            else:
                raise RequestError(f"{self._path} has an array of elements of type {element}, which is not read")
        else:
            raise RequestError(f"{self._path} has a value of type {kind}, which is not read")

    def _text(self, longest: int) -> str:
        (size,) = self._unpack("Q")
        if size > longest:
            raise RequestError(f"{self._path} is damaged: a key or name of {size:,} bytes, of {longest:,} at most")
        begin = self._at
        self._advance(size)
        return self._content[begin : self._at].decode("utf-8", "surrogateescape")

    def _unpack(self, form: str) -> tuple[int, ...]:
        begin = self._at
        self._advance(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self._content, begin)

    def _advance(self, size: int) -> None:
        if size > len(self._content) - self._at:
            raise RequestError(f"{self._path} is cut short within its header")
        self._at += size


def _aligned(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")  # invalid UTF-8 is written as it was read
    return struct.pack("<Q", len(encoded)) + encoded

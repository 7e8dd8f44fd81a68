"""The tensors of a checkpoint's safetensors files, found by name and read into memory that the caller provides.

    files = WeightFiles(Path("model"))
    files.read(files.tensors["model.norm.weight"], out)

Files are not mapped: a read needs no memory besides its target and the system's page cache, which can be dropped at any
time. `inputs/safetensors.py` checks the headers.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# A tensor that is converted is read in pieces of this many bytes of its own dtype. They are converted in parts so small
# that torch uses no further threads: those are for the computation that runs while this reads.
_STAGING = 2**20
# Most bytes of one system call: macOS refuses 2 GiB and more.
_MOST_AT_ONCE = 2**30
_SERIAL = 2**14


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor: `size` bytes from byte `begin` of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    size: int


class WeightFiles:
    """The safetensors files of a checkpoint folder, held open.

    Attributes:
        folder: that holds them.
        tensors: the place of each tensor, by name.

    Raises `RequestError` where a file is missing, ends early or is not a safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._descriptors: dict[Path, int] = {}
        weakref.finalize(self, _close, self._descriptors)
        for file in files_of(folder):
            try:
                self._descriptors[file] = os.open(file, os.O_RDONLY)
                self.tensors |= _tensors_of(file, self._descriptors[file])
            except OSError as error:
                raise RequestError(f"{file} cannot be read: {reason(error)}") from error

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Read a tensor into `out`, converted to its dtype.

        Args:
            stored: the tensor, of any shape [...].
            out: of the same shape [...], contiguous, on the CPU.

        Raises `RunError` where the file cannot be read or ends before the tensor does.
        """
        flat = out.view(-1)
        if stored.dtype == out.dtype:
            self._fill(stored, 0, flat)
            return
        staging = torch.empty(_STAGING // stored.dtype.itemsize, dtype=stored.dtype)
        for first in range(0, len(flat), len(staging)):
            part = staging[: len(flat) - first]
            self._fill(stored, first, part)
            for at in range(0, len(part), _SERIAL):
                piece = part[at : at + _SERIAL]
                flat[first + at : first + at + len(piece)].copy_(piece)

    def _fill(self, stored: StoredTensor, first: int, out: Tensor) -> None:
        """Read the elements of a stored tensor, from number `first` on, into a vector of its dtype."""
        room: memoryview = out.view(torch.uint8).numpy().data
        at = stored.begin + first * stored.dtype.itemsize
        while len(room):
            try:
                count = os.preadv(self._descriptors[stored.file], [room[:_MOST_AT_ONCE]], at)
            except OSError as error:
                raise RunError(f"{stored.file} cannot be read: {reason(error)}") from error
            if count == 0:
                raise RunError(
                    f"{stored.file} ends at byte {at}, within a weight: it was cut short after it was opened"
                )
            room, at = room[count:], at + count


def _close(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def files_of(folder: Path) -> list[Path]:
    """The safetensors file of a checkpoint folder, or those that its index names.

    Raises `RequestError` where the folder has none, and where one that the index names is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise RequestError(f"{folder} holds no {WEIGHTS} and no {INDEX}: weights are read from safetensors files only")
    again = "fetch or copy it again"
    form = f"{folder / INDEX} is not an index of safetensors files: {again}"
    found = read_json(folder / INDEX, hint=again)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise RequestError(form)
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise RequestError(f"{folder} lacks {name}, which its {INDEX} names: fetch or copy it")
    return [folder / name for name in names]


def _tensors_of(file: Path, descriptor: int) -> dict[str, StoredTensor]:
    """The tensors of a file's header, by name."""
    found = {}
    for name, info in read_header(file, descriptor).tensors.items():
        if info.dtype not in DTYPES:
            raise RequestError(f"{file} holds a tensor of dtype {info.dtype} ({name}), which cannot be read by blocks")
        found[name] = StoredTensor(file, DTYPES[info.dtype], info.shape, info.begin, info.size)
    return found

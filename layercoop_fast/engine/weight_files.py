"""The tensors of a checkpoint's safetensors files, found by name and read straight into memory that is there already.

    files = WeightFiles(Path("model"))
    files.read(files.tensors["model.norm.weight"], out)

Nothing is mapped: a read takes no memory but its target, and what the system keeps of the file it may drop at any time.
What their headers say is checked by `inputs/safetensors.py`.
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

# A tensor that is converted goes through this many bytes of its own dtype, and on in parts so small that torch does
# not wake threads for them: those belong to the computation beside which this reads.
_STAGING = 2**20
# Bytes of one call of the system: macOS refuses 2 GiB and more.
_MOST_AT_ONCE = 2**30
_SERIAL = 2**14


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands: `size` bytes from byte `begin` of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    size: int


class WeightFiles:
    """The safetensors files of a checkpoint folder, held open.

    Attributes:
        folder: where they are.
        tensors: what they hold, by name.

    Raises `RequestError` in one line where a file is missing, ends early or is no safetensors file.
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
        """Read a tensor into `out`, contiguous, on the CPU and of the same shape; another dtype is converted to.

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
        """Read the elements of a stored tensor from its `first` on into a vector of its dtype."""
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

    Raises `RequestError` where there are none, and where one that the index names is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise RequestError(f"{folder} holds no {WEIGHTS} and no {INDEX}: weights are read from safetensors files only")
    again = "fetch or copy it again"
    form = f"{folder / INDEX} is no index of safetensors files: {again}"
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
    """What a file's header says."""
    found = {}
    for name, entry in read_header(file, descriptor).tensors.items():
        if entry.dtype not in DTYPES:
            raise RequestError(
                f"{file} holds numbers of kind {entry.dtype} ({name}), which cannot be read block by block"
            )
        found[name] = StoredTensor(file, DTYPES[entry.dtype], entry.shape, entry.begin, entry.size)
    return found

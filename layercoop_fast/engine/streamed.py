"""The matrices of a model's blocks, in memory for one block at a time while the next one is read.

    streamed.expect([0, 1, 3])       # the blocks that will be needed, in this order
    streamed.use(0)                  # block 0 has its matrices; a thread reads those of block 1
    streamed.use(1)                  # waits where they are not read yet; those of block 3 are read over block 0's

Two buffers, each of the size of the largest block, are filled in turn straight from the files. A block that is not in
use has its matrices on the meta device, so that code which forgets to call `use` fails instead of computing nonsense.
Vectors (norms, biases) are small and are not streamed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layercoop_fast.engine.weight_files import StoredTensor, WeightFiles
from layercoop_fast.spans import READING, timed

# A group of matrices begins at a multiple of these bytes: a cache line, and the widest vector register.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Matrix:
    """One streamed parameter of a block.

    Attributes:
        name: in the model.
        within: its name in its block.
        owner: the module that holds it.
        key: its name in that module.
        empty: the parameter on the meta device, which the module holds while the block is not in use.
        stored: where it stands in the files.
    """

    name: str
    within: str
    owner: nn.Module
    key: str
    empty: nn.Parameter
    stored: StoredTensor

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.empty.numel() * self.empty.element_size()


@dataclass
class _Slot:
    """A buffer, the block whose matrices it holds or will hold, and the read that fills it."""

    memory: Tensor
    layer: int | None = None
    read: Future[None] | None = None


class StreamedBlocks:
    """Blocks whose matrices come from files when they are used.

    Args:
        files: that hold them.
        blocks: the matrices that are streamed, for each block.
        mark: (name, tensor of any shape [...]) to the bytes that identify it in the model's fingerprint; called once
            for each matrix, when it is first read.

    Attributes:
        bytes_read: by all reads so far, reads ahead included.
    """

    def __init__(
        self, files: WeightFiles, blocks: Sequence[Sequence[Matrix]], mark: Callable[[str, Tensor], bytes]
    ) -> None:
        self.files = files
        self.bytes_read = 0
        self._blocks = [list(block) for block in blocks]
        self._offsets = [_layout(block) for block in self._blocks]
        self._home = {matrix.name: layer for layer, block in enumerate(self._blocks) for matrix in block}
        self._slots = [_Slot(torch.empty(self._largest(), dtype=torch.uint8)) for _ in range(2)]
        self._bound: _Slot | None = None
        self._ahead: deque[int] = deque()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._mark = mark
        self._marks: dict[str, bytes] = {}
        self._timed: deque[tuple[int, float]] = deque(maxlen=len(self._blocks))

    @property
    def bytes_a_second(self) -> float:
        """Speed of the latest reads, as many as there are blocks; infinite before the first read."""
        timed = list(self._timed)  # a copy: the thread that reads may add to the queue
        seconds = sum(took for _, took in timed)
        return sum(count for count, _ in timed) / seconds if seconds else float("inf")

    def bytes_of(self, layer: int) -> int:
        """Bytes that are read for a block."""
        return sum(matrix.stored.size for matrix in self._blocks[layer])

    def within(self, layer: int) -> frozenset[str]:
        """Names, within the block, of the parameters that are streamed."""
        return frozenset(matrix.within for matrix in self._blocks[layer])

    def expect(self, layers: Iterable[int]) -> None:
        """Announce the blocks that will be used next, in their order; this replaces earlier announcements.

        Reading begins at once. A block that is used out of turn is read when it is used.
        """
        self._ahead = deque(layers)
        self._read_ahead()

    def use(self, layer: int) -> None:
        """Give a block its matrices, until another block is used.

        Raises `RunError` where they cannot be read.
        """
        if self._ahead and self._ahead[0] == layer:
            self._ahead.popleft()
        if self._bound is None or self._bound.layer != layer:
            self.release()
            slot = next((slot for slot in self._slots if slot.layer == layer), None) or self._begin(layer)
            try:
                assert slot.read is not None
                with timed(READING):
                    slot.read.result()
            except BaseException:
                slot.layer = None  # the next use reads the block again
                raise
            self._bind(slot, layer)
        self._read_ahead()

    def release(self) -> None:
        """Take the matrices from the block in use: all blocks then have theirs on the meta device."""
        if self._bound is not None and self._bound.layer is not None:
            for matrix in self._blocks[self._bound.layer]:
                matrix.owner._parameters[matrix.key] = matrix.empty
        self._bound = None

    def free(self) -> None:
        """Free the buffers; no block may be used afterwards."""
        self.release()
        self._ahead.clear()
        self._reader.shutdown()  # waits for a read in progress, which writes into a buffer
        for slot in self._slots:
            slot.memory, slot.layer, slot.read = torch.empty(0, dtype=torch.uint8), None, None

    def keep(self, layer: int) -> None:
        """Give a block its matrices for good, in memory of its own; `use` must not be called for it any more.

        Raises `RunError` where they cannot be read.
        """
        for matrix in self._blocks[layer]:
            read = torch.empty(matrix.empty.shape, dtype=matrix.empty.dtype)
            self.files.read(matrix.stored, read)
            self.bytes_read += matrix.stored.size
            matrix.owner._parameters[matrix.key] = nn.Parameter(read, requires_grad=False)

    def renew(self, layer: int) -> None:
        """Reset a block's parameters to views of its buffer, whatever replaced them while the block was in use."""
        self.use(layer)
        assert self._bound is not None
        self._bind(self._bound, layer)

    def tensor(self, name: str) -> Tensor | None:
        """A streamed matrix by its name in the model, [rows, columns]; None for any other name.

        It is valid until another block is used.
        """
        if name not in self._home:
            return None
        self.use(self._home[name])
        matrix = next(matrix for matrix in self._blocks[self._home[name]] if matrix.name == name)
        return matrix.owner.get_parameter(matrix.key).detach()

    def marks(self) -> dict[str, bytes]:
        """By name, the bytes that identify each matrix in the model's fingerprint; blocks not used so far are read."""
        missing = list(dict.fromkeys(layer for name, layer in self._home.items() if name not in self._marks))
        self.expect(missing)
        for layer in missing:
            self.use(layer)
        return self._marks

    def _largest(self) -> int:
        ends = [
            max((offset + matrix.size for offset, matrix in zip(offsets, block, strict=True)), default=0)
            for offsets, block in zip(self._offsets, self._blocks, strict=True)
        ]
        return max(ends, default=0)

    def _views(self, slot: _Slot, layer: int) -> list[Tensor]:
        return [
            slot.memory[offset : offset + matrix.size].view(matrix.empty.dtype).view(matrix.empty.shape)
            for offset, matrix in zip(self._offsets[layer], self._blocks[layer], strict=True)
        ]

    def _begin(self, layer: int) -> _Slot:
        """Begin to read a block into a buffer that is not in use, preferably not the one that holds the next block."""
        free = [slot for slot in self._slots if slot is not self._bound]
        wanted = self._ahead[0] if self._ahead else None
        slot = next((slot for slot in free if slot.layer is None or slot.layer != wanted), free[0])
        slot.layer = layer
        # One thread reads, in the order of these calls: an earlier read into this buffer has ended before this one.
        slot.read = self._reader.submit(self._read, slot, layer)
        return slot

    def _read_ahead(self) -> None:
        if self._ahead and all(slot.layer != self._ahead[0] for slot in self._slots):
            self._begin(self._ahead[0])

    def _read(self, slot: _Slot, layer: int) -> None:
        began = time.perf_counter()
        targets = zip(self._blocks[layer], self._views(slot, layer), strict=True)
        for matrix, target in sorted(targets, key=lambda pair: (str(pair[0].stored.file), pair[0].stored.begin)):
            self.files.read(matrix.stored, target)
            self.bytes_read += matrix.stored.size
        self._timed.append((self.bytes_of(layer), time.perf_counter() - began))

    def _bind(self, slot: _Slot, layer: int) -> None:
        with torch.inference_mode(False):
            for matrix, view in zip(self._blocks[layer], self._views(slot, layer), strict=True):
                matrix.owner._parameters[matrix.key] = nn.Parameter(view, requires_grad=False)
                if matrix.name not in self._marks:
                    self._marks[matrix.name] = self._mark(matrix.name, view)
        self._bound = slot


def _layout(block: Sequence[Matrix]) -> list[int]:
    """The offset of each matrix of a block in its buffer, in bytes.

    Matrices of sibling modules (such as the projections of one attention) are adjacent, in their order, so that several
    of them can be used as one matrix (`llama/projections.py`) without a copy.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, matrix in enumerate(block):
        parent = matrix.within.removesuffix(matrix.key).rstrip(".").rpartition(".")[0]
        groups.setdefault((parent, matrix.key), []).append(index)
    offsets = [0] * len(block)
    end = 0
    for members in groups.values():
        end = _rounded(end, _ALIGNMENT)
        for index in members:
            offsets[index] = _rounded(end, block[index].empty.element_size())
            end = offsets[index] + block[index].size
    return offsets


def _rounded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment

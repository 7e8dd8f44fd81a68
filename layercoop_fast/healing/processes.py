"""One process, or several that share each batch through accelerate.

`torchrun` or `accelerate launch` starts them and says in the environment how many there are. Every process holds both
models and computes its share of each batch; gradients are averaged, so that all take the same step. The first one
decides what depends on a clock, and alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from layercoop_fast.errors import RequestError


class Processes:
    """The processes of a run.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
        device: that accelerate gave this one; None where there is one process.
    """

    def __init__(self, *, cpu: bool) -> None:
        self.rank, self.size = 0, 1
        self.device: str | None = None
        self._started = False
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise RequestError(
                    "healing with several processes needs accelerate: pip install 'layercoop-fast[spread]'"
                ) from error
            self._started = not torch.distributed.is_initialized()
            state = PartialState(cpu=cpu)
            self.rank, self.size, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of so many windows. Raises `RequestError` where they cannot be shared equally."""
        if count % self.size:
            raise RequestError(f"batch={count} windows cannot be shared by {self.size} processes: give a multiple")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors [...] by their means over the processes."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor.div_(self.size)

    def of_first(self, value: float) -> float:
        """The first process's value."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        if self.device is not None and self.device.startswith("cuda"):
            told = told.float().to(self.device)
        torch.distributed.broadcast(told, 0)
        return float(told)

    def end(self) -> None:
        """Wait until all processes are here, and undo what was set up for them."""
        if self.size > 1:
            torch.distributed.barrier()
        if self._started:
            torch.distributed.destroy_process_group()

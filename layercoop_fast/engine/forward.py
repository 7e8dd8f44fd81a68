"""Masked forward passes along a plan: every distinct kept prefix is computed once, stored, and shared.

`play` walks the plan's schedule over a pool of stored states and hands every mask's final state to a scorer. What a
mask scores does not depend on the other masks, their order, the memory budget or the batch width: the same blocks run
on the same numbers. (On the CPU bit for bit, for dense blocks: the rows of a product do not depend on how many rows
there are, once there are at least `MIN_ROWS`.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.engine.plan import Plan
from layercoop_fast.engine.skeleton import Context, Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.rows import MIN_ROWS

# Rows (tokens) of one call of a block: enough that its matrix products run at full speed, few enough that the
# activations of one call stay small beside the stored states.
ROWS_PER_CALL = 4096


@dataclass
class Windows:
    """The calibration tokens of a game, and the contexts captured for them, one a batch width.

    Args:
        ids: int64 [W, T], W windows of T tokens each.
    """

    skeleton: Skeleton
    ids: Tensor
    _contexts: dict[int, Context] = field(default_factory=dict)

    @property
    def n_windows(self) -> int:
        """Number of windows W."""
        return int(self.ids.shape[0])

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape [W, T, H] of one state."""
        _, tokens, hidden = self.context(1).embedding.shape
        return self.n_windows, int(tokens), int(hidden)

    @property
    def state_bytes(self) -> int:
        """Bytes of one stored state."""
        return int(np.prod(self.state_shape)) * self.context(1).embedding.element_size()

    def context(self, copies: int) -> Context:
        """The context of `copies` states side by side, padded with further copies up to `MIN_ROWS` rows."""
        if copies not in self._contexts:
            padded = max(copies, -(-MIN_ROWS // self.ids.numel()))
            self._contexts[copies] = self.skeleton.context(self.ids.repeat(padded, 1))
        return self._contexts[copies]

    def slices(self, rows: int) -> list[tuple[int, int, Context]]:
        """Runs of windows of at most `rows` tokens (at least one window) with their contexts, for the head."""
        step = max(1, rows // int(self.ids.shape[1]))
        found = []
        for first in range(0, self.n_windows, step):
            ids = self.ids[first : first + step]
            padded = -(-MIN_ROWS // ids.numel())
            found.append((first, first + len(ids), self.skeleton.context(ids.repeat(padded, 1))))
        return found


def play(
    windows: Windows,
    plan: Plan,
    score: Callable[[int, Tensor], None],
    *,
    run: Callable[[Context, int, Tensor], Tensor] = Context.run,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Run a plan and call `score(mask_number, state)` for each of its unique masks, `state` being [W, T, H].

    Args:
        windows: the tokens, and the model they are for.
        plan: its players are the units that `run` runs.
        score: must not keep the state; its slot is reused.
        run: one unit on a batch of states, [B, T, H] → [B, T, H]; by default a layer.
        on_progress: called with the number of layer evaluations done since its last call.
    """
    shape = windows.state_shape
    embedding = windows.context(1).embedding[: shape[0]]
    width = max(1, ROWS_PER_CALL // (shape[0] * shape[1]))
    with torch.inference_mode():
        try:
            pool = torch.empty((plan.peak_states, *shape), dtype=embedding.dtype, device=embedding.device)
        except RuntimeError as error:  # torch reports an allocation that fails so, on CPU and GPU
            wanted = plan.peak_states * windows.state_bytes / 2**30
            raise RequestError(f"{wanted:.1f} GiB for stored states are not there: pass a smaller --memory") from error
        for player, sources, targets, masks, slots in plan.steps():
            if player < 0:
                pool[torch.from_numpy(targets.astype(np.int64))] = embedding
            else:
                for source, target in _batches(sources, targets, width):
                    _run_unit(windows, pool, run, player, source, target)
                    if on_progress is not None:
                        on_progress(len(source))
            for mask, slot in zip(masks.tolist(), slots.tolist(), strict=True):
                score(mask, pool[slot])


def _batches(
    sources: NDArray[np.int32], targets: NDArray[np.int32], width: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    for first in range(0, len(sources), width):
        yield sources[first : first + width], targets[first : first + width]


def _run_unit(
    windows: Windows,
    pool: Tensor,
    run: Callable[[Context, int, Tensor], Tensor],
    unit: int,
    sources: NDArray[np.int32],
    targets: NDArray[np.int32],
) -> None:
    """One call of one unit on the states in `sources`, results to `targets`."""
    context = windows.context(len(sources))
    n_windows, tokens, hidden = pool.shape[1:]
    # Gathered into a fresh tensor: a block may write into its input, and a stored state must survive that.
    batch = pool[torch.from_numpy(sources.astype(np.int64))].view(-1, tokens, hidden)
    padding = context.ids.shape[0] - batch.shape[0]
    if padding:
        batch = torch.cat([batch, batch[:1].expand(padding, -1, -1)])
    out = run(context, unit, batch)[: len(sources) * n_windows]
    pool[torch.from_numpy(targets.astype(np.int64))] = out.view(-1, n_windows, tokens, hidden)


def states_within(windows: Windows, memory: int | None) -> int | None:
    """How many states fit into `memory` bytes (None: no limit stated).

    Raises `RequestError` when not even one does, with the smallest budget that works.
    """
    if memory is None:
        return None
    states = memory // windows.state_bytes
    if states < 1:
        raise RequestError(
            f"a memory budget of {memory} bytes holds no stored state: the smallest that works is "
            f"{windows.state_bytes} bytes (one state of {' x '.join(map(str, windows.state_shape))} numbers)"
        )
    return int(states)


def free_memory(device: torch.device) -> int:
    """Bytes that are free for stored states on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:  # not Linux: half of what is built in is a guess that does no harm
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

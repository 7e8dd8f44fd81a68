"""How many states go through a unit in one batch: measured once a process, and never a change of numbers.

Wide batches read a block's weights once for many states and make large products; narrow ones keep activations in cache.
Which is faster depends on model, text and machine, so a long plan begins with a short sweep over powers of two. A width
is allowed only where its results are those of one state alone, bit for bit, and batches are cut into such powers: so
the choice, which a clock makes, cannot show in a worth. How many rows memory allows is not decided here but in
`split_memory` of `masked/forward.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from layercoop_fast.kernels.rows import MANY_ROWS, MIN_ROWS, rows_alike_from
from layercoop_fast.masked.units import Units
from layercoop_fast.masked.windows import Windows

# Most rows (tokens) of one call of a unit in plans too short to time widths: enough that matrix products run at full
# speed, few enough that the activations of one call stay small next to the stored states.
ROWS_PER_CALL = 4096
# Rows of the widest batch that is tried.
MAX_ROWS = 16384
# A plan of fewer evaluations than this is over before a sweep has paid for itself.
SWEEP_FROM = 2000
_REPEATS = 3
# A wider batch must be faster by this share: it takes more memory.
_GAIN = 0.02

_measured: dict[tuple[object, ...], int] = {}


def batch_width(
    windows: Windows, units: Units, slots: Sequence[Tensor], evaluations: int, max_rows: int = MAX_ROWS
) -> int:
    """How many states one call of a unit takes.

    Args:
        windows: the windows that each state holds.
        units: what the plan runs.
        slots: the plan's states, [W, T, H] each; their content is lost.
        evaluations: number of unit evaluations in the plan.
        max_rows: most rows of one call.

    A call takes at most `max_rows` rows, or one state. States whose rows are too few to be computed alike in a batch
    (`kernels/rows.py`) go one by one.
    """
    one = windows.ids.numel()
    wanted = ROWS_PER_CALL if evaluations < SWEEP_FROM else MAX_ROWS
    widest = power_of_two_up_to(min(wanted, max_rows, len(slots) * one) // one)
    if widest == 1 or not _alike(windows, units, one, widest * one):
        return 1
    if evaluations < SWEEP_FROM:
        return _faithful(windows, units, slots, widest)
    block = windows.skeleton.blocks[0]
    weights = sum(parameter.numel() for parameter in block.parameters())
    kinds = frozenset(units.products)
    key = (units.path, windows.state_shape, windows.skeleton.dtype, weights, kinds, torch.get_num_threads(), widest)
    if key not in _measured:
        _measured[key] = fastest(sweep(windows, units, slots, widest))
    return _measured[key]


def _faithful(windows: Windows, units: Units, slots: Sequence[Tensor], widest: int) -> int:
    """The widest power of two up to `widest` at which, and below which, a state has the bits that it has alone."""
    known = windows.faithful_widths
    key = (units.path, torch.get_num_threads(), widest)
    if key not in known:
        known[key] = max(sweep(windows, units, slots, widest, repeats=1))
    return known[key]


def scored_width(windows: Windows, units: Units, slots: Sequence[Tensor], width: int) -> int:
    """The width at which last states may be computed at the scored positions alone, `width` at most; 0 for not at all.

    At this width, and at every power of two below, they have the bits that they have among all positions. The slots
    hold states [W, T, H], and their content is lost.
    """
    scored = windows.scored
    if not _alike(windows, units, windows.n_windows * len(scored), width * windows.ids.numel()):
        return 0
    known = windows.faithful_widths
    key = (units.path, torch.get_num_threads(), width, "scored")
    if key not in known:
        known[key] = min(_same_up_to(windows, units, slots, unit, width, scored) for unit in _kinds(windows, units))
    return known[key]


def sweep(
    windows: Windows, units: Units, slots: Sequence[Tensor], widest: int, *, repeats: int = _REPEATS
) -> dict[int, float]:
    """Seconds a state of unit 0 at each width 1, 2, 4 .. `widest`, up to the first whose results are not width 1's.

    The slots hold states [W, T, H], and their content is lost.

    Results are compared for a unit of every kind, since units of other shapes may round otherwise.
    """
    alone = _alone(windows, units, slots, 0)
    found = {}
    width = 1
    while width <= widest:
        batch = slots[:width]
        seconds = []
        for _ in range(repeats):
            _fill(windows, batch)
            started = time.perf_counter()
            units.run(0, batch, batch)
            seconds.append(time.perf_counter() - started)
        if width > 1 and not all(torch.equal(slot, alone) for slot in batch):
            break  # a wider batch is cut into this width too
        found[width] = min(seconds) / width
        width *= 2
    del alone
    for unit in _kinds(windows, units)[1:]:
        most = _same_up_to(windows, units, slots, unit, max(found))
        found = {width: seconds for width, seconds in found.items() if width <= most}
    return found


def _same_up_to(
    windows: Windows, units: Units, slots: Sequence[Tensor], unit: int, widest: int, rows: Tensor | None = None
) -> int:
    """The widest power of two up to `widest` at which, and below which, a unit gives a state the bits it has alone.

    With `rows` only these positions are computed and compared, with those that they have among all. 0 for no width.
    """
    alone = _alone(windows, units, slots, unit)
    compared = slice(None) if rows is None else rows
    found, tried = 0, 1
    while tried <= widest:
        batch = slots[:tried]
        _fill(windows, batch)
        units.run(unit, batch, batch, rows)
        if not all(torch.equal(slot[:, compared], alone[:, compared]) for slot in batch):
            break
        found, tried = tried, 2 * tried
    return found


def _alike(windows: Windows, units: Units, rows: int, most: int) -> bool:
    """Whether `rows` rows, padded where they are a handful, are computed as larger numbers are, up to `most`."""
    rows = max(rows, MIN_ROWS)
    if windows.skeleton.device.type != "cpu" or rows >= min(most, MANY_ROWS):
        return True
    products = frozenset().union(*units.products)
    return rows >= rows_alike_from(windows.skeleton.dtype, products, most)


def _kinds(windows: Windows, units: Units) -> list[int]:
    """The first unit of each kind, unit 0 first: those of one kind make equal products in the same part of a block."""
    products = units.products
    parts = len(products) // windows.skeleton.n_layers
    first: dict[object, int] = {}
    for unit, made in enumerate(products):
        first.setdefault((unit % parts, made), unit)
    return list(first.values())


def _alone(windows: Windows, units: Units, slots: Sequence[Tensor], unit: int) -> Tensor:
    """What a unit makes of the embedding in a batch of its own: [W, T, H]."""
    _fill(windows, slots[:1])
    units.run(unit, slots[:1], slots[:1])
    return slots[0].clone()


def _fill(windows: Windows, slots: Sequence[Tensor]) -> None:
    embedding = windows.context(1).embedding[: windows.n_windows]
    for slot in slots:
        slot.copy_(embedding)


def fastest(seconds: dict[int, float]) -> int:
    """The narrowest width that is as good as the fastest."""
    allowed = min(seconds.values()) / (1 - _GAIN)
    return next(width for width in sorted(seconds) if seconds[width] <= allowed)


def power_of_two_up_to(n: int) -> int:
    """The largest power of two that is at most n (1 for n below 1)."""
    return 1 << max(0, n.bit_length() - 1) if n > 0 else 1


def batches(count: int, width: int) -> Iterator[slice]:
    """Cut `count` states into batches of `width` (a power of two) and, at the end, of smaller powers of two."""
    first = 0
    while first < count:
        size = min(width, power_of_two_up_to(count - first))
        yield slice(first, first + size)
        first += size

"""Layouts that a config describes by a few numbers, and the cheapest mask that fits one. Imports no torch.

Some configs do not list the kind of each layer, but say "attention every 8 layers, from layer 4". The renumbered kept
layers must be describable by such numbers again. A `Rule` holds, for one kind of layer, the original layers of that
kind and every layout that the numbers can produce; a mask is expressible if, for each rule, the kinds of its kept
layers are the beginning of one of the layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from layercoop_fast.masks.types import Floats, Masks


@dataclass(frozen=True, eq=False)
class Layouts:
    """Every distinct layout of L layers that some numbers of a config can produce.

    Attributes:
        names: attributes of the config that hold the numbers.
        numbers: for each layout the values of `names`; the first of those that produce the same layout.
        rows: bool [P, L], the layers of the kind, a row for each layout.
    """

    names: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]
    rows: Masks


@dataclass(frozen=True, eq=False)
class Rule:
    """One kind of layer of a model, and the layouts of it that a config can describe.

    Attributes:
        kinds: bool [L], the original layers of the kind.
        layouts: that can be described.
    """

    kinds: Masks
    layouts: Layouts

    def numbers_for(self, kept: npt.NDArray[np.intp]) -> dict[str, int] | None:
        """Return the config's numbers that describe the layers `kept` (`intp[K]`, ascending); None where none do."""
        fits = (self.layouts.rows[:, : len(kept)] == self.kinds[kept]).all(axis=1)
        if not fits.any():
            return None
        return dict(zip(self.layouts.names, self.layouts.numbers[int(fits.argmax())], strict=True))


@lru_cache
def periodic_layouts(period: str, offset: str, n_layers: int) -> Layouts:
    """Layouts `i % period == offset` with 0 <= offset < period, including the one without layers of the kind."""
    numbers = [(p, o) for p in range(1, n_layers + 2) for o in range(p)]
    layer = np.arange(n_layers)
    return _distinct((period, offset), {pair: layer % pair[0] == pair[1] for pair in numbers})


@lru_cache
def interval_layouts(interval: str, start: str, end: str, n_layers: int) -> Layouts:
    """Layouts `(i + 1) % interval == 0 and start <= i <= end`, including the one without layers of the kind."""
    layer = np.arange(n_layers)
    found: dict[tuple[int, ...], Masks] = {(1, n_layers, n_layers): np.zeros(n_layers, np.bool_)}
    for every in range(1, n_layers + 1):
        of_kind = range(every - 1, n_layers, every)
        for first, last in product(of_kind, of_kind):
            if first <= last:
                found[every, first, last] = ((layer + 1) % every == 0) & (first <= layer) & (layer <= last)
    return _distinct((interval, start, end), found)


def _distinct(names: tuple[str, ...], found: dict[tuple[int, ...], Masks]) -> Layouts:
    first_of = {row.tobytes(): numbers for numbers, row in reversed(found.items())}
    numbers = tuple(reversed(first_of.values()))
    return Layouts(names, numbers, np.stack([found[each] for each in numbers]))


def cheapest_mask(rules: list[Rule], keep: Floats, drop: Floats, n_kept: int | None = None) -> Masks | None:
    """Return the expressible mask (`bool[L]`, at least one layer kept) of least total cost, or None where none exists.

    `keep` and `drop` (`float64[L]`, finite) are the costs of keeping and of removing each layer; with `n_kept` the mask
    keeps exactly that number. Of equal costs it is the mask that keeps more, and then the one that removes earlier
    layers.

    With one layout for each rule this is a shortest path: after each original layer, the least cost for each number of
    layers kept so far, where a layer may become new layer c only if its kinds are those of the layouts at c. All
    layouts of the last rule are processed at once; combinations of the others in ascending order of the costs that they
    reach alone, a lower bound of their cost together, until the bound excludes a better mask.
    """
    n_layers = len(keep)
    *others, last = rules or [_no_rule(n_layers)]
    anywhere = np.ones((n_layers, n_layers), np.bool_)
    alone = [_reached(_path_costs(rule.layouts.rows, rule.kinds, anywhere, keep, drop), n_kept) for rule in others]
    last_alone = _reached(_path_costs(last.layouts.rows, last.kinds, anywhere, keep, drop), n_kept)

    least, best = np.inf, None
    possible = [[(cost, row) for row, cost in enumerate(costs) if cost < np.inf] for costs in alone]
    for combination in sorted(product(*possible), key=lambda pairs: max((cost for cost, _ in pairs), default=-np.inf)):
        if any(cost >= least for cost, _ in combination):
            break
        fits = anywhere
        for rule, (_, row) in zip(others, combination, strict=True):
            fits = fits & _matches(rule, row)
        rows = np.flatnonzero(last_alone < least)
        costs = _reached(_path_costs(last.layouts.rows[rows], last.kinds, fits, keep, drop), n_kept)
        if len(rows) and costs.min() < least:
            least = float(costs.min())
            best = fits & _matches(last, int(rows[costs.argmin()]))
    return None if best is None else _walk_back(best, keep, drop, n_kept)


def _no_rule(n_layers: int) -> Rule:
    none = np.zeros((1, n_layers), np.bool_)
    return Rule(none[0], Layouts((), ((),), none))


def _matches(rule: Rule, row: int) -> Masks:
    """`bool[L, L]`: whether original layer j (second axis) is what layout `row` has at new layer c (first axis)."""
    matches: Masks = rule.layouts.rows[row][:, None] == rule.kinds[None, :]
    return matches


def _path_costs(rows: Masks, kinds: Masks, fits: Masks, keep: Floats, drop: Floats) -> Floats:
    """Least costs `float64[P, L + 1]` for each layout and number of kept layers, infinity where impossible.

    `rows` is `bool[P, L]`, `kinds` `bool[L]`; `fits` `bool[L, L]`, as of `_matches`, limits the new places further.
    """
    costs = np.full((len(rows), len(kinds) + 1), np.inf)
    costs[:, 0] = 0
    for layer, kind in enumerate(kinds):
        kept = np.where((rows == kind) & fits[:, layer], costs[:, :-1] + keep[layer], np.inf)
        costs += drop[layer]
        np.minimum(costs[:, 1:], kept, out=costs[:, 1:])
    return costs


def _reached(costs: Floats, n_kept: int | None) -> Floats:
    """The cost `float64[P]` at `n_kept` kept layers, or the least over all numbers but zero."""
    reached: Floats = costs[:, 1:].min(axis=1) if n_kept is None else costs[:, n_kept]
    return reached


def _walk_back(fits: Masks, keep: Floats, drop: Floats, n_kept: int | None) -> Masks:
    """The mask `bool[L]` of least cost, for one layout of each rule given as `fits` (`bool[L, L]`)."""
    n_layers = len(keep)
    steps = [np.full(n_layers + 1, np.inf)]
    steps[0][0] = 0
    for layer in range(n_layers):
        dropped = steps[-1] + drop[layer]
        kept = np.where(fits[:, layer], steps[-1][:-1] + keep[layer], np.inf)
        steps.append(np.concatenate([dropped[:1], np.minimum(dropped[1:], kept)]))
    counts = range(n_layers, 0, -1) if n_kept is None else [n_kept]
    count = min(counts, key=lambda c: float(steps[-1][c]))
    mask = np.zeros(n_layers, np.bool_)
    for layer in reversed(range(n_layers)):
        before, after = steps[layer], steps[layer + 1]
        if count and fits[count - 1, layer] and before[count - 1] + keep[layer] == after[count]:
            mask[layer] = True
            count -= 1
    return mask

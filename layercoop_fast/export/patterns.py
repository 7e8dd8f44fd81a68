"""Layouts that a config spells with a few numbers, and the cheapest mask that fits one. Free of torch and transformers.

Some configs do not list the kind of each layer; they say "attention every 8 layers, from layer 4". Renumbering the kept
layers must land on something such numbers can say. A `Rule` holds, for one kind of layer, which of the original layers
are of that kind and every layout the numbers can produce; a mask is expressible when, for each rule, the kinds of its
kept layers are the beginning of one of the layouts.
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
    """Every layout of L layers that some numbers of a config can produce, each once."""

    names: tuple[str, ...]
    """The config's attributes that hold the numbers."""
    numbers: tuple[tuple[int, ...], ...]
    """Per layout, the values of `names`; of the many that produce the same layout, those that come first."""
    rows: Masks
    """`bool[P, L]`: which layers are of the kind, one row a layout."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One kind of layer of a model and the layouts that its config can give to it."""

    kinds: Masks
    """`bool[L]`: which of the original layers are of the kind."""
    layouts: Layouts

    def numbers_for(self, kept: npt.NDArray[np.intp]) -> dict[str, int] | None:
        """Return the config's numbers that lay out the layers `kept` (`intp[K]`, ascending), or None where none do."""
        fits = (self.layouts.rows[:, : len(kept)] == self.kinds[kept]).all(axis=1)
        if not fits.any():
            return None
        return dict(zip(self.layouts.names, self.layouts.numbers[int(fits.argmax())], strict=True))


@lru_cache
def periodic_layouts(period: str, offset: str, n_layers: int) -> Layouts:
    """Layouts `i % period == offset` with 0 <= offset < period; none of the kind at all is one of them."""
    numbers = [(p, o) for p in range(1, n_layers + 2) for o in range(p)]
    layer = np.arange(n_layers)
    return _distinct((period, offset), {pair: layer % pair[0] == pair[1] for pair in numbers})


@lru_cache
def interval_layouts(interval: str, start: str, end: str, n_layers: int) -> Layouts:
    """Layouts `(i + 1) % interval == 0 and start <= i <= end`; none of the kind at all is one of them."""
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
    keeps exactly so many. Equal costs go to the mask that keeps more, and then to the one that removes earlier layers.

    For one layout a rule this is a shortest path: after each original layer, the least cost for each count of layers
    kept so far, where a layer may become new layer c only if its kinds are those of the layouts at c. All layouts of
    the last rule are walked at once; those of the others in the order of the cost they reach alone, a lower bound on
    what they reach together, until the bound says that no better mask can follow.
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
    """Least costs `float64[P, L + 1]` for each layout and count of kept layers, inf where out of reach.

    `rows` `bool[P, L]`, `kinds` `bool[L]`; `fits` `bool[L, L]` as `_matches` returns it, further limits on the places.
    """
    costs = np.full((len(rows), len(kinds) + 1), np.inf)
    costs[:, 0] = 0
    for layer, kind in enumerate(kinds):
        kept = np.where((rows == kind) & fits[:, layer], costs[:, :-1] + keep[layer], np.inf)
        costs += drop[layer]
        np.minimum(costs[:, 1:], kept, out=costs[:, 1:])
    return costs


def _reached(costs: Floats, n_kept: int | None) -> Floats:
    """The cost `float64[P]` at `n_kept` kept layers, or the least over all counts but zero."""
    reached: Floats = costs[:, 1:].min(axis=1) if n_kept is None else costs[:, n_kept]
    return reached


def _walk_back(fits: Masks, keep: Floats, drop: Floats, n_kept: int | None) -> Masks:
    """The mask `bool[L]` of least cost, for one layout a rule given as `fits` (`bool[L, L]`)."""
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

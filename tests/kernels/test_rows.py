"""From how many rows on a product's rows are independent of each other: found for a model's own products, cheaply."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.kernels import linear, rows
from layercoop_fast.kernels.rows import MANY_ROWS, MIN_ROWS, Product, rows_alike_from
from layercoop_fast.masked import batch_width as width
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.texts.calibration import Calibration

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing found before, and nothing that a test's stand-ins found afterwards."""
    rows._found.cache_clear()
    yield
    rows._found.cache_clear()


def unlike(monkeypatch: pytest.MonkeyPatch, below: int, products: Callable[[int, int], bool]) -> list[tuple[int, ...]]:
    """Have `torch.mm` sum in another order where rows are fewer; returns a list of the shapes asked for."""
    seen: list[tuple[int, ...]] = []
    mm = torch.mm

    def other(left: Tensor, right: Tensor, **out: Tensor) -> Tensor:
        seen.append((*left.shape, right.shape[1]))
        if len(left) >= below or not products(*right.shape):
            return mm(left, right, **out)
        half = right.shape[0] // 2
        parts = [mm(left[:, part].float(), right[part].float()) for part in (slice(half), slice(half, None))]
        result = (parts[0] + parts[1]).to(left.dtype)
        return out["out"].copy_(result) if out else result

    monkeypatch.setattr(torch, "mm", other)
    monkeypatch.setattr(linear, "core_multiplies", lambda dtype: False)
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("below", "found"), [(2, 16), (20, 24), (65, 100), (400, 512), (1000, MANY_ROWS)])
def test_another_order_of_sums_is_seen_from_where_it_ends(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, below: int, found: int
) -> None:
    unlike(monkeypatch, below, lambda terms, columns: (terms, columns) == (96, 64))
    assert rows_alike_from(dtype, {(96, 64)}) == found
    assert rows_alike_from(dtype, {(64, 96), (96, 64)}) == found
    # Products of up to 128 rows alone: from 400 on all of them are in that other order.
    assert rows_alike_from(dtype, {(96, 64)}, most=128) == (found if below < 128 else MIN_ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [33, 48, 576, 2048])
def test_almost_every_number_shows_the_order(dtype: torch.dtype, terms: int) -> None:
    left, weight = rows._cancelling(dtype, 16, terms, 40)
    right = weight.t()
    exact = left.double() @ right.double()
    assert exact.abs().max() <= 1e-9
    # Not in the middle: some libraries' products of 576 terms are themselves sums of two halves.
    at = 3 * terms // 7
    in_order = left.float() @ right.float()
    cut = left[:, :at].float() @ right[:at].float() + left[:, at:].float() @ right[at:].float()
    differ = (in_order.to(dtype) != cut.to(dtype)).double().mean()
    assert differ > (0.5 if dtype == torch.float32 else 0.05)


def test_what_was_found_is_kept_and_few_columns_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = unlike(monkeypatch, 0, lambda *_: True)
    assert rows_alike_from(torch.float32, [(4096, 30_000)], most=32) == MIN_ROWS
    assert {shape[1:] for shape in seen} == {(4096, 256)}
    asked = len(seen)
    rows_alike_from(torch.float32, [(4096, 30_000)], most=32)
    assert len(seen) == asked
    assert max(count for count, *_ in seen) == 32


def test_memory_that_is_not_there_means_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patched:
        patched.setattr(rows, "linear", full)
        assert rows_alike_from(torch.bfloat16, [(64, 64)]) == MANY_ROWS
    assert rows_alike_from(torch.float32, [(64, 64)]) < MANY_ROWS


def windows_of(family: str, dtype: torch.dtype, score_every: int = 1) -> Windows:
    ids = torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    return Windows(Skeleton(tiny_model(family, 2).to(dtype)), ids, score_every)


def test_the_products_of_a_model_are_its_own() -> None:
    joint = {(48, 80), (48, 48), (48, 160), (80, 48)}  # queries, keys and values at once; gate and up at once
    assert list(make_units(windows_of("llama", torch.float32)).products) == [joint, joint]
    parted = joint | {(48, 48), (48, 32)}  # queries of some rows, keys and values of all
    assert list(make_units(windows_of("llama", torch.float32, 4)).products) == [parted, parted]
    halves = make_units(windows_of("llama", torch.float32), halves=True).products
    assert list(halves) == [{(48, 80), (48, 48)}, {(48, 160), (80, 48)}] * 2
    general = {(48, 144), (48, 48), (48, 192), (192, 48)}
    assert list(make_units(windows_of("gpt2", torch.float32)).products) == [general, general]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("of", [(48, 48), (80, 48), (192, 48)])
def test_a_product_of_the_model_that_rounds_otherwise_keeps_states_apart(
    monkeypatch: pytest.MonkeyPatch, family: str, of: Product
) -> None:
    windows = windows_of(family, torch.bfloat16)
    units, slots = make_units(windows), list(windows.pool(4))
    makes = of in units.products[0]
    unlike(monkeypatch, 100, lambda *shape: shape == of)
    with torch.inference_mode():
        wide = width.batch_width(windows, units, slots, 10)
        assert (wide == 1) == makes
        assert width.batch_width(windows, units, slots[:1], 10) == 1


class Parted:
    """Units of which one kind, not the first, gives other bits in batches of four."""

    path, bytes_a_row = "parted", 0

    def __init__(self, products: list[frozenset[Product]]) -> None:
        self.products = products

    def run(self, unit: int, sources: list[Tensor], targets: list[Tensor], rows: Tensor | None = None) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source + (unit == 1 and len(sources) == 4))

    def on(self, windows: Windows) -> Parted:
        return self


@pytest.mark.parametrize("kinds", [[{(48, 48)}, {(48, 80)}], [{(48, 48)}, {(48, 48)}, {(48, 48)}, {(48, 48)}]])
def test_a_unit_of_every_kind_is_tried(monkeypatch: pytest.MonkeyPatch, kinds: list[set[Product]]) -> None:
    """Blocks of two shapes; and halves, of which the second is a kind of its own."""
    monkeypatch.setattr(width, "rows_alike_from", lambda *_: MIN_ROWS)
    windows = windows_of("llama", torch.float32)
    units = Parted([frozenset(made) for made in kinds])
    assert width.batch_width(windows, units, list(windows.pool(8)), 10) == 2
    windows.score_every = 4
    assert width.scored_width(windows, units, list(windows.pool(8)), 8) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "inner", "tokens"), [(80, 112, 9), (240, 136, 20), (112, 64, 40)])
def test_a_worth_has_the_same_bits_whatever_is_measured_beside_it(
    dtype: torch.dtype, hidden: int, inner: int, tokens: int
) -> None:
    """On models of several shapes, with real products: alone, together and in small memory."""
    model = tiny_model("llama", 4, hidden_size=hidden, intermediate_size=inner, num_attention_heads=1).to(dtype)
    checkpoint = Checkpoint(model, tiny_tokenizer(), "tiny")
    ids = torch.randint(3, 256, (2, tokens), generator=torch.Generator().manual_seed(1))
    masks = np.array([[bit == "1" for bit in f"{number:04b}"] for number in range(16)])

    def nll(*some: np.ndarray, memory: int = 2**24) -> list[bytes]:
        game = ModelGame(checkpoint, Calibration(ids, "t"), memory=memory)
        return [row.tobytes() for part in some for row in game.evaluate(part).window_nll]

    together = nll(masks)
    assert together == nll(*(mask[None] for mask in masks))
    assert together == nll(masks, memory=2**17)

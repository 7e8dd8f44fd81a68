"""Repairs of a mask: fitting one (`gap_by_gap.py`), and what the model is worth with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masks.types import Floats, Masks, Progress, check_masks
from layercoop_fast.repair.gap_by_gap import GapByGap, kept_units
from layercoop_fast.repair.held_out import NO_MAPS, HeldOut
from layercoop_fast.repair.options import check_compute
from layercoop_fast.repair.patches import Patch, applied
from layercoop_fast.repair.run_maps import RunMaps
from layercoop_fast.repair.texts import DEFAULT_TOKENS, RepairTexts, texts_to_fit


@dataclass(frozen=True, eq=False)
class Repaired:
    """The result of repairing a mask.

    Attributes:
        mask: bool [n], over players.
        patches: the parameters that change; none where no repair helped.
        record: its part of `layercoop.json` (docs/contracts.md).
    """

    mask: Masks
    patches: tuple[Patch, ...]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether any repair helped and is kept."""
        return bool(self.patches)

    def tensors(self) -> dict[str, Tensor]:
        """The changed parameters by their names in the original model's state dict, in its shapes [...]."""
        return {name: tensor for one in self.patches for name, tensor in one.values.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the `with` block the model has the repaired parameters; its games must not be evaluated there."""
        with applied(self.patches):
            yield


def check_repairable(game: ModelGame) -> None:
    """Raise `RequestError` for a quantised model."""
    if is_quantised(game.checkpoint.model):
        raise RequestError(
            "a repair changes weights, which is not possible in this quantised model: leave out repair= and what "
            "belongs to it, or prune the original model and quantise the result (layercoop-fast quantise)"
        )


def fit_repair(
    game: ModelGame,
    mask: Masks,
    texts: Sequence[str] | RepairTexts | None = None,
    *,
    tokens: int = DEFAULT_TOKENS,
    compute: str = "full",
    maps: RunMaps | None = None,
    required: bool = False,
    heldout: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Repaired:
    """Fit a repair for a mask; the model is unchanged afterwards.

    Args:
        game: the model and its players. Its own windows are not used.
        mask: bool [n] over the game's players, True for those that stay.
        texts: SPECs of the texts to fit to, or the loaded texts; by default `repair.texts.default_texts`.
        tokens: number of tokens to fit to, over all texts.
        compute: "full" or "small" (`RepairOptions`).
        maps: of every run (`repair/run_maps.py`): a gap is judged with those of the gaps behind it in the model.
        required: raise `RequestError` where no repair can be fitted at all, instead of returning no patches.
        heldout: SPECs of texts that are used for measuring, and left out of the default texts.
        seed: of the text `self`.
        progress: called with ("gaps repaired", done, total).

    Raises `RequestError` for a wrong mask or text, and for a quantised model. Where nothing can be repaired, or no
    repair helps, the result has no patches and its record says why.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import ModelGame, fit_repair
        >>> game = ModelGame.from_pretrained("my-model", calibration="self", windows=2, tokens=16)
        >>> repaired = fit_repair(game, np.array([True, False, True, True]), ["self"], tokens=512)
        >>> repaired.mask.tolist(), repaired.record["texts"]
        ([True, False, True, True], ['self'])
    """
    started = time.perf_counter()
    check_compute(compute)
    check_repairable(game)
    mask = check_masks(mask, game.n_players)[0]
    units = game.masked.players.unit_masks(mask[None])[0]
    if not units.any():
        raise RequestError("a mask that keeps nothing cannot be repaired")
    if not isinstance(texts, RepairTexts):
        texts = texts_to_fit(game, texts, tokens, required=required, heldout=heldout, seed=seed, progress=progress)
    patches: tuple[Patch, ...] = ()
    record: dict[str, Any] = {"gaps": [], "reason": "; ".join(texts.left_out.values())}
    if texts.texts:
        patches, record = GapByGap(game, units, texts, neurons=compute == "full", maps=maps).run(progress)
    if required and not patches and not any("map" in gap for gap in record["gaps"]):
        raise RequestError(f"a repair cannot be fitted: {record['reason']}")
    record = {
        "kept": bool(patches),
        **record,
        "compute": compute,
        "texts": [text.spec for text in texts.texts],
        "left_out": list(texts.left_out.values()),
        "tokens": texts.tokens,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Repaired(mask, patches, record)


def repaired_worth(game: ModelGame, repaired: Repaired) -> tuple[float, float]:
    """Worth and mean NLL (nats per token) of a repaired mask on the game's own windows, which the fit has not used.

    The game does not remember it, since it is not the worth of the mask itself.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import ModelGame, fit_repair, repaired_worth
        >>> game = ModelGame.from_pretrained("my-model", calibration="self", windows=2, tokens=16)
        >>> repaired = fit_repair(game, np.array([True, False, True, True]), ["self"], tokens=512)
        >>> worth, nll = repaired_worth(game, repaired)
        >>> worth > 0, nll > 0
        (True, True)
    """
    return repaired_windows(game, repaired)[:2]


def repaired_windows(game: ModelGame, repaired: Repaired) -> tuple[float, float, Floats]:
    """As `repaired_worth`, with the NLL of each window (on items, of each scored token), float64 [W]."""
    return measured_with(game, repaired.mask, repaired.patches)


def measured_with(
    game: ModelGame, mask: Masks, patches: Sequence[Patch], maps: Mapping[int, Tensor] = NO_MAPS
) -> tuple[float, float, Floats]:
    """Worth, mean NLL, and NLL of each window (on items, of each scored token: float64 [W]) of a changed mask.

    The mask, bool [n], is measured with the patches applied, and with `maps` between its units (`HeldOut.scores`).
    """
    text = HeldOut(game, game.masked.windows, game.masked.scorer)
    everything = range(game.masked.players.n_units)
    if game.utility.needs_teacher:
        text.keep_teacher(everything)
    full = text.scores(everything).nll
    with applied(patches):
        scores = text.scores(kept_units(game.masked.players.unit_masks(mask[None])[0]), maps)
    with np.errstate(all="ignore"):
        worth, nll = game.utility.judge(scores.nll[None], scores.kl[None], full, game.fingerprints["calibration"])
    return float(worth[0]), float(nll[0]), scores.nll

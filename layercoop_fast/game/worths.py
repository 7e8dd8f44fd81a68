"""Measured worths and the file they are kept in, `worths.npz`."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.engine.sublayers import PARTS
from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason, written_whole
from layercoop_fast.game.choice_utility import Layout, item_values
from layercoop_fast.game.domains import Domains


@dataclass(frozen=True)
class Worths:
    """What was measured for M masks of n players on W windows.

    Attributes:
        masks: bool [M, n], True = kept.
        worths: float64 [M]; NaN and infinity are carried as measured.
        nll: float64 [M], mean negative log-likelihood in nats a token.
        window_nll: float64 [M, W], the same for each window. Of items with options each scored token is such a window,
            option by option (`game/choice_utility.py`), and `nll` is the mean over the true options' tokens.
        window_tokens: int64 [W], scored tokens of each window.
        fingerprints: what the numbers belong to (model, calibration, utility, score_every, players, dtype, numerics).
    """

    masks: NDArray[np.bool_]
    worths: NDArray[np.float64]
    nll: NDArray[np.float64]
    window_nll: NDArray[np.float64]
    window_tokens: NDArray[np.int64]
    fingerprints: dict[str, Any] = field(default_factory=dict)

    @property
    def n_not_finite(self) -> int:
        """How many worths are NaN or infinite."""
        return int((~np.isfinite(self.worths)).sum())

    @property
    def nll_stderr(self) -> NDArray[np.float64]:
        """Standard error of `nll` as an estimate for more text like this, float64 [M]: over windows, NaN for one alone.

        What the windows share with each other's masks cancels in differences between masks, which are better known. Of
        items with options it is taken over the items, of several texts over the windows of each.
        """
        domains = Domains.of(self.fingerprints.get("calibration"))
        if domains is not None:
            return domains.stderr(self.window_nll)
        layout = Layout.of(self.fingerprints.get("calibration"))
        return _standard_error(self.window_nll if layout is None else layout.item_nll(self.window_nll))

    @property
    def worth_stderr(self) -> NDArray[np.float64] | None:
        """Standard error over items of a worth that is a mean over items, float64 [M]; None for any other."""
        utility, calibration = (self.fingerprints.get(name) for name in ("utility", "calibration"))
        values = item_values(str(utility), self.window_nll, calibration)
        return None if values is None else _standard_error(values)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write `worths.npz`: the arrays by name, and `fingerprints` as JSON text. Whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with written_whole(Path(path), force=force) as made, made.open("wb") as file:
            np.savez_compressed(file, **arrays, fingerprints=np.array(json.dumps(self.fingerprints)))

    @property
    def player_names(self) -> list[str]:
        """A name for each player, as people know them: "7" for a layer, "7.attn" for half of one, "7+8" for a group."""
        n, description = self.masks.shape[1], str(self.fingerprints.get("players", "layers"))
        if description == "sublayers":
            return [f"{player // 2}.{PARTS[player % 2]}" for player in range(n)]
        if description.startswith("["):
            return ["+".join(map(str, group)) for group in json.loads(description)]
        return [str(player) for player in range(n)]

    @classmethod
    def load(cls, path: str | Path) -> Worths:
        """Read what `save` wrote. `RequestError` when the file is something else."""
        try:
            # Opened here, so that it is closed too where numpy gives up on it.
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                fingerprints = json.loads(str(file["fingerprints"]))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {reason(error)}") from error
        except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise RequestError(f"{path} is not a worths.npz as `evaluate` writes it: {reason(error)}") from error
        for name, (dtype, ndim) in _ARRAYS.items():
            if arrays[name].dtype != dtype or arrays[name].ndim != ndim:
                raise RequestError(f"{path}: {name} should be a {ndim}-dimensional array of {np.dtype(dtype).name}")
        if len({len(arrays[name]) for name in ("masks", "worths", "nll", "window_nll")}) != 1:
            raise RequestError(f"{path}: masks, worths, nll and window_nll have different lengths")
        return cls(**arrays, fingerprints=fingerprints)


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the mean over each row, [M, K] → [M]; NaN where K is 1."""
    count = values.shape[1]
    if count < 2:
        return np.full(len(values), np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(values.std(axis=1, ddof=1) / np.sqrt(count))


_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "masks": (np.bool_, 2),
    "worths": (np.float64, 1),
    "nll": (np.float64, 1),
    "window_nll": (np.float64, 2),
    "window_tokens": (np.int64, 1),
}


def load_masks(path: Path, n_players: int) -> NDArray[np.bool_]:
    """Read a mask file: a `.npy` of bool [M, n_players], or of 0 and 1 in any integer type.

    Raises `RequestError` for anything else, object arrays and pickles included: they are never opened.
    """
    try:
        with path.open("rb") as opened:
            masks = np.load(opened, allow_pickle=False)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{path} is not a plain .npy array (object arrays and pickles are not read): "
            "save masks with numpy.save, as bool [masks, players]"
        ) from error
    if not isinstance(masks, np.ndarray):
        raise RequestError(f"{path} is an .npz archive: save the mask array alone with numpy.save")
    if masks.ndim != 2 or masks.shape[1] != n_players:
        raise RequestError(f"{path} has shape {list(masks.shape)}: masks of {n_players} players are [M, {n_players}]")
    if masks.dtype == np.bool_:
        return np.ascontiguousarray(masks)
    if np.issubdtype(masks.dtype, np.integer) and bool(((masks == 0) | (masks == 1)).all()):
        return masks.astype(np.bool_)
    raise RequestError(f"{path} has dtype {masks.dtype}: masks are bool, or 0 and 1 in an integer type")

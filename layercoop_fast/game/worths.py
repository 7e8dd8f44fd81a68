"""Measured worths and the file they are kept in, `worths.npz`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole
from layercoop_fast.game.item_utility import item_values
from layercoop_fast.inputs.arrays import read_array, read_arrays
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import as_saved, is_flat, parse_json
from layercoop_fast.masks.halves import PARTS
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.layout import Layout


@dataclass(frozen=True)
class Worths:
    """What was measured for M masks of n players on W windows.

    Attributes:
        masks: bool [M, n], True = kept.
        worths: float64 [M]; NaN and infinity are carried as measured.
        nll: float64 [M], mean negative log-likelihood in nats a token.
        window_nll: float64 [M, W], the same for each window. For items with options each scored token is such a window,
            option by option (`game/item_utility.py`), and `nll` is the mean over the true options' tokens.
        window_tokens: int64 [W], scored tokens of each window.
        fingerprints: what the numbers belong to (model, calibration, utility, score_every, players, dtype, numerics).

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import ModelGame, Worths
        >>> game = ModelGame.from_pretrained("my-model", calibration="self", windows=2, tokens=16)
        >>> game.evaluate(np.ones((1, game.n_players), dtype=bool)).save("worths.npz")
        >>> measured = Worths.load("worths.npz")
        >>> measured.worths.tolist(), measured.window_nll.shape
        ([1.0], (1, 2))
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

        What the windows share with each other's masks cancels in differences between masks, which are better known. For
        items with options it is taken over the items, for several texts over the windows of each.
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
        return names_of_players(self.masks.shape[1], self.fingerprints)

    @classmethod
    def load(cls, path: str | Path) -> Worths:
        """Read what `save` wrote. `RequestError` when the file is something else."""
        hint = "it is not a worths.npz as `evaluate` writes it"
        arrays = read_arrays(Path(path), {**_ARRAYS, "fingerprints": (np.str_, 0)}, hint)
        with as_saved(path, hint):
            text = str(arrays.pop("fingerprints"))  # whose characters may be none
        if len({len(arrays[name]) for name in ("masks", "worths", "nll", "window_nll")}) != 1:
            raise RequestError(f"{path}: masks, worths, nll and window_nll have different lengths")
        fingerprints = parse_json(text, f"{path}: fingerprints", hint=hint)
        check_measured(fingerprints, arrays["masks"].shape[1], arrays["window_tokens"], str(path))
        if arrays["window_nll"].shape[1] != len(arrays["window_tokens"]):
            raise RequestError(f"{path}: window_nll and window_tokens are of different numbers of windows")
        return cls(**arrays, fingerprints=fingerprints)


def check_measured(fingerprints: Any, n_players: int, window_tokens: NDArray[np.int64], where: str) -> None:
    """Check what a file says its numbers belong to against how many there are.

    Args:
        fingerprints: of any type, as read.
        n_players: players n.
        window_tokens: int64 [W].
        where: what to name in errors.

    Raises `RequestError` where players, windows, texts or items do not fit each other.
    """
    if not 1 <= n_players <= MAX_PLAYERS:
        raise RequestError(f"{where} is about {n_players} players: 1 to {MAX_PLAYERS:,} are taken")
    if len(window_tokens) < 1 or not ((window_tokens >= 1) & (window_tokens < 2**31)).all():
        raise RequestError(f"{where}: windows have 1 scored token at least")
    if not isinstance(fingerprints, dict) or not is_flat(fingerprints):
        raise RequestError(f"{where}: fingerprints are no JSON object of names and values")
    for name in ("model", "players", "utility", "dtype"):
        if not isinstance(fingerprints.get(name, ""), str):
            raise RequestError(f"{where}: the fingerprint of {name} is not text")
    if not isinstance(fingerprints.get("numerics", {}), dict):
        raise RequestError(f"{where}: the fingerprint of numerics is not a JSON object")
    calibration = fingerprints.get("calibration")
    with as_saved(f"{where}: fingerprints"):
        json.dumps(fingerprints, allow_nan=False)  # as they are written again
        if len(names_of_players(n_players, fingerprints)) != n_players:
            raise RequestError(f"{where}: its players are not those of its masks")
        domains, layout = Domains.of(calibration), Layout.of(calibration)
        fits = (domains is None or domains.fits(len(window_tokens))) and (
            layout is None or layout.fits(len(window_tokens))
        )
    if not fits:
        raise RequestError(f"{where}: its texts or items are not those of its windows")


def names_of_players(n_players: int, fingerprints: dict[str, Any]) -> list[str]:
    """A name for each player, as people know them: "7" for a layer, "7.attn" for half of one, "7+8" for a group."""
    description = str(fingerprints.get("players", "layers"))
    if description == "sublayers":
        return [f"{player // 2}.{PARTS[player % 2]}" for player in range(n_players)]
    if description.startswith("["):
        return ["+".join(map(str, group)) for group in parse_json(description, "groups of players")]
    return [str(player) for player in range(n_players)]


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over each row, [M, K] → [M]; NaN where K is 1."""
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


def load_masks(path: Path, n_players: int | None = None) -> NDArray[np.bool_]:
    """Read a mask file: a `.npy` of bool [M, n_players], or of 0 and 1 in any integer type.

    Without `n_players` any number of players up to `MAX_PLAYERS` is taken.

    Raises `RequestError` for anything else, object arrays and pickles included: they are never opened.
    """
    masks = read_array(path, "save masks alone with numpy.save, as bool [masks, players]")
    if masks.ndim != 2:
        raise RequestError(f"{path} has shape {list(masks.shape)}: masks are [M, players]")
    if not 1 <= masks.shape[1] <= MAX_PLAYERS:
        raise RequestError(f"{path} has shape {list(masks.shape)}: masks are of 1 to {MAX_PLAYERS:,} players")
    if n_players is not None:
        check_width(masks, n_players, path)
    if masks.dtype == np.bool_:
        return np.ascontiguousarray(masks)
    if np.issubdtype(masks.dtype, np.integer) and bool(((masks == 0) | (masks == 1)).all()):
        return masks.astype(np.bool_)
    raise RequestError(f"{path} has dtype {masks.dtype}: masks are bool, or 0 and 1 in an integer type")


def check_width(masks: NDArray[Any], n_players: int, path: Path) -> None:
    """Raise `RequestError` unless masks [M, n] that were read from `path` are of `n_players` players."""
    if masks.shape[1] != n_players:
        raise RequestError(f"{path} has shape {list(masks.shape)}: masks of {n_players} players are [M, {n_players}]")

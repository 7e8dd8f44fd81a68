"""The text that a repair is fitted to: several domains, each with windows to fit to, to choose by and to check with.

The windows of one text do not overlap each other, nor the text that a game is played on where both are cut from one
SPEC (but for wrong options of items, which are stretches of anywhere).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.inputs.options import REPAIR_TOKENS, TOKENS
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.calibration import (
    begin_tokens,
    read_text,
    sample_from_model,
    window_starts,
)

DEFAULT_TOKENS = REPAIR_TOKENS
# Held out of each domain: windows by which the strength is chosen, and as many to check the whole with.
HELDOUT_WINDOWS = 8
# A domain with fewer windows to fit to than are held out of it says too little.
_LEAST_WINDOWS = 3 * HELDOUT_WINDOWS


@dataclass(frozen=True, eq=False)
class Domain:
    """Windows of one text, int64 [W, T] each."""

    spec: str
    fit: Tensor
    choice: Tensor
    check: Tensor


@dataclass(frozen=True, eq=False)
class Domains:
    """The domains of a repair, and by SPEC the texts that are too short, with one line that says so."""

    domains: tuple[Domain, ...]
    left_out: dict[str, str]

    @property
    def tokens(self) -> int:
        """Tokens that are fitted to."""
        return sum(domain.fit.numel() for domain in self.domains)


def default_texts(game: ModelGame, heldout: Sequence[str] = ()) -> list[str]:
    """SPECs of the calibration text, and of texts of other kinds beside it: one kind alone misleads on others.

    Not text that the model writes itself, which would take longer than all the rest, nor items with options, nor the
    held-out texts.
    """
    kinds = dict.fromkeys([*own_texts(game), "builtin", "builtin-docstrings", "builtin-code"])
    return [kind for kind in kinds if kind not in ("self", *heldout)]


def check_texts(specs: Sequence[str] | None, tokens: int) -> None:
    """Raise `RequestError` for no texts, one that is given twice, or no tokens."""
    if specs is not None and (not specs or len(set(specs)) < len(specs)):
        raise RequestError(f"a repair needs texts to be fitted to, each given once, not {list(specs)}")
    if tokens < 1:
        raise RequestError(f"a repair is fitted to at least 1 token, not {tokens}")


def own_texts(game: ModelGame) -> dict[str, int]:
    """The SPECs of the texts that a game is played on, and how many of its windows are of each; of items, none."""
    return game.calibration.windows_of


def texts_to_fit(
    game: ModelGame,
    specs: Sequence[str] | None = None,
    tokens: int = DEFAULT_TOKENS,
    *,
    required: bool = False,
    heldout: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Domains:
    """The texts that repairs of a game's masks are fitted to: those of the SPECs, by default `default_texts`.

    Without SPECs, and unless `required`, there are none where no text can be cut (no tokenizer), or where the user's
    own kind of text is too short for windows to be held out: whether a repair helps there would not be known.
    """
    if specs is not None or required:
        specs = default_texts(game, heldout) if specs is None else specs
        return load_domains(game, specs, tokens, seed=seed, progress=progress)
    if game.checkpoint.tokenizer is None:
        return Domains((), {"": "without a tokenizer no text can be cut into tokens"})
    found = load_domains(game, default_texts(game, heldout), tokens, seed=seed, progress=progress)
    return Domains((), found.left_out) if any(spec in found.left_out for spec in own_texts(game)) else found


def _length(game: ModelGame) -> int:
    """Tokens of a window: as many as the calibration windows have."""
    return int(game.calibration.ids.shape[1]) if game.n_windows else TOKENS


def load_domains(
    game: ModelGame,
    specs: Sequence[str],
    tokens: int = DEFAULT_TOKENS,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Domains:
    """Cut about `tokens` tokens to fit to, in equal parts from the texts of the SPECs, in windows of the game's length.

    Of each text at least `HELDOUT_WINDOWS` windows are fitted to, however many tokens that is; a text too short for
    `_LEAST_WINDOWS` windows is left out. Raises `RequestError` for a SPEC that cannot be read, none at all, one given
    twice, or no tokens.
    """
    check_texts(specs, tokens)
    length = _length(game)
    wanted = max(HELDOUT_WINDOWS, tokens // (len(specs) * length))
    found, left_out = [], {}
    for spec in specs:
        windows = _windows(game, spec, wanted + 2 * HELDOUT_WINDOWS, seed, progress).to(game.masked.skeleton.device)
        if len(windows) < _LEAST_WINDOWS:
            left_out[spec] = (
                f"{spec} has {len(windows)} windows of {length} tokens beside those that the search uses; "
                f"{_LEAST_WINDOWS} are needed to fit and to cross-validate a repair"
            )
            continue
        # Those held out are spread over the text, and lie apart from each other.
        held = np.linspace(0, len(windows) - 1, 2 * HELDOUT_WINDOWS).round().astype(np.int64)
        rest = np.setdiff1d(np.arange(len(windows)), held)
        found.append(Domain(spec, windows[rest], windows[held[::2]], windows[held[1::2]]))
    return Domains(tuple(found), left_out)


def _windows(game: ModelGame, spec: str, wanted: int, seed: int, progress: Progress | None) -> Tensor:
    """Up to `wanted` windows of a text, spread over it: int64 [W, T]."""
    length = _length(game)
    tokenizer = game.checkpoint.tokenizer
    if spec == "self":
        # Another seed than that of a calibration text which the model wrote itself.
        return sample_from_model(game.masked.skeleton, tokenizer, wanted, length, seed + 1, progress)
    if tokenizer is None:
        raise RequestError("the model's folder holds no tokenizer, so text cannot be cut into tokens: repair off")
    stream = np.asarray(tokenizer(read_text(spec), add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    begin = np.asarray(begin_tokens(tokenizer), dtype=np.int64)
    body = length - len(begin)
    starts = _free_starts(len(stream), body, *_played(game, spec, len(stream), body))
    if len(starts) > wanted:
        starts = starts[np.linspace(0, len(starts) - 1, wanted).round().astype(np.int64)]
    bodies = stream[starts[:, None] + np.arange(body)]
    return torch.from_numpy(np.hstack([np.tile(begin, (len(starts), 1)), bodies]))


def _played(game: ModelGame, spec: str, tokens: int, body: int) -> tuple[NDArray[np.int64], int]:
    """First tokens of the stretches of a text of so many tokens that the game is played on, and their length."""
    count, length = game.calibration.stretches(spec, body)
    return window_starts(tokens, length, count) if count else np.empty(0, np.int64), length


def _free_starts(tokens: int, body: int, used: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """First tokens of windows of `body` tokens, side by side, that share none with `used` ones of `length`."""
    borders = np.concatenate([[-length], np.sort(used), [tokens]])
    runs = [np.arange(first + length, last - body + 1, body) for first, last in pairwise(borders)]
    return np.concatenate(runs).astype(np.int64)

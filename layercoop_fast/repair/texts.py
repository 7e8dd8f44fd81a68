"""The texts that a repair is fitted to, each with windows for the fit, for the choice of its strength, and for a check.

The windows of one text do not overlap each other, nor the windows of the game where these are from the same SPEC
(except wrong options of items, which may come from anywhere in the text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Calibration,
    begin_tokens,
    read_text,
    require_tokenizer,
    window_starts,
)
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.own_text import (
    SELF,
    is_own,
    sample_answers,
    sample_from_model,
    writes_token_by_token,
)
from layercoop_fast.texts.tokens import tokens_of

DEFAULT_TOKENS = REPAIR_TOKENS
# Held-out windows of each text to choose the strength, and as many to check the whole repair.
HELDOUT_WINDOWS = 8
# Fewest windows of a text: at least a third of them is fitted to.
_LEAST_WINDOWS = 3 * HELDOUT_WINDOWS


@dataclass(frozen=True, eq=False)
class RepairText:
    """Windows of one text, int64 [W, T] each.

    Attributes:
        spec: of the text.
        fit: windows to fit to.
        choice: held-out windows to choose the strength.
        check: held-out windows to check the whole repair.
    """

    spec: str
    fit: Tensor
    choice: Tensor
    check: Tensor

    @property
    def every(self) -> Tensor:
        """All windows, those that are held out too, int64 [W, T]."""
        return torch.cat([self.fit, self.choice, self.check])


@dataclass(frozen=True, eq=False)
class RepairTexts:
    """The texts of a repair, and by SPEC the reasons why others are left out."""

    texts: tuple[RepairText, ...]
    left_out: dict[str, str]

    @property
    def tokens(self) -> int:
        """Number of tokens that are fitted to."""
        return sum(text.fit.numel() for text in self.texts)

    def fewer(self, tokens: int) -> RepairTexts:
        """The same texts with about `tokens` tokens to fit to, spread over those that are there."""
        found = []
        for text in self.texts:
            windows = max(1, tokens // (len(self.texts) * text.fit.shape[1]))
            rows = np.linspace(0, len(text.fit) - 1, min(windows, len(text.fit))).round().astype(np.int64)
            found.append(replace(text, fit=text.fit[torch.from_numpy(rows).to(text.fit.device)]))
        return RepairTexts(tuple(found), self.left_out)

    def heldout(self, windows: int) -> Calibration:
        """The first `windows` held-out windows of each text (of those that choose strengths), taking turns."""
        specs = tuple(text.spec for text in self.texts)
        ids = torch.stack([text.choice[:windows] for text in self.texts], dim=1).flatten(0, 1)
        domains = Domains(np.arange(len(ids)) % len(specs), np.ones(len(specs)), specs)
        return Calibration(ids, " + ".join(specs), domains if len(specs) > 1 else None)


def default_texts(game: ModelGame, heldout: Sequence[str] = ()) -> list[str]:
    """SPECs of the calibration text and of texts of other kinds, since a fit to one kind may harm others.

    One of them is what the model writes itself, the widest kind there is without a file, where that takes no longer
    than the fit (`writes_token_by_token`). Items with options and the held-out texts are left out.
    """
    kinds = dict.fromkeys([*own_texts(game), "builtin", "builtin-docstrings", "builtin-code"])
    found = [kind for kind in kinds if not is_own(kind) and kind not in heldout]
    writes = writes_token_by_token(game.masked.skeleton, game.checkpoint.tokenizer)
    return [*found, SELF] if writes and SELF not in heldout else found


def check_texts(specs: Sequence[str] | None, tokens: int) -> None:
    """Raise `RequestError` for no texts, one that is given twice, or no tokens."""
    if specs is not None and (not specs or len(set(specs)) < len(specs)):
        raise RequestError(f"a repair needs texts to be fitted to, each given once, not {list(specs)}")
    if tokens < 1:
        raise RequestError(f"a repair is fitted to at least 1 token, not {tokens}")


def own_texts(game: ModelGame) -> dict[str, int]:
    """The SPECs of a game's own texts, and the number of its windows from each; none for items."""
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
) -> RepairTexts:
    """The texts that repairs of a game's masks are fitted to: those of the SPECs, by default `default_texts`.

    Without SPECs, and unless `required`, no texts are returned where the model has no tokenizer, or where the game's
    own text is too short for held-out windows: whether a repair helps on it could not be checked.
    """
    if specs is not None or required:
        specs = default_texts(game, heldout) if specs is None else specs
        return load_texts(game, specs, tokens, seed=seed, progress=progress)
    if game.checkpoint.tokenizer is None:
        return RepairTexts((), {"": "without a tokenizer text cannot be tokenised"})
    found = load_texts(game, default_texts(game, heldout), tokens, seed=seed, progress=progress)
    return RepairTexts((), found.left_out) if any(spec in found.left_out for spec in own_texts(game)) else found


def _length(game: ModelGame) -> int:
    """Number of tokens of a window: that of the calibration windows."""
    return int(game.calibration.ids.shape[1]) if game.n_windows else TOKENS


def load_texts(
    game: ModelGame,
    specs: Sequence[str],
    tokens: int = DEFAULT_TOKENS,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> RepairTexts:
    """Cut windows of the game's length from the texts of the SPECs, with about `tokens` tokens in all to fit to.

    Each text gives the same number of windows, at least `HELDOUT_WINDOWS` to fit to, even if that is more than
    `tokens`. A text with fewer than `_LEAST_WINDOWS` windows is left out. Raises `RequestError` for a SPEC that cannot
    be read, for no SPECs, one given twice, or no tokens.
    """
    check_texts(specs, tokens)
    length = _length(game)
    wanted = max(HELDOUT_WINDOWS, tokens // (len(specs) * length))
    found, left_out = [], {}
    for spec in specs:
        windows = _windows(game, spec, wanted + 2 * HELDOUT_WINDOWS, seed, progress).to(game.masked.skeleton.device)
        if len(windows) < _LEAST_WINDOWS:
            left_out[spec] = (
                f"{spec} has {len(windows)} windows of {length} tokens besides those that the search uses; "
                f"{_LEAST_WINDOWS} are needed to fit and to cross-validate a repair"
            )
            continue
        # Held-out windows are spread over the text.
        held = np.linspace(0, len(windows) - 1, 2 * HELDOUT_WINDOWS).round().astype(np.int64)
        rest = np.setdiff1d(np.arange(len(windows)), held)
        found.append(RepairText(spec, windows[rest], windows[held[::2]], windows[held[1::2]]))
    return RepairTexts(tuple(found), left_out)


def _windows(game: ModelGame, spec: str, wanted: int, seed: int, progress: Progress | None) -> Tensor:
    """Up to `wanted` windows of a text, spread over it: int64 [W, T]."""
    length = _length(game)
    tokenizer = game.checkpoint.tokenizer
    if is_own(spec) and spec != SELF:
        skeleton = game.masked.skeleton
        chat = game.calibration.chat
        own = require_tokenizer(tokenizer)
        return sample_answers(spec, skeleton, own, wanted, length, seed + 1, chat=chat, progress=progress)[0]
    if spec == SELF:
        # Another seed than that of a calibration text sampled from the model.
        return sample_from_model(game.masked.skeleton, tokenizer, wanted, length, seed + 1, progress)
    if tokenizer is None:
        raise RequestError("the model's folder holds no tokenizer, so text cannot be tokenised: leave out repair=")
    stream = np.asarray(tokens_of(read_text(spec), tokenizer), np.int64)
    begin = np.asarray(begin_tokens(tokenizer), dtype=np.int64)
    body = length - len(begin)
    starts = _free_starts(len(stream), body, *_played(game, spec, len(stream), body))
    if len(starts) > wanted:
        starts = starts[np.linspace(0, len(starts) - 1, wanted).round().astype(np.int64)]
    bodies = stream[starts[:, None] + np.arange(body)]
    return torch.from_numpy(np.hstack([np.tile(begin, (len(starts), 1)), bodies]))


def _played(game: ModelGame, spec: str, tokens: int, body: int) -> tuple[NDArray[np.int64], int]:
    """First tokens of the stretches that the game uses of a text of `tokens` tokens, int64 [·], and their length."""
    count, length = game.calibration.stretches(spec, body)
    return window_starts(tokens, length, count) if count else np.empty(0, np.int64), length


def _free_starts(tokens: int, body: int, used: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """First tokens of adjacent windows of `body` tokens that overlap none of the `used` ones of `length` tokens."""
    borders = np.concatenate([[-length], np.sort(used), [tokens]])
    free = [np.arange(first + length, last - body + 1, body) for first, last in pairwise(borders)]
    return np.concatenate(free).astype(np.int64)

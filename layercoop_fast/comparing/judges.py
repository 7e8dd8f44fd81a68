"""What a pruned model is judged by besides perplexity: items with options, and continuations of prompts.

    judges = [ItemJudge(game, ["jargon.txt"], 100, seed=0), ContinuationJudge(game, texts, 8)]
    for judge in judges:
        judge.name, judge.of(Changed(mask))          # float64 [N], one number a document, more is better

Documents are items and prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.comparing.rows import digest_of
from layercoop_fast.errors import RequestError
from layercoop_fast.game.item_utility import item_values
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.scoring import HEAD_BYTES, logits_of
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Floats, Masks
from layercoop_fast.repair.fit import measured_with
from layercoop_fast.repair.gap_by_gap import kept_units
from layercoop_fast.repair.held_out import HeldOut
from layercoop_fast.repair.patches import Patch, applied
from layercoop_fast.texts.items import load_items
from layercoop_fast.texts.own_text import greedy_continuations

# Accuracy by the length of options: an option of many letters is not at a disadvantage.
_UTILITY = "accuracy_norm"
# Tokens of an item that is cut, and of a continuation at most; the prompt is the rest of a window of the game.
_ITEM_TOKENS = 60
_NEW_TOKENS = 64
# Beyond these, windows of items and prompts would not fit into memory.
MOST_ITEMS = 100_000
MOST_PROMPTS = 1_000


@dataclass(frozen=True, eq=False)
class Changed:
    """A pruned model: a mask, bool [n], with parameters and matrices that compensate for what is gone."""

    mask: Masks
    patches: Sequence[Patch] = ()
    maps: Mapping[int, Tensor] = field(default_factory=dict)


class Judge(Protocol):
    """Judges pruned models document by document."""

    name: str
    """Of the column."""

    @property
    def tokens(self) -> int:
        """How many tokens run for each model."""

    def of(self, model: Changed) -> Floats:
        """What each document is worth, float64 [N] within 0 and 1, more is better."""

    def fingerprint(self) -> Any:
        """What the documents are, as JSON can hold it."""


def check_judged(items: int, continuations: int, texts: Sequence[str]) -> None:
    """Raise `RequestError` for numbers of items or prompts out of range, and for items without a text to cut from."""
    if not 0 <= items <= MOST_ITEMS:
        raise RequestError(f"items={items}: from 0 to {MOST_ITEMS:,} items can be cut from each text")
    if not 0 <= continuations <= MOST_PROMPTS:
        raise RequestError(f"continuations={continuations}: from 0 to {MOST_PROMPTS:,} prompts of each text")
    if items and not texts:
        raise RequestError("items are cut from texts that no search sees: name one with texts=")


class ItemJudge:
    """The share of items with four options whose true option is the likeliest.

    Args:
        game: model and players.
        specs: SPECs of the texts that items are cut from.
        count: number of items of each.
        seed: of the wrong options.
    """

    name = "items"

    def __init__(self, game: ModelGame, specs: Sequence[str], count: int, seed: int) -> None:
        masked = game.masked
        self._games = []
        for spec in specs:
            items = load_items(
                spec, game.checkpoint.tokenizer, masked.skeleton, items=count, tokens=_ITEM_TOKENS, seed=seed
            )
            self._games.append(
                ModelGame(
                    game.checkpoint,
                    items,
                    skeleton=masked.skeleton,
                    utility=_UTILITY,
                    players=masked.players,
                    memory=masked.memory,
                    block_path=masked.block_path,
                )
            )

    @property
    def tokens(self) -> int:
        """Those of all windows of items."""
        return sum(game.masked.windows.ids.numel() for game in self._games)

    def of(self, model: Changed) -> Floats:
        """1 for each item that is right and 0 for others, float64 [items of all texts]."""
        found = []
        for game in self._games:
            nll = measured_with(game, model.mask, model.patches, model.maps)[2]
            right = item_values(_UTILITY, nll[None], game.fingerprints["calibration"])
            assert right is not None  # the game is one of items
            found.append(right[0])
        return np.concatenate(found)

    def fingerprint(self) -> Any:
        """Those of the items."""
        return [game.fingerprints["calibration"] for game in self._games]


class ContinuationJudge:
    """The share of a greedy continuation before the first token that differs from the full model's.

    Greedy decoding says the full model's k first tokens if, and only if, each of them is the likeliest behind those
    before it. So one pass over the full model's continuation shows how many they are, without decoding.

    Args:
        game: model and players.
        texts: whose first windows begin with the prompts.
        count: number of prompts of each text.
    """

    name = "continuations"

    def __init__(self, game: ModelGame, texts: Sequence[ModelGame], count: int) -> None:
        length = int(game.calibration.ids.shape[1])
        new = min(_NEW_TOKENS, length // 2)
        prompts = torch.cat([text.calibration.ids[:count, : length - new] for text in texts])
        ids = greedy_continuations(game.masked.skeleton, prompts, length)
        self._game, self._new = game, new
        self._text = HeldOut(game, Windows(game.masked.skeleton, ids))
        self._expected = self._said(Changed(np.ones(game.n_players, dtype=np.bool_)))

    @property
    def tokens(self) -> int:
        """Those of all prompts and continuations."""
        return self._text.windows.ids.numel()

    def of(self, model: Changed) -> Floats:
        """The share of each continuation, float64 [prompts of all texts]."""
        same = (self._said(model) == self._expected).cpu().numpy()
        return np.asarray(np.cumprod(same, axis=1).mean(axis=1), dtype=np.float64)

    def fingerprint(self) -> Any:
        """Of the prompts and the continuations."""
        return [self._new, digest_of(self._text.windows.ids.cpu().numpy())]

    def _said(self, model: Changed) -> Tensor:
        """The likeliest token behind each prompt and each but the last new token, int64 [prompts, new tokens]."""
        windows = self._text.windows
        units = self._game.masked.players.unit_masks(model.mask[None])[0]
        with applied(model.patches), torch.inference_mode():
            state = self._text.last(kept_units(units), model.maps)
            found = []
            for first, last, context in windows.slices(HEAD_BYTES // (4 * windows.skeleton.vocab_size)):
                said = logits_of(context, state[first:last]).argmax(-1)
                found.append(said[:, -self._new - 1 : -1])
        return torch.cat(found)

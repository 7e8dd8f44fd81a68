"""The texts of healing: windows of several kinds, some of them held out, and the order in which the rest is read.

The order is a function of the seed and the step alone, so that a resumed run reads what the first would have read. The
kinds take turns. Each kind's windows are shuffled once and read round and round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.calibration import begin_tokens, read_text, require_tokenizer
from layercoop_fast.texts.own_text import SELF, is_own, sample_from_model
from layercoop_fast.texts.protocols import check_chosen_on, is_protocol
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.engine.skeleton import Skeleton

# Held-out windows of each kind: as many to choose the best state by as to check it.
HELDOUT_WINDOWS = 8
_LEAST_WINDOWS = 3 * HELDOUT_WINDOWS
# Of a longer text the beginning is used: a run of days does not read more.
_MOST_CHARACTERS = 2**25
# Windows that the teacher writes.
SELF_WINDOWS = 256


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of text.

    Attributes:
        spec: of the text.
        train: windows to train on, int64 [W, T], shuffled; none equals a held-out one of any kind.
        choice: held-out windows, by which a state may be refused and the best one is chosen, int64 [w, T].
        check: held-out windows, by which a state may be refused, and on which its quality is reported, int64 [w, T].
    """

    spec: str
    train: Tensor
    choice: Tensor
    check: Tensor


@dataclass(frozen=True)
class Place:
    """A window to train on: the number of its kind, and its own among that kind's."""

    kind: int
    window: int


@dataclass(frozen=True, eq=False)
class HealingTexts:
    """The texts of a run.

    Attributes:
        kinds: that are trained on.
        left_out: by SPEC, why others are not.
        watched: windows of texts that are only looked at, int64 [w, T], by SPEC.
    """

    kinds: tuple[Kind, ...]
    left_out: dict[str, str]
    watched: dict[str, Tensor] = field(default_factory=dict)

    def places(self, step: int, batch: int) -> list[Place]:
        """The windows of a step, from 0."""
        found = []
        for position in range(step * batch, (step + 1) * batch):
            turn, kind = divmod(position, len(self.kinds))
            found.append(Place(kind, turn % len(self.kinds[kind].train)))
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the windows of all kinds, held-out ones included, in their order."""
        digest = hashlib.sha256()
        for kind in self.kinds:
            digest.update(kind.spec.encode())
            for windows in (kind.train, kind.choice, kind.check):
                digest.update(f" {tuple(windows.shape)} ".encode() + windows.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def windows(self, places: Sequence[Place]) -> Tensor:
        """Their tokens, int64 [W, T]."""
        return torch.stack([self.kinds[place.kind].train[place.window] for place in places])


def default_specs(record: dict[str, Any] | None) -> list[str]:
    """The calibration text that a record of `prune` names, where it is text, and three other kinds."""
    calibration = (record or {}).get("calibration") or {}
    named = [one["spec"] for one in calibration.get("domains") or ()] or [calibration.get("spec")]
    own = [spec for spec in named if isinstance(spec, str) and "items" not in calibration]
    kinds = dict.fromkeys([*own, "builtin", "builtin-docstrings", "builtin-code"])
    return [kind for kind in kinds if not is_own(kind)]


def check_specs(specs: Sequence[str], watch: Sequence[str]) -> None:
    """Raise `RequestError` for texts that cannot be trained on, or be looked at besides those."""
    check_chosen_on(specs, "train on another text=")
    for spec in specs:
        if is_own(spec) and spec != SELF:
            raise RequestError(
                f"{spec}: of the model's answers to prompts the answers alone count, and healing reads whole windows: "
                "give a text, or self"
            )
    for spec in watch:
        if spec in specs:
            raise RequestError(f"{spec} is trained on, and looked at in any case: leave it out of watch=")
        if is_protocol(spec) or (is_own(spec) and spec != SELF):
            raise RequestError(f"{spec} has windows of its own, and watch= cuts others: measure on it afterwards")


def load_texts(
    specs: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    *,
    window: int,
    required: bool,
    watch: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> HealingTexts:
    """Cut the texts of the SPECs into windows.

    Args:
        specs: of the texts; "self" is written by the model of the skeleton.
        tokenizer: of the model.
        skeleton: of the teacher.
        window: tokens of a window.
        watch: SPECs of texts that are only looked at.
        required: whether a text that cannot be used is an error; it is left out otherwise.
        seed: of the order of windows, and of "self".
        progress: told of "self", in tokens a window.

    Raises `RequestError` for a text that cannot be read, is too short or does not fit the model, and where no text is
    left.
    """
    if skeleton.max_tokens is not None and window > skeleton.max_tokens:
        raise RequestError(f"window={window} is too long: the model has {skeleton.max_tokens} positions")
    kinds, left_out = [], {}
    for number, spec in enumerate(specs):
        try:
            windows = _windows(spec, tokenizer, skeleton, window, seed, progress)
        except RequestError as refused:
            if required:
                raise
            left_out[spec] = str(refused)
            continue
        if len(windows) < _LEAST_WINDOWS:
            why = f"{spec} has {len(windows)} windows of {window} tokens, and {_LEAST_WINDOWS} are needed"
            if required:
                raise RequestError(f"{why}: give a longer text, or shorter windows (window=)")
            left_out[spec] = why
            continue
        kinds.append(_split(spec, windows, np.random.default_rng([seed, number])))
    kinds, repeating = _without_heldout(kinds)
    if repeating and required:
        raise RequestError(f"{next(iter(repeating.values()))}: give a text that repeats itself less")
    left_out |= repeating
    if not kinds:
        raise RequestError(f"there is no text to train on ({'; '.join(left_out.values())}): give text=")
    watched = {}
    for spec in watch:
        windows = _windows(spec, tokenizer, skeleton, window, seed, progress)
        if not len(windows):
            raise RequestError(f"{spec} is shorter than a window of {window} tokens: give a longer text")
        watched[spec] = windows[np.linspace(0, len(windows) - 1, 2 * HELDOUT_WINDOWS).round().astype(np.int64)]
    return HealingTexts(tuple(kinds), left_out, watched)


def _windows(
    spec: str,
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    window: int,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Adjacent windows of a text: int64 [W, T]."""
    if spec == SELF:
        return sample_from_model(skeleton, tokenizer, SELF_WINDOWS, window, seed + 1, progress).cpu()
    tokenizer = require_tokenizer(tokenizer)
    text = read_text(spec)[:_MOST_CHARACTERS]
    stream = np.asarray(tokens_of(text, tokenizer), np.int64)
    begin = np.asarray(begin_tokens(tokenizer), dtype=np.int64)
    body = window - len(begin)
    count = len(stream) // body if body > 0 else 0
    bodies = stream[: count * body].reshape(count, max(body, 0))
    windows = np.hstack([np.tile(begin, (count, 1)), bodies])
    if count and int(windows.max()) >= skeleton.vocab_size:
        raise RequestError(
            f"the tokenizer gives token {int(windows.max())}, the model's vocabulary has {skeleton.vocab_size}: "
            "they do not belong together"
        )
    return torch.from_numpy(windows)


def _split(spec: str, windows: Tensor, random: np.random.Generator) -> Kind:
    """Hold windows out that are spread over the text, and shuffle the others."""
    held = np.linspace(0, len(windows) - 1, 2 * HELDOUT_WINDOWS).round().astype(np.int64)
    rest = random.permutation(np.setdiff1d(np.arange(len(windows)), held))
    return Kind(spec, windows[rest], windows[held[::2]], windows[held[1::2]])


def _without_heldout(kinds: Sequence[Kind]) -> tuple[list[Kind], dict[str, str]]:
    """The kinds without windows to train on that equal a held-out one of any kind; by SPEC, why others cannot be used.

    Texts repeat themselves, and may be given under two names.
    """
    held = {row.tobytes() for kind in kinds for part in (kind.choice, kind.check) for row in part.numpy()}
    found, repeating = [], {}
    for kind in kinds:
        fresh = np.array([row.tobytes() not in held for row in kind.train.numpy()], dtype=bool)
        if (count := int(fresh.sum())) < HELDOUT_WINDOWS:
            repeating[kind.spec] = (
                f"{kind.spec} has {count} windows to train on that equal no held-out one, and {HELDOUT_WINDOWS} are "
                "needed"
            )
        else:
            found.append(replace(kind, train=kind.train[torch.from_numpy(fresh)]))
    return found, repeating

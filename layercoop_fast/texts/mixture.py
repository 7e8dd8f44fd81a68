"""Calibration on several texts: SPECs with weights to windows that take turns.

    a SPEC (`texts/calibration.py`), or SPEC:WEIGHT       novels.txt    code.txt:2    hf:wikitext/wikitext-2-v1:0.5
    several of them, in Python also (SPEC, WEIGHT)        ["novels.txt", ("code.txt", 2.0)]

A weight is a number after the last colon, 1 where there is none; any other colon belongs to the SPEC. Of every text the
same number of windows is cut, so that no text is known worse than another; weights decide what each counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.calibration import Calibration, load_calibration
from layercoop_fast.texts.domains import Domains
from layercoop_fast.texts.protocols import is_protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.engine.skeleton import Skeleton

Texts: TypeAlias = str | Sequence[str | tuple[str, float]]

_WEIGHTED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)


def texts_of(calibration: Texts) -> list[tuple[str, float]]:
    """SPECs and weights, one or more.

    Raises `RequestError` for no text, a weight that is not above 0 and finite, and a text that is given twice.
    """
    given = [calibration] if isinstance(calibration, str) else list(calibration)
    if not given:
        raise RequestError("no calibration text was given: name one at least")
    texts = [_weighted(one) if isinstance(one, str) else (str(one[0]), float(one[1])) for one in given]
    for spec, weight in texts:
        if not 0 < weight < math.inf:
            raise RequestError(f"the weight of {spec} is {weight:g}: weights are numbers above 0")
    specs = [spec for spec, _ in texts]
    if twice := [spec for spec in specs if specs.count(spec) > 1]:
        raise RequestError(f"{twice[0]} is given twice: give it once, with a weight ({twice[0]}:2)")
    return texts


def _weighted(text: str) -> tuple[str, float]:
    found = _WEIGHTED.fullmatch(text)
    # "hf:2024" names a data set.
    if found is None or found[1] == "hf":
        return text, 1.0
    return found[1], float(found[2])


def load_texts(
    calibration: Texts,
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    *,
    windows: int,
    tokens: int,
    seed: int = 0,
    chat: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """`windows` windows of every text, in turns; of one text what `load_calibration` makes of it."""
    texts = texts_of(calibration)
    for spec, _ in texts:
        if is_protocol(spec) and len(texts) > 1:
            raise RequestError(f"{spec} has windows of its own length: measure on it alone, not with other texts")
    loaded = [
        load_calibration(
            spec, tokenizer, skeleton, windows=windows, tokens=tokens, seed=seed, chat=chat, progress=progress
        )
        for spec, _ in texts
    ]
    if len(loaded) == 1:
        return loaded[0]
    names = tuple(spec for spec, _ in texts)
    ids = torch.stack([one.ids for one in loaded], dim=1).flatten(0, 1)
    domains = Domains(
        np.tile(np.arange(len(texts)), windows), np.array([weight for _, weight in texts], np.float64), names
    )
    return Calibration(ids, " + ".join(names), domains, chat, spans=_in_turns(loaded))


def _in_turns(loaded: Sequence[Calibration]) -> Tensor | None:
    """What is scored in windows that take turns, int64 [W, 2]; None where that is all of every window."""
    if all(one.spans is None for one in loaded):
        return None
    return torch.stack([_spans(one) for one in loaded], dim=1).flatten(0, 1)


def _spans(text: Calibration) -> Tensor:
    """What is scored in windows, int64 [W, 2]: their answers, or all tokens but the first."""
    if text.spans is not None:
        return text.spans
    n_windows, tokens = text.ids.shape
    return torch.tensor([1, tokens], device=text.ids.device).expand(n_windows, 2)


def grown_from(calibration: Calibration, finer: Calibration) -> tuple[Calibration, Calibration]:
    """A calibration with more windows, and those that are new in it, both of the same texts.

    `finer` is cut from the same texts with 2W − 1 windows where `calibration` has W (2 where it has 1). Windows are
    spread evenly, so every second one of these is one of those, and the others lie half-way between them. The new
    windows go behind the old ones, so that the old ones stay the first.
    """
    turns = np.arange(len(finer.ids)) // (1 if finer.domains is None else len(finer.domains.weights))
    rows = np.flatnonzero(turns % 2 == 1)
    index = torch.from_numpy(rows).to(finer.ids.device)
    new = replace(calibration, ids=finer.ids[index], spans=None if finer.spans is None else finer.spans[index])
    spans = None if calibration.spans is None else torch.cat([calibration.spans, _spans(new)])
    both = replace(calibration, ids=torch.cat([calibration.ids, new.ids]), spans=spans)
    if calibration.domains is None or finer.domains is None:
        return both, new
    of_new = finer.domains.of_window[rows]
    of_both = np.concatenate([calibration.domains.of_window, of_new])
    return (
        replace(both, domains=replace(calibration.domains, of_window=of_both)),
        replace(new, domains=replace(calibration.domains, of_window=of_new)),
    )

"""Repairs of several gaps, end to end, against the whole method written out on transformers' own modules.

Nothing here keeps a stream from one step to the next: for each gap, domain and strength whole models are run from the
embedding on, with their blocks taken out for good and their weights overwritten.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from short_texts import short_texts
from tiny_models import FAMILIES, tiny_tokenizer
from torch import Tensor, nn

from layercoop_fast import ModelGame, fit_repair
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.repair import gap_by_gap, streams, strengths
from layercoop_fast.repair.texts import RepairTexts, load_texts
from layercoop_fast.texts.calibration import Calibration, read_text

L, T = 7, 16
GRID = (0.01, 0.3, 10.0)
# Gaps of one block and of two, and one at the end.
REMOVED = (1, 3, 4, 6)
GAPS = ((0, 2), (2, 5), (5, 7))  # the kept block that is refitted, and where the full stream is looked at
KEPT = tuple(block for block in range(L) if block not in REMOVED)


@contextmanager
def only(model: Any, blocks: Sequence[int]) -> Iterator[None]:
    """Within the block the model has some of its blocks alone."""
    every = model.model.layers
    model.model.layers = nn.ModuleList(every[block] for block in blocks)
    model.config.num_hidden_layers = len(blocks)
    try:
        yield
    finally:
        model.model.layers = every
        model.config.num_hidden_layers = len(every)


def stream(model: Any, blocks: Sequence[int], ids: Tensor) -> tuple[Tensor, Tensor]:
    """The stream behind some blocks, and what the last map of the last of them is handed; float64, a row a token."""
    seen: list[Tensor] = []
    last = model.model.layers[blocks[-1]]
    handles = [
        last.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        last.register_forward_hook(lambda _, __, returned: seen.append(returned)),
    ]
    with only(model, blocks):
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    handed, hidden = (tensor.double().flatten(0, 1) for tensor in seen)
    return hidden, handed


def nll(model: Any, ids: Tensor) -> float:
    with only(model, KEPT):
        logits = model(ids, use_cache=False).logits
    return float(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()))


def ridge(texts: Sequence[tuple[Tensor, Tensor, Tensor]], strength: float) -> Tensor:
    """B = argmin Σ w |e − B u|² + s · mean(Σ w u²) · |B|², sums over the tokens of some texts."""
    u, e, w = (torch.cat(parts) for parts in zip(*texts, strict=True))
    gram, cross = u.t() @ (w[:, None] * u), u.t() @ (w[:, None] * e)
    identity = torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + strength * gram.diagonal().mean() * identity, cross).t()


@dataclass
class Plain:
    """One gap: the strength, the NLL by domain before it, and (seen, unseen) by domain of each strength tried."""

    strength: float
    before: list[float]
    tried: dict[float, tuple[list[float], list[float]]]


@torch.no_grad()
def repaired_plainly(model: Any, texts: RepairTexts) -> tuple[Any, list[Plain]]:
    """A model whose kept blocks are refitted one gap after the other, and how each strength was chosen."""
    patched = copy.deepcopy(model)
    found = []
    for unit, behind in GAPS:
        tokens = []
        for domain in texts.texts:
            full, _ = stream(model, range(behind), domain.fit)
            left, handed = stream(patched, [block for block in KEPT if block <= unit], domain.fit)
            tokens.append((handed, full - left, 1 / full.square().mean(-1)))
        weight = patched.model.layers[unit].mlp.down_proj.weight
        old = weight.clone()
        before = [nll(patched, domain.choice) for domain in texts.texts]
        tried = {}
        for strength in GRID:
            weight.copy_(old.double() + ridge(tokens, strength))
            seen = [nll(patched, domain.choice) for domain in texts.texts]
            unseen = []
            for at, domain in enumerate(texts.texts):
                weight.copy_(old.double() + ridge(tokens[:at] + tokens[at + 1 :], strength))
                unseen.append(nll(patched, domain.choice))
            tried[strength] = (seen, unseen)
        scores = {}
        for strength, pair in tried.items():
            between = np.mean(pair, axis=0)
            if (between <= before).all() and (np.array(pair[0]) <= before).all():
                scores[strength] = between.mean()
        best = min(scores, key=lambda one: scores[one])
        found.append(Plain(best, before, tried))
        weight.copy_(old.double() + ridge(tokens, best))
    return patched, found


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three short texts of different kinds."""
    return short_texts(tmp_path_factory.mktemp("texts"), "builtin", "builtin-code", "builtin-docstrings")


@torch.no_grad()
def foretelling(specs: Sequence[str]) -> Any:
    """A model whose head is fitted to the texts, so that whatever brings the stream nearer to its own helps."""
    model = FAMILIES["llama"](n_layers=L)
    ids = torch.tensor([tiny_tokenizer()(read_text(spec)[: 128 * T])["input_ids"] for spec in specs]).reshape(-1, T)
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    wanted = nn.functional.one_hot(ids[:, 1:].flatten(), model.config.vocab_size).float()
    gram = hidden.t() @ hidden
    gram.diagonal().add_(0.1 * gram.diagonal().mean())
    model.lm_head.weight.copy_(6 * torch.linalg.solve(gram, hidden.t() @ wanted).t())
    return model


def close(found: dict[str, dict[str, float]], specs: Sequence[str], before: list[float], after: list[float]) -> None:
    assert list(found) == list(specs)
    assert [pair["before"] for pair in found.values()] == pytest.approx(before, abs=1e-4)
    assert [pair["after"] for pair in found.values()] == pytest.approx(after, abs=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_three_gaps_are_those_of_the_method_written_out(
    specs: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strengths, "STRENGTHS", GRID)
    monkeypatch.setattr(streams, "_CHUNK_TOKENS", 3 * T)  # of 8 windows: 3, 3 and 2
    if not kept:
        monkeypatch.setattr(gap_by_gap, "_STREAM_SHARE", 0.0)
    model = foretelling(specs)
    game = ModelGame(
        Checkpoint(copy.deepcopy(model), tiny_tokenizer(), "tiny"),
        Calibration(torch.arange(3, 3 + 2 * T).reshape(2, T), "elsewhere"),
    )
    assert game.masked.units.path == "fast"
    texts = load_texts(game, specs, len(specs) * 8 * T)
    assert [len(domain.fit) for domain in texts.texts] == [8, 8, 8]
    patched, expected = repaired_plainly(model, texts)
    # What the comparison below can tell apart: whether kinds of text that the fit has not seen have a say.
    assert any(plain.strength != min(plain.tried, key=lambda one: np.mean(plain.tried[one][0])) for plain in expected)

    mask = np.array([block in KEPT for block in range(L)])
    repaired = fit_repair(game, mask, texts, compute="small")
    assert repaired.kept, repaired.record
    for (unit, _), gap, plain in zip(GAPS, repaired.record["gaps"], expected, strict=True):
        seen, unseen = plain.tried[plain.strength]
        assert gap["strength"] == plain.strength
        close(gap["nll"], specs, plain.before, seen)
        close(gap["nll_unseen_domain"], specs, plain.before, unseen)
        name = f"model.layers.{unit}.mlp.down_proj.weight"
        torch.testing.assert_close(repaired.tensors()[name], patched.get_parameter(name), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        before, after = ([nll(one, domain.check) for domain in texts.texts] for one in (model, patched))
    close(repaired.record["nll"], specs, before, after)

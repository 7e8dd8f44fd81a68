"""Linear neurons: the regression on plain data, the MLP that has them, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adds_linearly import AddsLinearly
from numpy.typing import NDArray
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn

from layercoop_fast import ModelGame, fit_repair
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.players import make_players
from layercoop_fast.repair import gap_by_gap
from layercoop_fast.repair.neurons import GATE, NeuronEquations, Neurons, NeuronSite, find_gated, with_direction
from layercoop_fast.repair.patches import applied, patch
from layercoop_fast.repair.ridge import NormalEquations
from layercoop_fast.repair.sites import find_site
from layercoop_fast.repair.texts import load_texts
from layercoop_fast.texts.calibration import Calibration, read_text

Array = NDArray[np.float64]


def data(n_tokens: int, width: int, hidden: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (u, φ) [N, n + H], missing parts [N, H], weights [N], and what the neurons add [n, H]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_tokens, width + hidden, generator=generator).double()
    inputs[:, width:] += 0.5 * inputs[:, :hidden]  # so that the two kinds of inputs share something
    missing = inputs[:, width:] @ torch.randn(hidden, hidden, generator=generator).double()
    missing += 0.3 * torch.randn(n_tokens, hidden, generator=generator).double()
    base = torch.randn(width, hidden, generator=generator).double()
    return inputs, missing, torch.rand(n_tokens, generator=generator).double() + 0.1, base


def least(rows: Array, aim: Array, base: Array, penalty: Array) -> tuple[Array, float]:
    """argmin |aim − rows X|² + Σ penalty |X − base|², and the minimum."""
    root = np.sqrt(penalty)[:, None]
    found = np.linalg.lstsq(np.vstack([rows, np.diag(root[:, 0])]), np.vstack([aim, root * base]), rcond=None)[0]
    return found, float(((aim - rows @ found) ** 2).sum() + (root**2 * (found - base) ** 2).sum())


def chosen_plainly(inputs: Tensor, missing: Tensor, weights: Tensor, base: Tensor, strength: float) -> tuple[Any, Any]:
    """Which inputs stay, and what all of them together add to every token, the method written out on the data."""
    width, hidden = base.shape
    root = np.sqrt(weights.numpy())[:, None]
    rows = root * inputs.numpy()
    towards = np.vstack([base.numpy(), np.zeros((hidden, hidden))])
    aim = root * missing.numpy() + rows @ towards
    scale = (rows[:, :width] ** 2).sum() / width
    penalty = np.full(width + hidden, strength * scale)
    penalty[width:] = strength / 3 * scale
    rows[:, width:] = np.linalg.svd(rows[:, width:], full_matrices=False)[0] * np.sqrt(scale)
    found, _ = least(rows, aim, towards, penalty)
    directions = np.linalg.svd(rows[:, width:] @ found[width:], full_matrices=False)[0] * np.sqrt(scale)
    rows = np.hstack([rows[:, :width], directions])
    whole = least(rows, aim, towards, penalty)[1]
    rise = []
    for out in range(width + hidden):
        rest = np.delete(np.arange(width + hidden), out)
        rise.append(least(rows[:, rest], aim, towards[rest], penalty[rest])[1] - whole)
        if out < width:  # the minimum without a neuron of the model also pays no penalty for what it added
            rise[-1] += penalty[out] * (towards[out] ** 2).sum()
    return np.array(rise), (rows, aim, towards, penalty, root)


@pytest.mark.parametrize("shape", [(200, 5, 3), (60, 9, 4), (90, 3, 3)])
@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_the_neurons_are_those_of_the_method_written_out(shape: tuple[int, int, int], strength: float) -> None:
    inputs, missing, weights, base = data(*shape)
    width = shape[1]
    sums = NeuronEquations(base, NormalEquations.empty(width + shape[2], shape[2]))
    for first in range(0, shape[0], 17):
        part = slice(first, first + 17)
        sums.add(inputs[part], missing[part], weights[part])
    found = sums.change(strength)
    rise, (rows, aim, towards, penalty, root) = chosen_plainly(inputs, missing, weights, base, strength)
    kept = np.sort(np.argsort(-rise)[:width])
    assert found.own.tolist() == kept[kept < width].tolist()
    down, _ = least(rows[:, kept], aim, towards[kept], penalty[kept])
    linear = inputs[:, width:] @ found.up.t()
    added = torch.cat([inputs[:, found.own], linear], dim=1) @ found.down
    np.testing.assert_allclose(root * added.numpy(), rows[:, kept] @ down, rtol=1e-6, atol=1e-6 * np.abs(aim).max())
    assert found.down.shape == (width, shape[2])
    assert len(found.up) == int((kept >= width).sum())


def test_a_share_can_be_taken_out_and_nonsense_is_refused() -> None:
    inputs, missing, weights, base = data(120, 6, 4)
    whole, own, rest = (NeuronEquations(base, NormalEquations.empty(10, 4)) for _ in range(3))
    whole.add(inputs, missing, weights)
    own.add(inputs[80:], missing[80:], weights[80:])
    rest.add(inputs[:80], missing[:80], weights[:80])
    for one, other in (((whole - own), rest), ((rest + own), whole)):
        a, b = one.change(0.1), other.change(0.1)
        assert torch.equal(a.own, b.own)
        torch.testing.assert_close(a.down[: len(a.own)], b.down[: len(b.own)], rtol=1e-6, atol=1e-8)
    # What other sums have chosen, fitted to these.
    a, b = whole.change(0.1), own.change(0.1)
    same = own.again(b, 0.1)
    torch.testing.assert_close(same.down, b.down, rtol=1e-9, atol=1e-12)
    other = own.again(a, 0.1)
    assert torch.equal(other.own, a.own)
    assert torch.equal(other.up, a.up)
    read = torch.cat([inputs[80:, :6][:, a.own], inputs[80:, 6:] @ a.up.t()], dim=1).numpy()
    root = weights[80:, None].sqrt().numpy()
    aim = root * (missing[80:] + inputs[80:, :6] @ base).numpy()
    scale = 0.1 * float((weights[80:, None] * inputs[80:, :6] ** 2).sum()) / 6
    penalty = np.array([scale] * len(a.own) + [scale / 3] * len(a.up))
    towards = np.vstack([base[a.own].numpy(), np.zeros((len(a.up), 4))])
    np.testing.assert_allclose(other.down.numpy(), least(root * read, aim, towards, penalty)[0], rtol=1e-6, atol=1e-8)
    with pytest.raises(RequestError, match="must be above 0, not 0"):
        whole.change(0.0)
    with pytest.raises(RequestError, match="not all zero"):
        NeuronEquations(base, NormalEquations.empty(10, 4)).change(0.1)


def gated_of(family: str, unit: int = 1, players: str = "layers") -> tuple[Any, NeuronSite | None]:
    model = tiny_model(family, 3)
    found = make_players(players, Skeleton(model))
    site = find_site(found, unit)
    return model, find_gated(found, site)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_an_mlp_with_linear_neurons_adds_what_the_regression_says(family: str) -> None:
    model, gated = gated_of(family)
    assert gated is not None
    hidden, width = gated.parts.hidden, gated.parts.inner
    generator = torch.Generator().manual_seed(0)
    level = torch.zeros(hidden)
    level[2] = 1.0
    z = torch.randn(40, hidden, generator=generator)
    z[:, 2] = 1 + 0.05 * z[:, 2]
    site = with_direction(gated, [z[:15], z[15:]])
    assert site is not None
    assert float((1 - z @ site.direction).square().mean().sqrt()) < 0.1
    inputs = site.reads(z, torch.empty(40, hidden))
    with torch.no_grad():
        torch.testing.assert_close(
            inputs[:, :width] @ gated.parts.down.weight.t(), gated.module(z), rtol=1e-4, atol=1e-5
        )
        own = torch.arange(0, width, 3)
        up = torch.randn(width - len(own), hidden, generator=generator).double()
        change = Neurons(own, up, torch.randn(width, hidden, generator=generator).double())
        level_of = GATE * z @ site.direction
        activation = (
            nn.functional.silu
            if gated.parts.activation == "silu"
            else (lambda x: nn.functional.gelu(x, approximate="tanh"))
        )
        linear = activation(level_of)[:, None] * (z @ up.float().t())
        expected = torch.cat([inputs[:, own], linear], dim=1) @ change.down.float()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        made = patch(site, change)
        with applied([made]):
            torch.testing.assert_close(gated.module(z), expected, rtol=1e-4, atol=1e-4)
            changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == set(made.values)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_has_no_gated_mlp_or_no_constant_direction_keeps_its_neurons() -> None:
    assert gated_of("gpt2")[1] is None
    assert gated_of("llama", 0, "sublayers")[1] is None  # an attention half
    assert gated_of("llama", 1, "sublayers")[1] is not None
    assert gated_of("gemma2")[1] is None  # its repair is of gains
    _, gated = gated_of("llama")
    assert gated is not None
    noise = torch.randn(500, gated.parts.hidden, generator=torch.Generator().manual_seed(0))
    assert with_direction(gated, [noise]) is None
    assert with_direction(gated, [torch.zeros(5, gated.parts.hidden)]) is None
    assert with_direction(gated, [torch.full((5, gated.parts.hidden), torch.nan)]) is None


@pytest.mark.parametrize("own", [0.02, 3.0])
def test_neurons_are_given_up_for_a_block_that_is_linear_in_the_stream_where_that_helps(
    own: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gap_by_gap, "_no_worse", lambda after, before: True)
    model = FAMILIES["llama"](n_layers=4)
    with torch.no_grad():  # trained models have channels that are nearly constant
        model.model.embed_tokens.weight[:, 0] = 3 * model.model.embed_tokens.weight.abs().max()
        model.model.layers[1].mlp.down_proj.weight.mul_(own)
    model.model.layers[2] = AddsLinearly(
        model.model.layers[1].mlp, (model.config.hidden_size, model.config.hidden_size)
    )
    text = tmp_path / "text.txt"
    text.write_text(read_text("builtin")[:4000], encoding="ascii", errors="ignore")
    checkpoint = Checkpoint(model, tiny_tokenizer(), "tiny")
    game = ModelGame(checkpoint, Calibration(torch.arange(3, 35).reshape(2, 16), "elsewhere"), block_path="hf")
    mask = np.array([True, True, False, True])
    texts = load_texts(game, [str(text)], 2048)
    heldout = texts.texts[0].choice
    with torch.no_grad():
        full = model(heldout, use_cache=False).logits
    away, linear, nll = {}, {}, {}
    for compute in ("small", "full"):
        repaired = fit_repair(game, mask, texts, compute=compute)
        (gap,) = repaired.record["gaps"]
        linear[compute], nll[compute] = gap.get("linear_neurons", 0), gap["nll"][str(text)]["after"]
        every = model.model.layers
        with repaired.applied(), torch.no_grad():
            model.model.layers = nn.ModuleList([every[0], every[1], every[3]])
            away[compute] = float((model(heldout, use_cache=False).logits - full).square().mean())
            model.model.layers = every
    assert linear["small"] == 0
    assert nll["full"] <= nll["small"] + 0.01  # nothing is won where the block's own neurons do much
    if own < 1:
        gate = repaired.tensors()["model.layers.1.mlp.gate_proj.weight"]
        assert int((gate == gate[-1]).all(dim=1).sum()) == linear["full"] > 0
        assert away["full"] < 0.5 * away["small"]

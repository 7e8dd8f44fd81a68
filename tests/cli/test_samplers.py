"""`--sampler` on the command line: what a mask costs without a model, values from masks that share, wrong names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny
from toy_games import Additive

from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.samplers import SAMPLERS, two_stage_masks
from layercoop_fast.search.valuation import value_players
from layercoop_fast.surrogate.surrogate import Surrogate

SMALL = ("--windows", "2", "--tokens", "24")


def test_plan_tells_what_a_mask_costs_with_each_sampler(run: Any) -> None:
    costs = {}
    for name in SAMPLERS:
        status, printed, error = run("plan", "--layers", 32, "--masks", 1000, "--sampler", name, "--json")
        assert (status, error) == (0, "")
        found = json.loads(printed)
        assert found["sampler"] == name
        costs[name] = found["evaluations_a_mask"]
        assert costs[name] == pytest.approx(found["evaluations"]["plan"] / found["unique"], abs=1e-3)
    assert costs["two-stage"] < 0.95 * costs["strata"]
    printed = run("plan", "--layers", 32, "--masks", 1000, "--sampler", "two-stage")[1]
    assert f"{costs['two-stage']:.2f} layer evaluations a distinct mask" in printed


def test_shapley_measures_the_masks_of_the_sampler(run: Any, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", n_layers=6)
    out = tmp_path / "worths.npz"
    command = ("shapley", model, "--budget", 40, "--sampler", "two-stage", "--out", out, "--seed", 3, *SMALL, "--json")
    status, printed, error = run(*command)
    assert (status, error) == (0, "")
    np.testing.assert_array_equal(Worths.load(out).masks, two_stage_masks(6, 40, seed=3).masks)
    assert len(json.loads(printed)["values"]) == 6


def test_a_wrong_name_is_one_line_before_anything_is_opened(run: Any, tmp_path: Path) -> None:
    for command in (("plan", "--layers", 8), ("shapley", tmp_path / "no model")):
        status, printed, error = run(*command, "--sampler", "chain")
        assert (status, printed) == (2, "")
        assert error.count("\n") == 1
        assert "unknown sampler 'chain': did you mean 'chains'?" in error
    status, _, error = run("plan", "--layers", 4, "--masks", 17, "--sampler", "subsets")
    assert (status, "hold 16 masks, not 17" in error) == (2, True)


def test_masks_drawn_together_are_in_a_bootstrap_sample_together() -> None:
    """So the spread over the networks grows: each sample leaves out whole clusters."""
    masks, clusters = two_stage_masks(8, 240, seed=1, strata=[6, 4], suffixes=6)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=clusters.max() + 1)[clusters]  # what the completions of a prefix have in common
    worths = Additive(np.ones(8))(masks) + noise
    together = Surrogate.fit(masks, worths, clusters=clusters)
    counts = together.counts.astype(int)
    first = np.unique(clusters, return_index=True)[1]
    np.testing.assert_array_equal(counts, counts[first][clusters])
    assert (counts[first] != counts[first[0]]).any()

    measured = Worths(masks, worths, -worths, -worths[:, None], np.array([9]), {"utility": "user"})
    spread, alone = (value_players(measured, clusters=given).intervals.ensemble.mean() for given in (clusters, None))
    assert spread > 1.3 * alone

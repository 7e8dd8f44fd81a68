"""Healing from end to end, on tiny models and on text that the teacher writes: its NLL is least for the teacher."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from healing_runs import OPTIONS, divergence, weights
from tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast import export_checkpoint, heal
from layercoop_fast.healing import loop as loop_module
from layercoop_fast.healing.state import state_file


@pytest.mark.parametrize(("train", "rate"), [("all", 3e-3), ("head+last:2", 3e-3), ("lora:8", 1e-2), ("norms", 2e-2)])
def test_the_student_comes_nearer_to_the_teacher(
    full: Path, cut: Path, tmp_path: Path, train: str, rate: float
) -> None:
    seen: list[dict[str, Any]] = []
    before = {name: tensor.clone() for name, tensor in weights(cut).items()}
    done = heal(str(cut), str(full), tmp_path / "out", train=train, learning_rate=rate, on_look=seen.append, **OPTIONS)
    record = done.record
    assert record["kept"], record
    assert (record["tokens"], record["stopped"], record["texts"]) == (4096, None, ["self"])
    assert record["curve"] == seen
    assert [point["tokens"] for point in seen] == [0, 2048, 4096]
    best = seen[record["best"]]
    for half in ("choice", "check"):
        assert best[half]["self"] < seen[0][half]["self"]
    nll = record["nll"]["self"]
    assert nll["before"] == seen[0]["check"]["self"]
    assert nll["after"] == pytest.approx(best["check"]["self"], abs=1e-3)
    assert seen[-1]["loss"] < 0.95 * seen[1]["loss"]
    assert divergence(full, tmp_path / "out") < 0.95 * divergence(full, cut)
    saved = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert saved["healing"] == record
    assert saved["verified"]["largest_difference"] == 0
    after = weights(tmp_path / "out")
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(torch.equal(weights(cut)[name], before[name]) for name in before)  # DIR is as it was
    assert "model.embed_tokens.weight" not in changed
    if train == "head+last:2":
        assert not any(f"layers.{layer}." in name for name in changed for layer in (0, 1))
        assert {"model.norm.weight", "model.layers.2.mlp.up_proj.weight"} <= changed
    if train == "norms":
        assert all("norm" in name for name in changed)
        assert len(changed) == record["parameters"] / before["model.norm.weight"].numel()
    if train == "lora:8":
        assert changed == {name for name in before if "_proj" in name}
    assert not state_file(tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_ends_at_the_best_state(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = loop_module.Loop.step, 0

    def poisoned(self: Any, share: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 15:
            parameter = next(iter(self.plan.trained.values()))
            parameter.data.view(-1)[0] = math.nan
        step(self, share)

    monkeypatch.setattr(loop_module.Loop, "step", poisoned)
    with pytest.warns(UserWarning, match="not finite after 3,584 tokens: healing stopped at its best state"):
        done = heal(str(cut), str(full), tmp_path / "out", learning_rate=3e-3, **{**OPTIONS, "watch_every": 512})
    assert done.record["kept"]
    assert "not finite" in done.record["stopped"]
    assert all(bool(one.isfinite().all()) for one in weights(tmp_path / "out").values())
    assert divergence(full, tmp_path / "out") < divergence(full, cut)


def test_activations_that_are_computed_again_change_nothing(full: Path, cut: Path, tmp_path: Path) -> None:
    for again in (False, True):
        options = {**OPTIONS, "tokens": 256, "checkpointing": again, "train": "norms", "learning_rate": 1e-2}
        assert heal(str(cut), str(full), tmp_path / str(again), **options).record["checkpointing"] is again
    assert all(torch.equal(one, weights(tmp_path / "True")[name]) for name, one in weights(tmp_path / "False").items())


def test_a_removed_half_stays_removed(full: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(full)
    export_checkpoint(
        model,
        [0, 1, 3, 4],
        tmp_path / "cut",
        blocks_path="model.layers",
        zeroed={1: ["self_attn.o_proj.weight"]},
        tokenizer=tiny_tokenizer(),
    )
    for train in ("all", "lora:2"):
        heal(
            str(tmp_path / "cut"),
            str(full),
            tmp_path / train,
            train=train,
            learning_rate=1e-2,
            **{**OPTIONS, "tokens": 256},
        )
        assert not weights(tmp_path / train)["model.layers.1.self_attn.o_proj.weight"].any()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_other_families(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path / "full", family, n_layers=4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = "transformer.h" if family == "gpt2" else "model.layers"
    export_checkpoint(model, [0, 1, 3], tmp_path / "cut", blocks_path=path, tokenizer=tiny_tokenizer())
    options = {**OPTIONS, "tokens": 2048, "watch_every": 4096}
    done = heal(str(tmp_path / "cut"), str(folder), tmp_path / "out", learning_rate=2e-3, **options)
    first, last = done.record["curve"]
    assert last["choice"]["self"] < first["choice"]["self"]


def test_a_teacher_on_disk_is_computed_once(full: Path, cut: Path, tmp_path: Path) -> None:
    options = {
        **OPTIONS,
        "learning_rate": 3e-3,
        "cache_teacher": tmp_path / "words",
        "teacher_top": 100,
    }
    heal(str(cut), str(full), tmp_path / "one", **options)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "words").iterdir()}
    heal(str(cut), str(full), tmp_path / "two", **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "words").iterdir()} == files
    assert all(torch.equal(one, weights(tmp_path / "two")[name]) for name, one in weights(tmp_path / "one").items())
    assert divergence(full, tmp_path / "one") < divergence(full, cut)

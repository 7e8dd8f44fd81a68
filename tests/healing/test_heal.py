"""Healing from end to end, on tiny models and on text that the teacher writes: its NLL is least for the teacher."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast import RequestError, RunError, export_checkpoint, heal, prune
from layercoop_fast.healing import loop as loop_module
from layercoop_fast.healing import state as state_module
from layercoop_fast.healing.state import state_file
from layercoop_fast.report.html.markup import number

OPTIONS: dict[str, Any] = {"text": ["self"], "window": 32, "batch": 8, "tokens": 4096, "watch_every": 2048}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def divergence(teacher: Path, student: Path) -> float:
    """Mean KL over some windows, by transformers alone."""
    ids = torch.randint(3, 259, (16, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        p, q = (AutoModelForCausalLM.from_pretrained(one)(ids).logits.log_softmax(-1) for one in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


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


def test_a_stopped_run_goes_on_to_the_same_weights(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "tokens": 3072, "watch_every": 1024, "learning_rate": 3e-3}
    whole = heal(str(cut), str(full), tmp_path / "whole", **options)
    steps = 0
    step = loop_module.Loop.step

    def killed(self: Any, share: float) -> None:
        nonlocal steps
        if steps == 9:
            raise KeyboardInterrupt
        steps += 1
        step(self, share)
        if steps == 7:
            self.save()

    monkeypatch.setattr(loop_module.Loop, "step", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        heal(str(cut), str(full), out, **options)
    monkeypatch.setattr(loop_module.Loop, "step", step)
    assert state_file(out).exists()
    assert not out.exists()
    with pytest.raises(RequestError, match=r"go on with it \(resume=True\)"):
        heal(str(cut), str(full), out, **options)
    with pytest.raises(RequestError, match="another learning_rate"):
        heal(str(cut), str(full), out, **{**options, "learning_rate": 1e-3}, resume=True)
    done = heal(str(cut), str(full), out, **options, resume=True)
    assert all(torch.equal(one, weights(tmp_path / "whole")[name]) for name, one in weights(out).items())
    for one, other in zip(done.record["curve"], whole.record["curve"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert not state_file(out).exists()


def test_a_damaged_state_is_one_line(full: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    state_file(out).write_bytes(b"\0" * 100)
    with pytest.raises(RequestError, match="damaged"):
        heal(str(cut), str(full), out, **OPTIONS, resume=True)


def test_a_full_disk_leaves_the_latest_state(
    full: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "SECONDS_BETWEEN", 0.0)
    out, write, count = tmp_path / "out", state_module.write_tensors, 0

    def full_later(place: Path, *arguments: Any) -> None:
        nonlocal count
        count += 1
        write(place, *arguments)
        if count == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module, "write_tensors", full_later)
    options = {**OPTIONS, "tokens": 1024}
    with pytest.raises(RunError, match="No space left"):
        heal(str(cut), str(full), out, **options)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [state_file(out).name]
    monkeypatch.undo()
    torch.set_num_threads(1)
    whole = heal(str(cut), str(full), tmp_path / "whole", **options)
    done = heal(str(cut), str(full), out, **options, resume=True)
    assert done.record["tokens"] == whole.record["tokens"] == 1024
    assert all(torch.equal(one, weights(tmp_path / "whole")[name]) for name, one in weights(out).items())


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


def test_where_nothing_gets_better_the_weights_stay(full: Path, cut: Path, tmp_path: Path) -> None:
    done = heal(str(cut), str(full), tmp_path / "out", learning_rate=0.3, **{**OPTIONS, "tokens": 512})
    assert not done.record["kept"]
    assert "every kind of text" in done.record["reason"]
    assert all(torch.equal(one, weights(cut)[name]) for name, one in weights(tmp_path / "out").items())


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


def test_it_may_replace_the_pruned_checkpoint(full: Path, cut: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(cut, folder)
    heal(str(folder), str(full), folder, force=True, train="norms", learning_rate=1e-2, **{**OPTIONS, "tokens": 2048})
    assert json.loads((folder / "layercoop.json").read_text())["healing"]["kept"]
    assert divergence(full, folder) < divergence(full, cut)


def test_the_record_and_the_report_of_prune_gain_a_section(full: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "calibration": "self",
        "windows": 2,
        "tokens": 16,
        "method": "ppl",
        "measure_cost": False,
    }
    pruned = prune(str(full), tmp_path / "cut", remove=2, repair=False, samples=0, **options)
    healing = {**OPTIONS, "tokens": 2048, "learning_rate": 3e-3, "watch": ["builtin"]}
    done = heal(str(tmp_path / "cut"), str(full), tmp_path / "out", **healing)
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert record["removed"] == pruned.record["removed"]
    assert record["healing"] == done.record
    before = pruned.record["ppl"]
    assert record["ppl"] == {"full": before["full"], "pruned": None, "unhealed": before["pruned"]}
    assert record["verified"]["perplexity"] == "folder"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Healing</h2>" in page
    assert f"{number(before['full'])} → {number(before['pruned'])}" in page
    assert number(math.exp(done.record["nll"]["self"]["after"])) in page
    assert all(math.isfinite(point["watched"]["builtin"]) for point in done.record["curve"])
    assert done.record["watched"] == ["builtin"]
    heal(str(tmp_path / "out"), str(full), tmp_path / "twice", **{**healing, "tokens": 256}, report=False)
    again = json.loads((tmp_path / "twice" / "layercoop.json").read_text())
    assert again["ppl"] == record["ppl"]
    assert not (tmp_path / "twice" / "report.html").exists()


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

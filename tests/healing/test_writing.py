"""The folder that healing writes: its weights, their dtype, and what is told about them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from healing_runs import OPTIONS, divergence, weights

from layercoop_fast import RequestError, Skeleton, heal, prune
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.healing import preparing as preparing_module
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.shared import convert
from layercoop_fast.healing.texts import load_texts
from layercoop_fast.healing.watching import Look
from layercoop_fast.healing.writing import settled
from layercoop_fast.report.card import is_own_card
from layercoop_fast.report.html.markup import number


def test_what_is_written_has_the_dtype_of_the_pruned_checkpoint(full: Path, narrow: Path, tmp_path: Path) -> None:
    done = heal(str(narrow), str(full), tmp_path / "out", dtype="float32", learning_rate=3e-3, **OPTIONS)
    assert done.record["dtype"] == "float32"
    assert done.record["kept"], done.record["reason"]
    assert {one.dtype for one in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert done.record["nll"]["self"]["after"] < done.record["nll"]["self"]["before"]


def test_models_are_compared_in_one_dtype(full: Path, cut: Path, narrow: Path) -> None:
    """NLLs of the same weights by products in fp32 and in bf16 differ, and neither weights are worse than the other."""
    request = HealRequest(dtype="float32")
    teacher = open_checkpoint(str(full))
    texts = load_texts(["self"], teacher.tokenizer, Skeleton(teacher.model), window=16, required=True)
    fp32 = Look({"self": 0.0}, {"self": 0.0})
    for changed in (False, True):
        student = open_checkpoint(str(narrow))
        convert(student.model, torch.float32)
        done = settled(student, request, texts, fp32, changed=changed)
        assert done.refused == ""
        assert done.before == done.now
        assert done.checkpoint.model.dtype == torch.bfloat16
    worse = open_checkpoint(str(narrow))
    convert(worse.model, torch.float32)
    torch.nn.init.normal_(worse.model.model.norm.weight)
    done = settled(worse, request, texts, fp32, changed=True)
    assert "rounded as they are written self is worse" in done.refused
    assert torch.equal(done.checkpoint.model.model.norm.weight, open_checkpoint(str(narrow)).model.model.norm.weight)
    rounded = open_checkpoint(str(cut))
    convert(rounded.model, torch.bfloat16)
    as_it_was = settled(rounded, request, texts, fp32, changed=False).checkpoint.model.state_dict()
    assert all(torch.equal(one, as_it_was[name]) for name, one in weights(cut).items())


def test_where_nothing_gets_better_the_weights_stay(full: Path, cut: Path, tmp_path: Path) -> None:
    done = heal(str(cut), str(full), tmp_path / "out", learning_rate=0.3, **{**OPTIONS, "tokens": 512})
    assert not done.record["kept"]
    assert "every kind of text" in done.record["reason"]
    assert all(torch.equal(one, weights(cut)[name]) for name, one in weights(tmp_path / "out").items())


def test_it_may_replace_the_pruned_checkpoint(full: Path, cut: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(cut, folder)
    heal(str(folder), str(full), folder, force=True, train="norms", learning_rate=1e-2, **{**OPTIONS, "tokens": 2048})
    assert json.loads((folder / "layercoop.json").read_text())["healing"]["kept"]
    assert divergence(full, folder) < divergence(full, cut)


def test_the_record_and_the_report_of_prune_gain_a_section(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "calibration": "self",
        "windows": 2,
        "tokens": 16,
        "method": "ppl",
        "measure_cost": False,
    }
    pruned = prune(str(full), tmp_path / "cut", remove=2, repair=False, samples=0, **options)
    healing = {**OPTIONS, "train": "norms", "learning_rate": 1e-2, "watch": ["builtin"]}
    done = heal(str(tmp_path / "cut"), str(full), tmp_path / "out", **healing)
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert record["removed"] == pruned.record["removed"]
    assert record["healing"] == done.record
    before = pruned.record["ppl"]
    assert record["ppl"] == {"full": before["full"], "pruned": None, "unhealed": before["pruned"]}
    assert record["verified"]["perplexity"] == "folder"
    assert done.record["kept"], done.record["reason"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert is_own_card(card)
    assert "| healing | distillation from the base model (norms), 4,096 tokens |" in card
    after = f"{math.exp(done.record['nll']['self']['after']):.2f}"
    assert f"{math.exp(done.record['nll']['self']['before']):.2f} | {after} |" in card
    assert "compared with the healed model" in card
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
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(preparing_module, "default_specs", lambda _: ["gone.txt", "self"])  # others take long to read
    gone = r"leaves out a text: gone\.txt"
    with pytest.warns(UserWarning, match=gone), pytest.raises(RequestError, match="is a file"):
        heal(str(tmp_path / "out"), str(full), tmp_path / "x", window=16, cache_teacher=tmp_path / "file")
    del record["removed"]
    (tmp_path / "out" / "layercoop.json").write_text(json.dumps(record))
    with pytest.raises(RequestError, match="a model card cannot be made of it"):
        heal(str(tmp_path / "out"), str(full), tmp_path / "x", **healing)

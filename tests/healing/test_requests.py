"""Wrong requests to `heal`: one line each, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

L = ["--text", "self", "--window", "16", "--tokens", "256"]


def refused(run: Any, *arguments: object) -> str:
    status, out, errors = run("heal", *arguments)
    assert status == 2, errors
    assert out == ""
    assert errors.count("\n") == 1
    return str(errors)


def test_what_cannot_be_healed(run: Any, full: Path, cut: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    gpt2 = save_tiny(tmp_path / "gpt2", "gpt2", 2)
    words = save_tiny(tmp_path / "words", n_layers=6, vocab_size=320)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "same.txt").write_text("x" * 127 * 30)
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    for arguments, said in [
        ((cut, "--teacher", gpt2, *out, *L), "another family (gpt2)"),
        ((cut, "--teacher", words, *out, *L), "another vocabulary (320 tokens)"),
        ((full, "--teacher", full, *out, *L), "give the folder of a pruned checkpoint"),
        ((full, "--teacher", cut, *out, *L), "give the folder of a pruned checkpoint"),
        ((tmp_path / "empty", "--teacher", full, *out, *L), "config.json"),
        ((cut, "--teacher", tmp_path / "empty", *out, *L), "config.json"),
        ((cut, "--teacher", full, "--out", full, "--force", *L), "write to another folder"),
        ((cut, "--teacher", full, "--out", cut, *L), "exists already"),
        ((cut, "--teacher", full, *out, *L, "--resume"), "no stopped run to go on with"),
        ((cut, "--teacher", full, *out, *L, "--resume", "--force"), "no stopped run to go on with"),
        ((cut, "--teacher", full, *out, "--text", "ppl:wikitext2"), "is a test: train on another --text"),
        ((cut, "--teacher", full, *out, *L, "--watch", "ppl:c4"), "ppl:c4 has windows of its own"),
        ((cut, "--teacher", full, *out, "--text", "self:prompts.jsonl"), "the answers alone count"),
        ((cut, "--teacher", full, *out, "--watch", "builtin"), "leave it out of --watch"),
        ((cut, "--teacher", full, *out, "--text", tmp_path / "same.txt"), "0 windows to train on that equal no"),
        ((cut, "--teacher", full, *out, *L, "--minutes", "3"), "--minutes and --tokens both say"),
        ((cut, "--teacher", full, *out, "--minutes", "0"), "is no time to train"),
        ((cut, "--teacher", full, *out, "--tokens", "many"), "write 1M, 300k or 250000"),
        ((cut, "--teacher", full, *out, *L, "--learning-rate", "-1"), "not between 0 and 1"),
        ((cut, "--teacher", full, *out, "--text", tmp_path / "short.txt"), "and 24 are needed"),
        ((cut, "--teacher", full, *out, "--text", tmp_path / "rows.jsonl"), '"text" field'),
        ((cut, "--teacher", full, *out, *L, "--cache-teacher", tmp_path / "file"), "is a file: name a folder"),
        ((cut, "--teacher", full, *out, *L, "--cache-teacher", tmp_path / "c", "--teacher-top", "999"), "999 is more"),
        ((cut, "--teacher", full, *out, *L, "--train", "head+last:9"), "more than the 4 blocks"),
        ((cut, "--teacher", full, *out, *L, "--watch", tmp_path / "short.txt"), "is shorter than a window"),
        ((cut, "--teacher", full, *out, *L, "--watch", "self"), "leave it out of --watch"),
        ((cut, "--teacher", full, *out, *L, "--cache-teacher", tmp_path / "out" / "w"), "of --cache-teacher"),
        ((cut, "--teacher", full, *out, *L, "--device", "cuda:7"), "does not exist"),
    ]:
        assert said in refused(run, *arguments), arguments
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("train", ["everything", "head", "head+last", "head+last:0", "lora:x", "lora:", "norms:2", ""])
def test_unknown_training(run: Any, full: Path, cut: Path, tmp_path: Path, train: str) -> None:
    said = refused(run, cut, "--teacher", full, "--out", tmp_path / "out", "--train", train)
    assert "is none of all, head+last:N, lora:R, norms" in said


def test_a_dataset_without_a_text_column_names_its_columns(run: Any, full: Path, cut: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text(json.dumps({"title": "a", "body": "b"}) + "\n")
    status, _, said = run(
        "heal", cut, "--teacher", full, "--out", tmp_path / "out", "--text", f"hf:{tmp_path / 'data'}"
    )
    assert status == 2
    assert "its columns are title, body" in said


def test_a_command_heals_and_says_so(run: Any, full: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["heal", cut, "--teacher", full, "--out", out, *L, "--batch", "4", "--train", "norms"]
    status, printed, errors = run(*arguments, "--json")
    assert status == 0, errors
    assert json.loads(printed) == {
        "out": str(out),
        "healing": json.loads((out / "layercoop.json").read_text())["healing"],
    }
    assert "256 tokens" in errors
    assert "held-out perplexity self" in errors
    status, printed, _ = run(*arguments, "--force")
    assert status == 0
    assert "self: perplexity" in printed
    assert f"Written: {out}" in printed.replace("\n", " ")

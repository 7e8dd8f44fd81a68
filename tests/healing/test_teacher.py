"""The teacher's words on disk, the tensors that are shared, and the order in which windows are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layercoop_fast import RequestError, Skeleton
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.healing.options import Trained
from layercoop_fast.healing.reading import FastReader, Reader, teacher_reader
from layercoop_fast.healing.shared import share_tensors
from layercoop_fast.healing.teacher import CachedTeacher, LiveTeacher
from layercoop_fast.healing.texts import HealingTexts, load_texts
from layercoop_fast.healing.trained import select
from layercoop_fast.kernels.linear_divergence import Head, linear_divergence


@pytest.fixture(scope="module")
def opened(full: Path) -> Skeleton:
    return Skeleton(open_checkpoint(str(full)).model)


@pytest.fixture(scope="module")
def texts(full: Path, opened: Skeleton) -> HealingTexts:
    tokenizer = open_checkpoint(str(full)).tokenizer
    return load_texts(["builtin", "builtin-code"], tokenizer, opened, window=12, required=True)


def test_windows_are_read_once_each_and_held_out_ones_never(texts: HealingTexts) -> None:
    for kind in texts.kinds:
        rows = {tuple(row) for row in kind.train.tolist()}
        held = {tuple(row) for row in torch.cat([kind.choice, kind.check]).tolist()}
        assert len(held) == 16
        assert not rows & {tuple(row) for one in texts.kinds for row in torch.cat([one.choice, one.check]).tolist()}
    count = len(texts.kinds[0].train)
    seen = [place.window for step in range(count) for place in texts.places(step, 2) if place.kind == 0]
    assert sorted(seen) == list(range(count))
    assert texts.places(count, 2)[0] == texts.places(0, 2)[0]
    assert [place.kind for place in texts.places(3, 5)] == [1, 0, 1, 0, 1]


def test_a_text_under_two_names_is_held_out_under_both(full: Path, opened: Skeleton, tmp_path: Path) -> None:
    tokenizer = open_checkpoint(str(full)).tokenizer
    lines = [f"line {number:05d}" for number in range(64)]
    for name, own in (("one", lines), ("two", lines[1:])):
        (tmp_path / f"{name}.txt").write_text("".join(own))
    names = [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]
    one, two = load_texts(names, tokenizer, opened, window=len(lines[0]), required=True).kinds
    held = {tuple(row) for kind in (one, two) for row in torch.cat([kind.choice, kind.check]).tolist()}
    assert len(held) > 16
    for kind in (one, two):
        assert len(kind.train) >= 8
        assert not {tuple(row) for row in kind.train.tolist()} & held


def test_other_heldout_windows_are_other_texts(texts: HealingTexts) -> None:
    first, *others = texts.kinds
    for name in ("train", "choice", "check"):
        changed = replace(texts, kinds=(replace(first, **{name: getattr(first, name) + 1}), *others))
        assert changed.fingerprint != texts.fingerprint
    assert replace(texts, kinds=(replace(first), *others)).fingerprint == texts.fingerprint


def test_the_fast_reader_reads_as_the_model(opened: Skeleton) -> None:
    reader = teacher_reader(opened, 12)
    assert type(reader) is FastReader
    ids = torch.arange(24).view(2, 12)
    states = reader.states(ids)
    with torch.no_grad():
        expected = opened.model(ids).logits
    torch.testing.assert_close(reader.head.logits(states.clone()).view_as(expected), expected, rtol=1e-4, atol=1e-5)


def test_kept_words_are_read_again(opened: Skeleton, texts: HealingTexts, tmp_path: Path) -> None:
    reader = Reader(opened.model)
    places = texts.places(0, 6)
    ids = texts.windows(places)
    first = CachedTeacher(reader, texts, tmp_path / "kept", 8, "me")
    found = first.targets(places, ids)
    assert first.computed == 2 * 64 * 12  # a stretch of each kind
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 2
    second = CachedTeacher(reader, texts, tmp_path / "kept", 8, "me")
    again = second.targets(places, ids)
    assert second.computed == 0
    for name in ("tokens", "log_probs", "rest"):
        assert torch.equal(getattr(found, name), getattr(again, name))
    with torch.no_grad():
        expected = opened.model(ids).logits.view(72, -1).log_softmax(-1)
    torch.testing.assert_close(found.log_probs, expected.topk(8).values, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.log_probs.exp().sum(-1) + found.rest, torch.ones(72))
    CachedTeacher(reader, texts, tmp_path / "kept", 4, "me").targets(places, ids)
    assert len(list((tmp_path / "kept").iterdir())) == 4  # other words are other files
    files[0].write_bytes(files[0].read_bytes()[:-8])
    with pytest.raises(RequestError, match="damaged"):
        CachedTeacher(reader, texts, tmp_path / "kept", 8, "me").targets(places, ids)


def test_all_words_kept_are_the_live_teacher(opened: Skeleton, texts: HealingTexts, tmp_path: Path) -> None:
    reader, places = Reader(opened.model), texts.places(0, 4)
    ids = texts.windows(places)
    words = len(reader.projection.weight)
    student = torch.randn(48, reader.projection.in_features, generator=torch.Generator().manual_seed(1))
    head = Head(reader.projection.weight.detach())
    values = [
        float(linear_divergence(student, head, teacher.targets(places, ids)))
        for teacher in (LiveTeacher(reader), CachedTeacher(reader, texts, tmp_path, words, "me"))
    ]
    assert values[1] == pytest.approx(values[0], rel=5e-3)  # log-probabilities are kept in 16 bits


def test_equal_tensors_are_one(full: Path, cut: Path) -> None:
    teacher, student = open_checkpoint(str(full)).model, open_checkpoint(str(cut)).model
    skeleton = Skeleton(student)
    trained = select(skeleton, Trained.read("head+last:1"), 0)
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = student(ids).logits
    shared = share_tensors(student, teacher)
    theirs = {id(parameter) for parameter in teacher.parameters()}
    own = {name for name, parameter in student.named_parameters() if id(parameter) not in theirs}
    assert own == set(trained)
    everything = sum(parameter.numel() * 4 for parameter in student.parameters())
    assert shared == everything - sum(parameter.numel() * 4 for parameter in trained.values())
    with torch.no_grad():
        assert torch.equal(student(ids).logits, before)

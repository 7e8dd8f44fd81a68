"""`layercoop-fast score` as a user meets it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.tasks.masks import named_masks

Run = Callable[..., tuple[int, str, str]]


def record_of(task: str, documents: Sequence[float] = (1.0,)) -> dict[str, Any]:
    """A record of one task with the scores of its documents."""
    value = {"value": 1.0, "stderr": None, "documents": list(documents)}
    metrics = {"acc,none": {"higher_is_better": True, "masks": {"full": value}}}
    tasks = [{"task": task, "requests": "0", "metrics": metrics}]
    return {"model": "m", "reference": "full", "tasks": tasks}


def test_a_table_for_people_and_a_file_for_programs(run: Run, model: Path, task_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    asked = ["score", model, "--task-path", task_path, "--tasks", "tiny_choice,tiny_writing", "--masks", "a=1,b=1-2"]
    status, printed, said = run(*asked, "--limit", 4, "--out", out)
    assert status == 0, said
    for shown in ("tiny_choice (4)", "acc_norm", "less full", "generation (mean)", "1-2", "McNemar"):
        assert shown in printed
    record = json.loads(out.read_text())
    assert [mask["name"] for mask in record["masks"]] == ["full", "a", "b"]
    assert record["tasks"][0]["documents"] == 4
    status, printed, said = run(*asked, "--limit", 4, "--json")
    assert (status, said.count("error")) == (0, 0)
    again = json.loads(printed)
    assert {key: again[key] for key in ("tasks", "means")} == {key: record[key] for key in ("tasks", "means")}
    status, _, said = run(*asked, "--out", out)
    assert status == 2
    assert "--force" in said


def test_a_folder_is_compared_with_the_full_model_of_an_earlier_run(
    run: Run, model: Path, task_path: Path, tmp_path: Path
) -> None:
    """As the mask that has its weights is in a run of both; not where the prompts are other ones."""
    full, pruned = tmp_path / "full.json", tmp_path / "pruned"
    cut = tiny_model("llama", 4, seed=3)  # as the fixture's
    export_checkpoint(cut, [0, 2, 3], pruned, blocks_path="model.layers", tokenizer=tiny_tokenizer(), verify=False)
    asked = ["--task-path", task_path, "--tasks", "tiny_outer,tiny_choice,tiny_writing", "--bootstrap", 0]
    status, _, said = run("score", model, *asked, "--masks", "a=1", "--out", full)
    assert status == 0, said
    of_mask = json.loads(full.read_text())
    status, printed, said = run("score", pruned, *asked, "--against", full, "--json")
    assert status == 0, said
    record = json.loads(printed)
    assert (record["reference"], record["against"]["model"]) == ("full", str(model))
    assert record["against"]["means"] == of_mask["means"]["full"]
    for task, same in zip(record["tasks"], of_mask["tasks"], strict=True):
        for key, metric in task["metrics"].items():
            assert metric["masks"]["full"] == same["metrics"][key]["masks"]["a"]
    assert any("against" in metric["masks"]["full"] for task in record["tasks"] for metric in task["metrics"].values())

    asked = ["--task-path", task_path, "--tasks", "tiny_choice", "--bootstrap", 0, "--shots", 1]
    status, printed, said = run("score", pruned, *asked, "--against", full)
    assert status == 0, said
    said = " ".join(printed.split())
    assert "no difference from full of model (McNemar" in said
    assert "full of model, of which other documents or prompts were scored: tiny_choice. Score both" in said


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read"),
        ("{}", "it holds no scores: a file of scores that `layercoop-fast score` wrote is needed"),
        (json.dumps(record_of("tiny_last")), "has no scores of tiny_choice: score m on the same tasks first"),
        (json.dumps(record_of("tiny_choice", documents=[])), "it holds no scores"),
    ],
    ids=["lost", "empty", "other", "damaged"],
)
def test_a_wrong_record_to_compare_with_is_one_line(
    run: Run, model: Path, task_path: Path, tmp_path: Path, content: str | None, line: str
) -> None:
    file = tmp_path / "full.json"
    if content is not None:
        file.write_text(content)
    asked = ["--task-path", task_path, "--tasks", "tiny_choice", "--against", file]
    status, printed, said = run("score", model, *asked)
    assert (status, printed) == (2, "")
    assert line in said.splitlines()[-1]


def test_rows_of_a_mask_file_are_numbered(run: Run, model: Path, task_path: Path, tmp_path: Path) -> None:
    masks = ~np.eye(4, dtype=bool)[:2]
    np.save(tmp_path / "masks.npy", masks)
    asked = ["score", model, "--task-path", task_path, "--tasks", "tiny_choice", "--limit", 2, "--json"]
    status, printed, said = run(*asked, "--masks", tmp_path / "masks.npy")
    assert status == 0, said
    assert [(one["name"], one["removed"]) for one in json.loads(printed)["masks"]] == [
        ("full", "full"), ("0", "0"), ("1", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "line"),
    [
        # The harness's own list has to be read for it, which takes seconds.
        pytest.param(
            ["--tasks", "tiny_choise"],
            "unknown task 'tiny_choise': the nearest are tiny_choice",
            marks=pytest.mark.slow,
        ),
        (["--tasks", "tiny_choice", "--masks", "a=9"], "mask a 9: the model has blocks 0 to 3"),
        (["--tasks", "tiny_choice", "--masks", "a=1,a=2"], "has two masks a"),
        (["--tasks", "tiny_choice", "--masks", "full=1"], "full is the name of the full model"),
        (["--tasks", "tiny_choice", "--task-path", "nowhere"], "--task-path nowhere is not a folder"),
        (["--tasks", "lost"], "the tasks lost cannot be loaded"),
        (["--tasks", "tiny_code"], "the task tiny_code runs code that the model writes"),
        (["--tasks", "tiny_images"], "the task tiny_images has images or sound"),
    ],
    ids=["task", "blocks", "twice", "full", "folder", "data", "unsafe", "images"],
)
def test_what_is_wrong_is_one_line(
    run: Run, model: Path, task_path: Path, tmp_path: Path, more: list[str], line: str
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in task_path.glob("*.yaml"):
        (own / file.name).write_text(file.read_text())
    lost = (task_path / "rolling.yaml").read_text().replace("tiny_rolling", "lost").replace("rows.jsonl", "gone.jsonl")
    (own / "lost.yaml").write_text(lost)
    given = ["--task-path", own] if "--task-path" not in more else []
    status, printed, said = run("score", model, *given, *more)
    assert (status, printed) == (2, "")
    assert line in said.splitlines()[-1]


def test_a_model_without_a_chat_template_has_no_chat(run: Run, task_path: Path, tmp_path: Path) -> None:
    tiny_model("llama", 2).save_pretrained(tmp_path / "plain")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    asked = ["--task-path", task_path, "--tasks", "tiny_choice", "--limit", 1, "--chat"]
    status, printed, said = run("score", tmp_path / "plain", *asked)
    assert (status, printed) == (2, "")
    assert "no chat template: score texts as they are, without --chat" in said.splitlines()[-1]


def test_without_the_harness_the_extra_is_named(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "layercoop_fast.tasks.loading.find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    status, _, said = run("score", model, "--tasks", "tiny_choice")
    assert status == 2
    assert "pip install 'layercoop-fast[score]'" in said


def test_masks_are_read_as_written() -> None:
    assert named_masks("a=13-18,b=3,7,c=pruned@3") == {"full": "full", "a": "13-18", "b": "3,7", "c": "pruned@3"}
    assert named_masks("full") == {"full": "full"}
    assert named_masks("3,7") == {"full": "full", "3,7": "3,7"}
    with pytest.raises(RequestError, match="names no blocks"):
        named_masks("a=")

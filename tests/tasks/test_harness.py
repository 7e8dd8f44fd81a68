"""The model `layercoop` and many masks in one run, against the harness's own `hf` model on exported checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from layercoop_fast import export_checkpoint
from layercoop_fast.errors import RequestError
from layercoop_fast.masks.text import blocks_mask
from layercoop_fast.tasks.options import TaskOptions
from layercoop_fast.tasks.plugin import LayerCoopLM, register
from layercoop_fast.tasks.score import score

TASKS = ["tiny_choice", "tiny_rolling", "tiny_writing"]
MASKS = {"full": "full", "a": "1", "b": "1-2"}
L = 4


def evaluated(lm: Any, task_path: Path, tasks: list[str] = TASKS, arguments: str | None = None, **how: Any) -> Any:
    """What the harness makes of the tasks with a model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task_path), include_defaults=False)
    return simple_evaluate(lm, arguments, tasks, task_manager=manager, bootstrap_iters=100, **how)


def hf(folder: Path, **how: Any) -> Any:
    """The harness's own model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=3, **{"dtype": "float32", **how})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    found = {"full": model}
    for name, mask in MASKS.items():
        if name != "full":
            found[name] = tmp_path_factory.mktemp("exported") / name
            kept = blocks_mask(mask, L).nonzero()[0].tolist()
            full = tiny_model("llama", L, seed=3)
            export_checkpoint(
                full, kept, found[name], blocks_path="model.layers", tokenizer=tiny_tokenizer(), verify=False
            )
    return found


@pytest.fixture(scope="module")
def by_hf(exported: dict[str, Path], task_path: Path) -> dict[str, Any]:
    """The results of each exported checkpoint."""
    return {name: evaluated(hf(folder), task_path) for name, folder in exported.items()}


def same_samples(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every answer to every document: tokens alike, numbers up to rounding."""
    for task in TASKS:
        assert len(ours["samples"][task]) == len(theirs["samples"][task]) > 0
        for one, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert (one["doc_id"], one["prompt_hash"]) == (other["doc_id"], other["prompt_hash"])
            for answer, expected in zip(one["resps"], other["resps"], strict=True):
                if task == "tiny_choice":
                    assert answer[0][1] == expected[0][1]
                    assert answer[0][0] == pytest.approx(expected[0][0], abs=1e-3)
                elif task == "tiny_rolling":
                    assert answer[0] == pytest.approx(expected[0], rel=1e-5)
                else:
                    assert answer == expected


def test_the_model_answers_every_document_as_hf_does(model: Path, task_path: Path, by_hf: dict[str, Any]) -> None:
    register()
    ours, theirs = evaluated("layercoop", task_path, arguments=f"pretrained={model},mask=1-2,dtype=float32"), by_hf["b"]
    same_samples(ours, theirs)
    for task in TASKS:
        for key, value in theirs["results"][task].items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"][task][key] == expected, (task, key)
    # Answers end at the stop strings, and not all of them at their longest.
    texts = [one["resps"][0][0] for one in ours["samples"]["tiny_writing"]]
    assert not any("a" in text or "7" in text for text in texts)
    assert len({len(text) for text in texts}) > 1


def test_many_masks_in_one_run_score_as_each_exported_checkpoint(
    model: Path, task_path: Path, by_hf: dict[str, Any]
) -> None:
    record = score(str(model), MASKS, TaskOptions(tasks=TASKS, task_path=task_path, bootstrap=0))
    assert [mask["removed"] for mask in record["masks"]] == ["full", "1", "1-2"]
    for name, theirs in by_hf.items():
        for task in record["tasks"]:
            for key, metric in task["metrics"].items():
                value = metric["masks"][name]
                assert value["value"] == pytest.approx(theirs["results"][task["task"]][key], rel=1e-4)
                if "documents" in value:
                    rows = [one for one in theirs["samples"][task["task"]] if one["filter"] == key.split(",")[1]]
                    assert value["documents"] == [float(row[key.split(",")[0]]) for row in rows]
                assert ("against" in value) == (name != "full" and "documents" in value)
    choice = record["tasks"][0]["metrics"]["acc_norm,none"]["masks"]
    assert [record["means"][name]["options"] for name in MASKS] == [choice[name]["value"] for name in MASKS]


HOW = {
    # With 30 positions contexts are cut on the left, documents in windows, and prompts make room for answers.
    "too-long": ({"max_length": 30}, {}),
    "chat": ({}, {"apply_chat_template": True, "limit": 2}),
    "begin-token": ({"add_bos_token": True}, {"limit": 2}),
}


@pytest.mark.parametrize(
    ("of_model", "of_tasks"),
    [*HOW.values(), pytest.param({}, {"num_fewshot": 2, "limit": 3}, marks=pytest.mark.slow)],
    ids=[*HOW, "shots"],
)
def test_requests_become_the_tokens_that_hf_makes_of_them(
    of_model: dict[str, Any], of_tasks: dict[str, Any], model: Path, task_path: Path
) -> None:
    lms = LayerCoopLM(str(model), dtype="float32", **of_model), hf(model, **of_model)
    ours, theirs = (evaluated(lm, task_path, **of_tasks) for lm in lms)
    same_samples(ours, theirs)
    if "apply_chat_template" in of_tasks:
        assert "<user>" in ours["samples"]["tiny_choice"][0]["arguments"][0][0]


def test_an_unknown_argument_and_a_wrong_mask_are_refused(model: Path) -> None:
    with pytest.raises(RequestError, match="layercoop takes no quantize=: it takes pretrained, mask"):
        LayerCoopLM(str(model), quantize=True)
    with pytest.raises(RequestError, match=r"mask 9: the model has blocks 0 to 3"):
        LayerCoopLM(str(model), mask=9)


def test_a_context_without_tokens_is_refused(model: Path) -> None:
    """The harness moves blanks at a context's end into what is scored; here nothing is left to predict it from."""
    from lm_eval.api.instance import Instance

    lm = LayerCoopLM(str(model))
    with pytest.raises(RequestError, match="a task has a context without tokens, spaces alone for example"):
        lm.loglikelihood([Instance("loglikelihood", {}, (" ", "yes"), 0)])


@pytest.mark.slow
def test_the_harness_command_knows_the_model(model: Path, task_path: Path, tmp_path: Path) -> None:
    """A real process, as a user starts it; the package alone imports nothing of the harness."""
    command = [sys.executable, "-m", "layercoop_fast.tasks", "run", "--model", "layercoop", "--include_path"]
    command += [
        str(task_path),
        "--tasks",
        "tiny_choice",
        "--model_args",
        f"pretrained={model},mask=1-2",
        "--limit",
        "2",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "layercoop" in done.stdout
    assert "tiny_choice" in done.stdout
    wrong = subprocess.run([*command[:-3], "pretrained=nowhere"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: nowhere")


def test_nothing_of_the_harness_is_imported_before_it_is_asked_for() -> None:
    asked = (
        "import sys, layercoop_fast, layercoop_fast.tasks.score; print({'lm_eval', 'datasets'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_bf16_scores_are_those_of_hf_with_softmax_in_fp32(model: Path, task_path: Path) -> None:
    lms = LayerCoopLM(str(model), dtype="bfloat16"), hf(model, dtype="bfloat16", softmax_dtype="float32")
    ours, theirs = (evaluated(lm, task_path, ["tiny_choice"])["samples"]["tiny_choice"] for lm in lms)
    for one, other in zip(ours, theirs, strict=True):
        values = [torch.tensor([answer[0][0] for answer in sample["resps"]]) for sample in (one, other)]
        torch.testing.assert_close(*values, rtol=0.02, atol=0.2)

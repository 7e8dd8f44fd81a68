"""`generate` as a user meets it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

L = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("generate") / "model", n_layers=L)


@pytest.fixture
def answered(run: Any, model: Path) -> Any:
    """The JSON that `generate` prints."""

    def call(*arguments: object) -> dict[str, Any]:
        status, out, error = run("generate", model, "--json", *arguments)
        assert status == 0, error
        found: dict[str, Any] = json.loads(out)
        return found

    return call


def written(model: Path, prompt: str, tokens: int) -> str:
    """What transformers writes."""
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=2
    )
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def test_it_writes_what_transformers_writes(run: Any, model: Path) -> None:
    status, out, error = run("generate", model, "--prompt", "Once upon", "-n", 12, "--stats")
    assert status == 0, error
    assert out == written(model, "Once upon", 12) + "\n"
    assert error.startswith("12 tokens, ")
    assert "9 of prompt" in error


def test_json_says_all_there_is(answered: Any, model: Path) -> None:
    found = answered("-p", "Once upon", "-p", "é", "-n", 6, "--mask", "1,3")
    assert [answer["prompt"] for answer in found["answers"]] == ["Once upon", "é"]
    assert [len(answer["tokens"]) for answer in found["answers"]] == [6, 6]
    assert {answer["finish"] for answer in found["answers"]} == {"length"}
    assert [answer["prompt_tokens"] for answer in found["answers"]] == [9, 2]
    assert found["removed"] == "1,3"
    assert found["draft"] is None
    assert found["memory"]["weights"] > 0
    whole = answered("-p", "Once upon", "-n", 6)
    assert whole["answers"][0]["text"] == written(model, "Once upon", 6) != found["answers"][0]["text"]


def test_several_answers_stand_below_each_other(run: Any, model: Path) -> None:
    status, out, _ = run("generate", model, "-p", "one", "-p", "two", "-n", 3)
    assert status == 0
    assert out.startswith("[1] 'one'\n")
    assert "\n[2] 'two'\n" in out


def test_a_draft_changes_nothing_but_the_time(answered: Any) -> None:
    whole = answered("-p", "Once upon", "-n", 60, "--ignore-eos")
    found = answered("-p", "Once upon", "-n", 60, "--ignore-eos", "--draft", "2-4")
    assert found["answers"][0]["tokens"] == whole["answers"][0]["tokens"]
    assert found["draft"]["removed"] == "2-4"
    assert found["draft"]["drafted"] >= found["draft"]["accepted"] >= 0


def test_a_draft_is_searched_where_asked(run: Any, model: Path) -> None:
    status, out, error = run("generate", model, "-p", "Once upon", "-n", 20, "--draft", "search")
    assert status == 0
    assert out == written(model, "Once upon", 20) + "\n"
    assert error.startswith("draft: ")
    assert "Next time: --draft " in error


def test_seeds_and_stops(answered: Any) -> None:
    hot = ["-p", "Once upon", "-n", 16, "--temperature", 2.0, "--top-k", 50]
    drawn = [answered(*hot, "--seed", seed)["answers"][0] for seed in (1, 1, 2)]
    assert drawn[0]["tokens"] == drawn[1]["tokens"] != drawn[2]["tokens"]
    text = drawn[0]["text"]
    cut = answered(*hot, "--seed", 1, "--stop", text[3:5])["answers"][0]
    assert cut["finish"] == "stop"
    assert cut["text"] == text[: text.index(text[3:5])]


def test_prompts_from_standard_input(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("-p", "-")):
        monkeypatch.setattr("sys.stdin", io.StringIO("Once upon"))
        status, out, _ = run("generate", model, "-n", 5, *arguments)
        assert (status, out) == (0, written(model, "Once upon", 5) + "\n")


def test_a_question_goes_through_the_chat_template(answered: Any) -> None:
    found = answered("-p", "Hi", "-n", 4, "--chat")
    assert found["answers"][0]["prompt_tokens"] == len("<user>Hi\n<assistant>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", ""], "the prompt is empty"),
        (["-p", "x", "--temperature", "nan"], "temperature must be a number, 0 or more, not nan"),
        (["-p", "x", "--top-p", "0.5"], "give --temperature 1"),
        (["-p", "x", "--mask", "7"], "--mask 7: the model has blocks 0 to 4"),
        (["-p", "x", "--mask", "0-4"], "removes every block"),
        (["-p", "x", "--draft", "full"], "--draft full: a draft leaves out some of the blocks"),
        (["-p", "x", "-p", "y", "--draft", "1"], "--draft speeds up one text at a time"),
        (["-p", "x", "--dtype", "float3"], "unknown dtype 'float3'"),
        (["-p", "x", "--kv-dtype", "int3"], "unknown dtype of keys and values 'int3'"),
        (["-p", "x", "--executor", "magic"], "unknown executor 'magic'"),
        (["-p", "x", "--kv-memory", "lots"], "--kv-memory 'lots' is not a size"),
        (["-p", "x", "-n", "400"], "positions for 256"),
        (["-p", "x", "--stop", ""], "stop string"),
    ],
    ids=str,
)
def test_wrong_requests_are_one_line(run: Any, model: Path, arguments: list[str], said: str) -> None:
    status, out, error = run("generate", model, *arguments)
    assert (status, out) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1

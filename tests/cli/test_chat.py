"""`chat` as a user meets it, its lines typed by the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny, tiny_tokenizer

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.conversation import Conversation
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.options import Sampling

L = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("chat") / "model", n_layers=L)


@pytest.fixture(scope="module")
def opened(model: Path) -> LayerSkipModel:
    return LayerSkipModel.from_pretrained(model)


@pytest.fixture
def talk(opened: LayerSkipModel) -> Conversation:
    return Conversation(opened, max_new_tokens=12)


@pytest.fixture
def typed(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type these lines, or raise what is no line, and leave by the end of input; the output."""

    def call(*lines: str | type[BaseException], arguments: tuple[object, ...] = ()) -> str:
        waiting = iter(lines)

        def read(_: str = "") -> str:
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        status, out, error = run("chat", model, "-n", 8, "--temperature", 0, *arguments)
        assert status == 0, error
        return str(out)

    return call


def test_an_answer_goes_on_behind_all_that_was_said(talk: Conversation, opened: LayerSkipModel) -> None:
    first = "".join(talk.say("Hello"))
    second = "".join(talk.say("And you?"))
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    text = f"<user>Hello\n<assistant>{first.strip()}\n<user>And you?\n<assistant>"
    ids = tiny_tokenizer()(text)["input_ids"]
    assert second == opened.generate(ids, max_new_tokens=12).text
    assert talk.answer.tokens == 12
    assert talk.answer.rate is not None


def test_the_mask_changes_in_the_middle_of_a_talk(talk: Conversation, opened: LayerSkipModel) -> None:
    "".join(talk.say("Hello"))
    talk.use("fast=1,3")
    assert talk.name == "fast"
    before = list(talk.turns)
    answer = "".join(talk.say("Go on"))
    ids = talk.tokens([*before, {"role": "user", "content": "Go on"}])
    fast = [True, False, True, False, True]
    assert answer == opened.generate(ids, talk.masks["fast"], max_new_tokens=12).text
    assert (talk.masks["fast"] > 0).tolist() == fast
    assert talk.use("full") is talk.masks["full"]
    assert talk.use("2.attn").tolist() == [3, 3, 2, 3, 3]


def test_an_answer_that_is_closed_stays_as_far_as_it_came(talk: Conversation) -> None:
    parts = talk.say("Hello")
    come = next(parts) + next(parts)
    parts.close()
    assert talk.turns[-1] == {"role": "assistant", "content": come.strip()}
    assert not talk.model.batcher.running


def test_old_turns_are_forgotten_where_there_is_no_room(opened: LayerSkipModel) -> None:
    talk = Conversation(opened, max_new_tokens=40)
    for number in range(6):
        "".join(talk.say(f"{number} and some words that take room"))
    assert talk.answer.forgotten
    assert talk.turns[0]["role"] == "user"
    assert not talk.turns[0]["content"].startswith("0")
    with pytest.raises(RequestError, match="the message is too long"):
        "".join(talk.say("x" * 300))
    assert talk.turns[-1]["role"] == "assistant"


def test_a_talk_in_the_terminal(typed: Any) -> None:
    out = typed("Hello", "/mask fast", "Hello again", "/mask", "/draft 2", "And?", "/reset", "/help", "/quit", "never",
                arguments=("--mask", "1,3", "--mask", "slow=4"))  # fmt: skip
    assert out.count("mask full, 5 of 5 blocks · 8 tokens") == 1
    assert "from now on: mask fast, 3 of 5 blocks" in out
    assert out.count("mask fast, 3 of 5 blocks · 8 tokens") == 2
    assert " a second · first after " in out
    assert "weights " in out
    assert "* fast: leaves out 1,3" in out
    assert "  full: leaves out nothing" in out
    assert "  slow: leaves out 4" in out
    assert "drafts leave out 2" in out
    assert "forgotten" in out
    assert "never" not in out


def test_what_is_wrong_is_said_and_the_talk_goes_on(typed: Any) -> None:
    out = typed("/mask nimble", "/mask 9", "/mask 0-4", "/sing", "/draft x", "", "Hello")
    for said in ("no mask is called nimble: there are full", "/mask 9: the model has blocks 0 to 4",
                 "removes every block", "there is no /sing", "/draft takes blocks like"):  # fmt: skip
        assert said in out
    assert "8 tokens" in out


def test_ctrl_c_stops_an_answer_and_not_the_program(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = LayerSkipModel.stream

    def interrupted(self: LayerSkipModel, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, step in enumerate(stream(self, *arguments, **options)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(LayerSkipModel, "stream", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    out = typed("Hello", KeyboardInterrupt, "/mask")
    assert " tokens until stopped" in out
    assert "Ctrl-D or /quit leaves" in out
    assert "* full" in out
    assert signal.getsignal(signal.SIGINT) is handler


def test_drawn_answers_differ_and_a_seed_repeats_them(opened: LayerSkipModel) -> None:
    def answer(seed: int | None) -> str:
        return "".join(Conversation(opened, Sampling(temperature=1.5, seed=seed), max_new_tokens=12).say("Hello"))

    assert answer(3) == answer(3)
    assert answer(None) != answer(None)


def test_a_model_without_a_template_does_not_talk(run: Any, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", n_layers=2)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    status, _, error = run("chat", path)
    assert status == 2
    assert "has no chat template" in error

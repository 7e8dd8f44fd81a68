"""`/v1/responses`, asked by OpenAI's own client, answers what a chat answers."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from tiny_server import Server

ASKED: dict[str, Any] = {"model": "tiny:fast", "temperature": 0, "max_output_tokens": 12}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": [{"type": "input_text", "text": "Go "}, {"type": "input_text", "text": "on"}]},
]


def chat(server: Server, *messages: tuple[str, str]) -> str:
    asked = [{"role": role, "content": content} for role, content in messages]
    answer = server.openai.chat.completions.create(model="tiny:fast", messages=asked, max_tokens=12, temperature=0)
    return str(answer.choices[0].message.content)


def test_a_text_is_a_message_of_the_user(server: Server) -> None:
    answer = server.openai.responses.create(input="Hi", **ASKED)
    assert answer.output_text == chat(server, ("user", "Hi"))
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.model, answer.instructions, answer.max_output_tokens) == ("tiny:fast", None, 12)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len("<user>Hi\n<assistant>"), 12)
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12


def test_a_conversation_with_instructions(server: Server) -> None:
    answer = server.openai.responses.create(input=TALK, instructions="Be brief.", **ASKED)
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on")]
    assert answer.output_text == chat(server, *expected)
    more = [*TALK, *answer.output, {"role": "user", "content": "More"}]  # what an answer said is sent back as it came
    again = server.openai.responses.create(input=more, **ASKED)
    assert again.output_text == chat(server, *expected[1:], ("assistant", answer.output_text), ("user", "More"))


def test_a_stream_is_the_same_answer_in_typed_events(server: Server) -> None:
    whole = server.openai.responses.create(input="Hi", **ASKED)
    events = list(server.openai.responses.create(input="Hi", stream=True, **ASKED))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    kinds = [each.type for each in events]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert kinds == [f"response.{each}" for each in [*begin, *["output_text.delta"] * len(deltas), *end]]
    assert "".join(deltas) == whole.output_text == events[-4].text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 12
    assert events[0].response.id == events[-1].response.id
    assert {each.item_id for each in events if hasattr(each, "item_id")} == {events[-1].response.output[0].id}


def test_an_answer_that_ends_by_itself_is_completed(server: Server) -> None:
    text = server.openai.responses.create(input="Hi", **ASKED).output_text
    body = {**ASKED, "input": "Hi", "stop": [text[3]], "stream": True}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        lines = list(response.iter_lines())
    assert "event: response.completed" in lines
    whole = server.post("/v1/responses", {**body, "stream": False}).json()
    assert (whole["status"], whole["incomplete_details"]) == ("completed", None)
    assert whole["output"][0]["content"][0]["text"] == text[: text.index(text[3])]


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "web_search"}]},
        {"previous_response_id": "resp_1"},
        {"store": True},
        {"reasoning": {"effort": "low"}},
        {"text": {"format": {"type": "json_object"}}},
        {"background": True},
        {"truncation": "auto"},
        {"include": ["message.output_text.logprobs"]},
        {"conversation": "conv_1"},
        {"max_tool_calls": 1},
    ],
)
def test_what_is_not_there_is_named(server: Server, field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(openai.BadRequestError, match=f"{name} is not supported"):
        server.openai.responses.create(input="Hi", **ASKED, **field)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "content"),
        ({"input": []}, "at least 1"),
        ({"input": "y" * 5000}, "takes 512 tokens"),
        ({"input": "\ud800"}, "not valid Unicode"),
        ({"max_output_tokens": 0}, "greater than or equal to 1"),
        ({"n": 2}, "n is not known"),
    ],
)
def test_a_wrong_field_is_named(server: Server, field: dict[str, Any], says: str) -> None:
    response = server.post("/v1/responses", {**ASKED, "input": "Hi", **field})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == next(iter(field))


def test_harmless_fields_are_taken(server: Server) -> None:
    harmless: dict[str, Any] = {"tools": [], "store": False, "truncation": "disabled", "metadata": {"a": "b"}}
    answer = server.openai.responses.create(input="Hi", text={"format": {"type": "text"}}, **harmless, **ASKED)
    assert answer.output_text == chat(server, ("user", "Hi"))

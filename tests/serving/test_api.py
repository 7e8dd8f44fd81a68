"""OpenAI's interface, asked by its own client, answers what the model itself answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tiny_server import L, Server, serving

from layercoop_fast.masks.text import mask_of
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.serving.options import ServerOptions

PROMPT = "The tide went out and left"


def said(model: LayerSkipModel, prompt: Any, mask: str = "full", **options: Any) -> str:
    return str(model.generate(prompt, mask_of(mask, L), **options).text)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "mask"), [("tiny", "full"), ("tiny:fast", "1,3")])
def test_a_completion_is_what_the_model_says_under_that_mask(
    server: Server, direct: LayerSkipModel, name: str, mask: str
) -> None:
    answer = server.openai.completions.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == said(direct, PROMPT, mask, max_new_tokens=24)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == name
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 24)
    assert answer.usage.total_tokens == len(PROMPT) + 24


def test_a_stream_is_the_same_answer_in_pieces(server: Server, direct: LayerSkipModel) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    pieces = list(server.openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].text for each in pieces[:-1]) == said(direct, PROMPT, max_new_tokens=24)
    assert [each.choices[0].finish_reason for each in pieces[:-1]][-1] == "length"
    assert all(each.usage is None for each in pieces[:-1])
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == 24
    assert len({each.id for each in pieces}) == 1


def test_several_prompts_and_answers_are_numbered_in_order(server: Server, direct: LayerSkipModel) -> None:
    prompts = ["One", "Two and"]
    answer = server.openai.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=6, temperature=0)
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    assert [each.text for each in answer.choices] == [
        said(direct, each, max_new_tokens=6) for each in prompts for _ in "12"
    ]
    assert answer.usage.prompt_tokens == sum(map(len, prompts))  # each once
    tokens = server.openai.completions.create(model="tiny", prompt=[[70, 71], [72]], max_tokens=3, temperature=0)
    assert tokens.choices[1].text == said(direct, [72], max_new_tokens=3)


def test_a_seed_draws_the_same_again_and_several_answers_differ(server: Server) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "n": 3, "max_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    first, again = (server.openai.completions.create(**asked, seed=7) for _ in range(2))
    texts = [each.text for each in first.choices]
    assert texts == [each.text for each in again.choices]
    assert len(set(texts)) == 3
    assert texts != [each.text for each in server.openai.completions.create(**asked, seed=8).choices]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"top_k": 3},
        {"top_k": -1},
        {"min_p": 0.3},
        {"repetition_penalty": 5.0},
        {"temperature": 0.3},
        {"top_p": 0.2},
    ],
)
def test_tokens_are_drawn_as_asked(server: Server, direct: LayerSkipModel, given: dict[str, Any]) -> None:
    answer = server.post("/v1/completions", {"model": "tiny", "prompt": PROMPT, "seed": 11, "max_tokens": 24, **given})
    meant = {"temperature": 1.0, **given, "top_k": max(0, given.get("top_k", 0))}
    text = said(direct, PROMPT, max_new_tokens=24, sampling=Sampling(seed=11, **meant))
    assert answer.json()["choices"][0]["text"] == text


def test_a_stop_string_ends_an_answer_and_is_not_in_it(server: Server, direct: LayerSkipModel) -> None:
    whole = said(direct, PROMPT, max_new_tokens=24)
    stop = whole[6:8]
    answer = server.openai.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0, stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_chat_goes_through_the_template(server: Server, direct: LayerSkipModel) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = server.openai.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=10, temperature=0
    )
    text = "<system>Be brief.\n<user>Hi\n<assistant>"
    assert answer.choices[0].message.content == said(direct, text, max_new_tokens=10)
    assert answer.choices[0].message.role == "assistant"
    asked = {"model": "tiny", "messages": messages, "max_tokens": 10, "temperature": 0}
    pieces = list(server.openai.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == answer.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("mask", ["1,3", "2.attn,4", [True, False, True, False, True]])
def test_a_mask_without_a_name_comes_with_the_request(server: Server, direct: LayerSkipModel, mask: Any) -> None:
    answer = server.openai.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, extra_body={"layer_mask": mask}
    )
    text = "1,3" if isinstance(mask, list) else mask
    assert answer.choices[0].text == said(direct, PROMPT, text, max_new_tokens=8)
    assert answer.model == "tiny:unnamed"


def test_log_probabilities_are_those_of_the_logits(server: Server, direct: LayerSkipModel) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    told = server.openai.completions.create(**asked, logprobs=3).choices[0].logprobs
    tokens = list(direct.tokens(PROMPT))
    answer = direct.generate(tokens, max_new_tokens=5).tokens  # type: ignore[union-attr]
    sequence = direct.executor.sequence()
    logits = direct.executor.run([Chunk(sequence, [*tokens, *answer[:-1]], 5)])
    sequence.release()
    expected = torch.log_softmax(logits.double(), -1)
    assert told.token_logprobs == pytest.approx(
        [float(row[token]) for row, token in zip(expected, answer, strict=True)], abs=1e-4
    )
    assert [len(each) for each in told.top_logprobs] == [3] * 5
    assert all(
        max(each.values()) == pytest.approx(value, abs=1e-6)
        for each, value in zip(told.top_logprobs, told.token_logprobs, strict=True)
    )
    assert told.text_offset == [sum(map(len, told.tokens[:count])) for count in range(5)]
    drawn = {**asked, "temperature": 5, "seed": 1}
    pieces = list(server.openai.completions.create(**drawn, logprobs=1, stream=True))
    each = [one.choices[0].logprobs for one in pieces if one.choices[0].logprobs is not None]
    assert [one.text_offset[0] for one in each] == [sum(len(e.tokens[0]) for e in each[:count]) for count in range(5)]
    assert all(one.tokens[0] in one.top_logprobs[0] for one in each)  # also where another token was likelier
    assert any(len(one.top_logprobs[0]) == 2 for one in each)
    messages = [{"role": "user", "content": "Hi"}]
    chat = server.openai.chat.completions.create(
        model="tiny", messages=messages, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2, stream=True
    )
    told = [one for each in chat for one in each.choices[0].logprobs.content]
    assert len(told) == 4
    assert all(one.logprob == one.top_logprobs[0].logprob and math.exp(one.logprob) <= 1 for one in told)


def test_drawing_with_log_probabilities_draws_the_same(server: Server) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 3, "top_p": 0.95}
    plain = server.openai.completions.create(**asked)
    assert server.openai.completions.create(**asked, logprobs=0).choices[0].text == plain.choices[0].text


def test_models_are_the_base_and_each_mask(server: Server, direct: LayerSkipModel) -> None:
    base, fast = (each.model_dump() for each in server.openai.models.list().data[:2])
    assert (base["id"], base["removed"], base["layers_kept"]) == ("tiny", "full", L)
    assert (fast["id"], fast["removed"], fast["layers_kept"]) == ("tiny:fast", "1,3", L - 2)
    assert fast["parameters"] < base["parameters"]
    assert fast["bytes"] < base["bytes"] == direct.executor.weight_bytes
    assert server.openai.models.retrieve("tiny:fast").id == "tiny:fast"


def test_masks_come_and_go_while_it_runs(server: Server, direct: LayerSkipModel) -> None:
    key = {"Authorization": "Bearer admin"}
    made = server.post("/v1/masks", {"name": "new", "layer_mask": "0"}, headers=key)
    assert (made.status_code, made.json()["id"], made.json()["removed"]) == (201, "tiny:new", "0")
    answer = server.openai.completions.create(model="tiny:new", prompt=PROMPT, max_tokens=8, temperature=0)
    assert answer.choices[0].text == said(direct, PROMPT, "0", max_new_tokens=8)
    assert server.http.delete("/v1/masks/new", headers=key).json()["deleted"] is True
    with pytest.raises(openai.NotFoundError, match="no model"):
        server.openai.completions.create(model="tiny:new", prompt=PROMPT)


def test_a_text_and_a_conversation_as_tokens(server: Server, direct: LayerSkipModel) -> None:
    told = server.post("/tokenize", {"prompt": "Hé"}).json()
    assert told["tokens"] == list(direct.tokens("Hé"))
    assert (told["count"], told["max_model_len"]) == (3, 512)
    told = server.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert told["tokens"] == list(direct.tokens("<user>x\n<assistant>"))


def test_turns_of_one_conversation_compute_only_what_is_new(server: Server) -> None:
    messages = [{"role": "user", "content": "A question that is long enough for two pages of keys and values."}]
    asked = {"model": "tiny", "max_tokens": 20, "temperature": 0}
    first = server.openai.chat.completions.create(messages=messages, **asked)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "More?"},
    ]
    second = server.openai.chat.completions.create(messages=messages, **asked)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64


def test_metrics_count_tokens_by_mask(server: Server) -> None:
    def read() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in server.http.get("/metrics").text.splitlines() if line[:1] != "#"]
        return {name: float(value) for name, value in lines}

    before = read()
    server.openai.completions.create(model="tiny:fast", prompt="abc", max_tokens=5, temperature=0)
    assert server.at_rest()
    after = read()

    def grown(name: str) -> float:
        name = f"layercoop:{name}"
        return after[name] - before.get(name, 0.0)

    assert grown('prompt_tokens_total{model_name="tiny:fast"}') == 3
    assert grown('generation_tokens_total{model_name="tiny:fast"}') == 5
    assert grown('time_to_first_token_seconds_count{model_name="tiny:fast"}') == 1
    assert grown('inter_token_latency_seconds_count{model_name="tiny:fast"}') == 4
    assert grown('request_success_total{finished_reason="length",model_name="tiny:fast"}') == 1
    assert after['layercoop:num_requests{model_name="tiny:fast"}'] == 0
    assert after["layercoop:num_requests_running"] == after["layercoop:num_requests_waiting"] == 0


def test_the_context_is_what_the_server_says(folder: Path) -> None:
    with serving(folder, ServerOptions(context=32)) as server:
        assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == 32
        asked = {"model": "tiny", "prompt": "x" * 20, "temperature": 0}
        assert server.post("/v1/completions", {**asked, "max_tokens": 12}).status_code == 200
        refused = server.post("/v1/completions", {**asked, "max_tokens": 13})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_health(server: Server) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}


def test_drafts_write_the_same(folder: Path, direct: LayerSkipModel) -> None:
    with serving(folder, draft="0,2") as drafting:
        for name, mask in (("tiny", "full"), ("tiny:fast", "1,3")):
            answer = drafting.openai.completions.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0)
            assert answer.choices[0].text == said(direct, PROMPT, mask, max_new_tokens=24)
        text = drafting.http.get("/metrics").text
        assert "layercoop:spec_decode_num_accepted_tokens_total" in text

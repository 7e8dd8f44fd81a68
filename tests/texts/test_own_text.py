"""Answers of the model's own: prompts are context, and the tokens of the answers alone are scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import EOS, save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast import ModelGame, prune
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.texts.own_text import sample_answers

L, T = 3, 32
ROWS = [{"prompt": "two"}, {"messages": [{"role": "user", "content": "Why?"}]}, {"prompt": "a longer question "}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("own") / "model", n_layers=L, seed=5))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def sampled(prompts: Path, windows: int = 4, tokens: int = T, **how: object) -> tuple[torch.Tensor, torch.Tensor]:
    skeleton = Skeleton(tiny_model("llama", L, seed=5))
    return sample_answers(f"self:{prompts}", skeleton, tiny_tokenizer(), windows, tokens, 0, **how)


def test_windows_begin_with_the_prompts_in_turns_and_answers_end_at_the_end_token(prompts: Path) -> None:
    ids, spans = sampled(prompts, windows=30)
    expected = ["two", "<user>Why?\n<assistant>", "a longer question "]
    ended = 0
    for row, (first, last), prompt in zip(ids, spans.tolist(), expected * 14, strict=False):
        assert tiny_tokenizer().decode(row[:first]) == prompt
        answer = row[first:last]
        assert EOS not in answer[:-1]
        assert last == T or answer[-1] == EOS
        ended += last < T
    assert ended
    # Prompts that are answered several times get other answers.
    assert not torch.equal(ids[0], ids[3])


def test_every_token_is_drawn_from_the_model_behind_its_own_prompt(prompts: Path) -> None:
    """A greedy model: with logits that are far apart, draws are the argmax of the prompt and answer alone."""
    model = tiny_model("llama", L, seed=5)
    model.lm_head.weight.data.mul_(1000)
    ids, spans = sample_answers(f"self:{prompts}", Skeleton(model), tiny_tokenizer(), 3, T, 0)
    with torch.inference_mode():
        for row, (first, last) in zip(ids, spans.tolist(), strict=True):
            best = model(row[None, : last - 1]).logits[0].argmax(-1)
            assert row[first:last].tolist() == best[first - 1 :].tolist()


def test_more_prompts_than_windows_are_spread_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number:02}"}) + "\n" for number in range(9)))
    ids, _ = sampled(path, windows=3, tokens=6)
    assert tiny_tokenizer().batch_decode(ids[:, :2]) == ["00", "04", "08"]


def test_with_chat_a_prompt_is_a_turn(prompts: Path) -> None:
    ids, spans = sampled(prompts, windows=1, tokens=40, chat=True)
    assert tiny_tokenizer().decode(ids[0, : spans[0, 0]]) == "<user>two\n<assistant>"


@pytest.mark.parametrize(("utility", "block_path"), [("nll", "auto"), ("kl", "hf")])
def test_a_worth_is_that_of_the_answers_alone(model: str, prompts: Path, utility: str, block_path: str) -> None:
    game = ModelGame.from_pretrained(
        model, f"self:{prompts}", windows=6, tokens=T, utility=utility, block_path=block_path
    )
    mask = np.array([True, False, True])
    full, cut = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    del cut.model.layers[1]
    losses = []
    with torch.inference_mode():
        spans = game.calibration.spans
        for ids, (first, last) in zip(game.calibration.ids, spans.tolist(), strict=True):
            logs = [one(ids[None]).logits[0, first - 1 : last - 1].double().log_softmax(-1) for one in (full, cut)]
            nll = -logs[1].gather(1, ids[first:last, None]).mean()
            kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
            losses.append(float(nll if utility == "nll" else kl))
    assert float(game(mask)[0]) == pytest.approx(-np.mean(losses), rel=1e-4)
    measured = game.evaluate(mask[None])
    assert measured.window_tokens.tolist() == [last - first for first, last in spans.tolist()]
    other = ModelGame.from_pretrained(model, f"self:{prompts}", windows=6, tokens=T, seed=1, utility=utility)
    assert other.fingerprints["calibration"] != game.fingerprints["calibration"]


def test_beside_a_text_all_of_the_text_and_the_answers_are_scored(model: str, prompts: Path) -> None:
    game = ModelGame.from_pretrained(model, ["builtin", f"self:{prompts}"], windows=3, tokens=T)
    alone = ModelGame.from_pretrained(model, "builtin", windows=3, tokens=T)
    mask = np.array([[True, False, True]])
    both, one = game.evaluate(mask), alone.evaluate(mask)
    np.testing.assert_allclose(both.window_nll[:, ::2], one.window_nll, rtol=1e-6)
    assert both.window_tokens[::2].tolist() == [T - 1] * 3


@pytest.mark.slow
def test_workers_and_stages_score_the_answers_alone(model: str, prompts: Path) -> None:
    how = {"windows": 4, "tokens": T, "utility": "nll"}
    game = ModelGame.from_pretrained(model, f"self:{prompts}", **how)
    mask = np.array([[True, False, True]])
    whole = game.evaluate(mask).window_nll
    part = game.view(text=game.calibration.part(1, 3), apart=True)
    np.testing.assert_array_equal(part.evaluate(mask).window_nll, whole[:, 1:3])
    with_workers = ModelGame.from_pretrained(model, f"self:{prompts}", workers=1, **how)
    try:
        np.testing.assert_allclose(with_workers.evaluate(mask).window_nll, whole, rtol=1e-6)
    finally:
        with_workers.close()


@pytest.mark.slow
def test_a_model_is_pruned_on_its_own_answers(model: str, prompts: Path, tmp_path: Path) -> None:
    pruned = prune(
        model, tmp_path / "out", remove=1, method="ppl", calibration=f"self:{prompts}", windows=4, tokens=T, samples=0
    )
    assert pruned.record["verified"]["perplexity"] == "folder"
    assert pruned.record["calibration"]["spec"] == f"self:{prompts}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "x"}', 'line 1: it is not a JSON object with a "prompt" or "messages" field'),
        ('{"prompt": ""}', 'its "prompt" is not a text'),
        ('\n{"messages": [{"role": "user"}]}', 'line 2: its "messages" are not a list of objects'),
        ('{"messages": [{"role": "bot", "content": "x"}]}', 'its role "bot" is none of system, user, assistant, tool'),
        ('{"prompt": "' + "x" * T + '"}', f"its prompt has {T} tokens, and a window of {T} leaves no room"),
        ("", "holds no prompts"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_bad_prompts_are_one_line(lines: str, message: str, prompts: Path) -> None:
    prompts.write_text(lines)
    with pytest.raises(RequestError, match=message.replace("(", "\\(")):
        sampled(prompts)


def test_what_is_no_file_of_prompts_and_what_does_not_go_with_answers(model: str, prompts: Path) -> None:
    with pytest.raises(RequestError, match=r"self:x.txt names no prompts: give self:FILE.jsonl"):
        ModelGame.from_pretrained(model, "self:x.txt", windows=2, tokens=T)
    with pytest.raises(RequestError, match="of answers every token is scored: leave score_every= out"):
        ModelGame.from_pretrained(model, f"self:{prompts}", windows=2, tokens=T, score_every=2)

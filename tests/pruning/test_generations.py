from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from layercoop_fast.pruning.generations import NEW_TOKENS, Prompts
from layercoop_fast.pruning.prune import prune


@pytest.mark.slow
def test_both_models_write_what_transformers_writes(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", n_layers=4)
    made = prune(
        str(model), tmp_path / "out", remove=2, method="sleb", windows=2, tokens=12, measure_cost=False, samples=3
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    written = made.record["generations"]
    assert len(written) == 3
    for name, folder in (("full", model), ("pruned", tmp_path / "out")):
        plain = AutoModelForCausalLM.from_pretrained(folder)
        for one in written:
            ids = tokenizer(one["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
            expected = plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=2
            )
            assert one[name] == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert any(one["full"] != one["pruned"] for one in written)
    assert "samples" in made.record["seconds"]


def test_prompts_fit_models_of_few_positions(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "model", n_layers=1))
    text = "A line of text, and another one. " * 50
    assert Prompts.cut(text, tokenizer, 2, None).ids.shape == (2, 32)
    assert Prompts.cut(text, tokenizer, 2, 48).ids.shape == (2, 8)
    tight = Prompts.cut(text, tokenizer, 2, 30)
    assert (tight.ids.shape, tight.new_tokens) == ((2, 2), 28)


@pytest.mark.slow
def test_a_model_that_cannot_generate_is_pruned_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no cache of this kind")

    monkeypatch.setattr(LlamaForCausalLM, "generate", refuse)
    model = save_tiny(tmp_path / "model", n_layers=3)
    asked = {"method": "reverse", "windows": 2, "tokens": 12, "measure_cost": False}
    with pytest.warns(UserWarning, match="no samples are in the report: LlamaForCausalLM generates nothing here"):
        made = prune(str(model), tmp_path / "out", remove=1, **asked)
    assert made.record["generations"] is None
    assert made.record["generations_left_out"].endswith("generates nothing here: no cache of this kind")
    assert "Left out: no samples were written" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_programming_error_around_samples_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise TypeError("one argument too many")

    model = save_tiny(tmp_path / "model", n_layers=3)
    asked = {"method": "reverse", "windows": 2, "tokens": 12, "measure_cost": False, "repair": False}
    for place in (LlamaForCausalLM, Prompts):
        with monkeypatch.context() as patch:
            patch.setattr(place, "generate" if place is LlamaForCausalLM else "_text", wrong)
            with pytest.raises(TypeError, match="one argument too many"):
                prune(str(model), tmp_path / "out", remove=1, **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_text_too_short_for_prompts(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Twenty-four letters here" * 2)
    model = save_tiny(tmp_path / "model", n_layers=3)
    asked = {"method": "reverse", "windows": 2, "tokens": 12, "measure_cost": False}
    made = prune(str(model), tmp_path / "out", remove=1, heldout=str(tmp_path / "short.txt"), **asked)
    assert made.record["generations"] is None

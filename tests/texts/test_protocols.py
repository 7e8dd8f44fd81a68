"""Perplexities as papers state them, against the code of GPTQ that they come from, written out."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from layercoop_fast import ModelGame, compare, prune
from layercoop_fast.errors import RequestError
from layercoop_fast.texts import protocols
from layercoop_fast.texts.calibration import read_text
from layercoop_fast.texts.protocols import protocol_windows

LINES = [
    " = Heading = \n",
    " \n",
    *(f" Line {number} of the text , with some words in it . \n" for number in range(160)),
]
ROWS = [line if line.strip() else "" for line in LINES]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wiki") / "wiki.test.raw"
    path.write_text("".join(LINES))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("ppl") / "model", n_layers=2, max_position_embeddings=2048))


def test_the_perplexity_is_that_of_the_code_of_gptq(model: str, raw: Path) -> None:
    game = ModelGame.from_pretrained(model, f"ppl:wikitext2={raw}", utility="nll", windows=3, tokens=7)
    testenc = torch.tensor([tiny_tokenizer()("\n\n".join(ROWS))["input_ids"]])
    seqlen, nlls = 2048, []
    full = AutoModelForCausalLM.from_pretrained(model)
    nsamples = testenc.numel() // seqlen
    assert nsamples > 2
    with torch.inference_mode():
        for i in range(nsamples):
            batch = testenc[:, i * seqlen : (i + 1) * seqlen]
            shift_logits, shift_labels = full(batch).logits[:, :-1], batch[:, 1:]
            loss = torch.nn.functional.cross_entropy(shift_logits.flatten(0, 1), shift_labels.flatten())
            nlls.append(loss.float() * seqlen)
    ppl = math.exp(float(torch.stack(nlls).sum() / (nsamples * seqlen)))
    assert math.exp(-float(game(np.ones((1, 2), dtype=bool))[0])) == pytest.approx(ppl, rel=1e-5)
    assert game.calibration.description == {"spec": f"ppl:wikitext2={raw}", "windows": nsamples, "tokens": 2048}


def test_each_data_set_is_joined_in_its_own_way(raw: Path, tmp_path: Path) -> None:
    assert read_text(f"ppl:wikitext2={raw}") == "\n\n".join(ROWS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    assert read_text(f"ppl:wikitext2={tmp_path}/rows.jsonl") == "\n\n".join(ROWS)
    (tmp_path / "ptb.test.txt").write_text(" no it was n't \n but mr. <unk> \n")
    assert read_text(f"ppl:ptb={tmp_path}/ptb.test.txt") == "no it was n't but mr. <unk>"
    (tmp_path / "ptb.jsonl").write_text('{"sentence": "no it was"}\n{"sentence": "n\'t"}\n')
    assert read_text(f"ppl:ptb={tmp_path}/ptb.jsonl") == "no it was n't"
    with gzip.open(tmp_path / "shard.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"é{number}", "url": ""}) + "\n" for number in range(1200))
    assert read_text(f"ppl:c4={tmp_path}/shard.json.gz") == " ".join(f"é{number}" for number in range(1100))


def test_c4_has_256_windows_at_most(tmp_path: Path) -> None:
    (tmp_path / "c4.jsonl").write_text(json.dumps({"text": "x" * (300 * 2048)}) + "\n")
    assert protocol_windows(f"ppl:c4={tmp_path}/c4.jsonl", tiny_tokenizer()).shape == (256, 2048)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ppl:wikitext", "is no perplexity protocol: ppl:wikitext2, ppl:c4, ppl:ptb are"),
        ("ppl:c4=FOLDER/gone.jsonl", "gone.jsonl cannot be read"),
        ("ppl:c4=FOLDER/other.json.gz", "other.json.gz cannot be read"),
        ("ppl:ptb=FOLDER/packed.txt.gz", "only JSON lines are read from a .gz"),
        ("ppl:ptb=FOLDER/fields.jsonl", 'line 1 is not a JSON object with a "sentence" or "text" field'),
        ("ppl:wikitext2=hf:FOLDER/none", "or name a file of its rows with =FILE"),
    ],
)
def test_bad_input_is_one_line(spec: str, message: str, tmp_path: Path) -> None:
    for name in ("other.json.gz", "packed.txt.gz"):
        (tmp_path / name).write_text("no gzip")
    (tmp_path / "fields.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(RequestError, match=message):
        read_text(spec.replace("FOLDER", str(tmp_path)))


def test_what_a_packed_file_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, in lines and in bytes of a line, and nothing is left out without a word."""
    path = tmp_path / "rows.json.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": "x" * 20}) + "\n" for _ in range(10))
    assert read_text(f"ppl:wikitext2={path}") == "\n\n".join(["x" * 20] * 10)
    for name, bound, says in (
        ("_MOST_LINES", 9, "has more than 9 lines"),
        ("MAX_TEXT_BYTES", 300, "unpacks to more than 300 bytes"),
        ("_LONGEST_LINE", 30, "line 1 is longer than 30 bytes"),
    ):
        with monkeypatch.context() as patch, pytest.raises(RequestError, match=says):
            patch.setattr(protocols, name, bound)
            read_text(f"ppl:wikitext2={path}")


def test_too_little_text_too_short_a_model_and_other_texts_beside_it(raw: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "short.raw").write_text("few words\n")
    with pytest.raises(RequestError, match="tokens, less than one window of 2,048"):
        protocol_windows(f"ppl:wikitext2={tmp_path}/short.raw", tiny_tokenizer())
    with pytest.raises(RequestError, match="measure on it alone"):
        ModelGame.from_pretrained(model, [f"ppl:wikitext2={raw}", "builtin"])
    small = str(save_tiny(tmp_path / "small", n_layers=2, max_position_embeddings=512))
    with pytest.raises(RequestError, match="windows of 2048 tokens are too long: the model has 512 positions"):
        ModelGame.from_pretrained(small, f"ppl:wikitext2={raw}")


def test_layers_are_not_chosen_on_it_and_a_comparison_measures_on_it(model: str, raw: Path, tmp_path: Path) -> None:
    spec = f"ppl:wikitext2={raw}"
    with pytest.raises(RequestError, match=r"is a test: choose layers on another calibration= text"):
        prune(model, tmp_path / "out", remove=1, calibration=spec)
    with pytest.raises(RequestError, match=r"is a test"):
        compare(model, remove=[1], calibration=spec)
    small = {"windows": 2, "tokens": 16, "methods": ["ppl"]}
    compared = compare(model, remove=[1], calibration="builtin", texts=[spec], **small)
    game = ModelGame.from_pretrained(model, spec, utility="nll")
    assert compared.full.texts[1].ppl == pytest.approx(math.exp(-float(game(np.ones((1, 2), bool))[0])))

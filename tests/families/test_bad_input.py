"""What is said of a model that is not supported, and what Vicuna's users get of their template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_tiny, tiny_tokenizer

from layercoop_fast.texts.calibration import read_text
from layercoop_fast.texts.chat import chat_windows, stretch_of

Run = Callable[..., tuple[int, str, str]]

VICUNA = (
    "{{ 'A chat between a curious user and an artificial intelligence assistant. ' }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def test_doctor_says_what_to_pass_for_an_architecture_nobody_knows(tmp_path: Path, run: Run) -> None:
    folder = save_tiny(tmp_path / "model", n_layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    status, _, said = run("doctor", folder)
    assert status == 2
    assert said.count("\n") == 1
    assert "does not know: if the checkpoint contains its own code, pass --trust-remote-code" in said


def test_doctor_names_the_lists_where_no_blocks_are_found(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that counts its layers another way than its lists: --blocks names the list by hand."""
    folder = save_tiny(tmp_path / "model", n_layers=2)
    monkeypatch.setattr("layercoop_fast.engine.structure.number_of_layers", lambda config: 7)
    status, _, said = run("doctor", folder)
    assert status == 2
    assert "no list of 7 blocks was found in LlamaForCausalLM; name the list with --blocks" in said
    assert "model.layers (2)" in said
    status, said, _ = run("doctor", folder, "--blocks", "model.layers", "--json")
    assert (status, json.loads(said)["blocks"]["path"]) == (0, "model.layers")


@pytest.mark.parametrize(("method", "install"), [("gptq", "gptqmodel optimum"), ("awq", "gptqmodel")])
def test_a_checkpoint_whose_library_is_not_there_is_told_what_to_install(
    method: str, install: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model", n_layers=2)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("layercoop_fast.engine.quantised._installed", lambda module: module != "gptqmodel")
    status, _, said = run("prune", folder, "--remove", "1", "--out", tmp_path / "out")
    assert status == 2
    assert said.endswith(f"is quantised with {method}, whose library is not installed: pip install {install}\n")
    assert said.count("\n") == 1


def test_vicuna_windows_are_turns_of_its_template() -> None:
    import numpy as np

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = VICUNA
    tokens = 200
    ids = np.array(tokenizer(read_text("builtin")[:2000])["input_ids"], dtype=np.int64)
    stretches = ids[: 2 * stretch_of(tokens)].reshape(2, -1)
    for row in chat_windows(stretches, tokens, tokenizer, "builtin"):
        text = tokenizer.decode(row)
        assert text.startswith("A chat between a curious user")
        assert text.index("USER: ") < text.index("ASSISTANT: ")

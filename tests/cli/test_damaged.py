"""Commands given damaged files: exit status 2, one line, and nothing of theirs is opened that need not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.errors import RequestError

Run = Callable[..., tuple[int, str, str]]


def line(answer: tuple[int, str, str]) -> str:
    status, printed, error = answer
    assert (status, printed) == (2, "")
    assert error.count("\n") == 1
    return error


def test_a_wrong_mask_file_is_refused_before_the_model_is_opened(run: Run, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", n_layers=3)
    (model / "model.safetensors").write_bytes(b"")  # so that to open it is an error of its own
    file = tmp_path / "masks.npy"
    for masks, players, said in [
        (np.ones((2, 4), bool), "layers", "masks of 3 players are [M, 3]"),
        (np.ones((2, 3), bool), "sublayers", "masks of 6 players are [M, 6]"),
        (np.ones(3, bool), "layers", "masks are [M, players]"),
        (np.ones((2, 3)), "layers", "has dtype float64"),
        (np.ones((1, 70_000), bool), "layers", "masks are of 1 to 65,536 players"),
    ]:
        np.save(file, masks)
        asked = ("evaluate", model, "--masks", file, "--out", tmp_path / "out.npz", "--players", players)
        assert said in line(run(*asked))
    np.save(file, np.ones((2, 3), bool))
    assert "damaged safetensors file" in line(run("evaluate", model, "--masks", file, "--out", tmp_path / "out.npz"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[" * 10**5, "it has too many levels"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 1e308}', "cannot be opened"),
        (
            "config.json",
            '{"model_type": "llama", "num_hidden_layers": 1000000000}',
            "models of 1 to 65,536 layers are opened",
        ),
        ("config.json", '{"model_type": ["llama"]}', "config.json|cannot be opened"),
        ("config.json", '{"model_type": "llama", "architectures": [3]}', "config.json|cannot be opened"),
        ("generation_config.json", "\ud800", "generation_config.json is not UTF-8 text"),
        ("tokenizer.json", "{}", "the tokenizer of .* cannot be opened"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a JSON object"),
    ],
)
@pytest.mark.parametrize("offload", [False, True])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    name: str, content: str, said: str, offload: bool, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", n_layers=2)
    (model / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(RequestError, match=said) as raised:
        open_checkpoint(str(model), offload=offload)
    assert "\n" not in str(raised.value)


def test_our_own_errors_are_not_taken_for_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model", n_layers=2)

    def broken(*_: object) -> None:
        raise TypeError("a slip")

    monkeypatch.setattr("layercoop_fast.engine.loading._refuse_blocks_beyond", broken)
    with pytest.raises(TypeError, match="a slip"):
        open_checkpoint(str(model))


def test_a_record_of_endless_players_is_refused(run: Run, tmp_path: Path) -> None:
    for players in ("1e308", "65537", "-1", "true", '"4"', "null"):
        (tmp_path / "layercoop.json").write_text(f'{{"schema": 1, "n_players": {players}}}')
        assert "records are of 1 to 65,536" in line(run("report", tmp_path))
    record = {"removed": ["0-65535"] * 1000, "kept": [1]}
    (tmp_path / "layercoop.json").write_text(json.dumps(record))
    assert "does not list what was removed" in line(
        run("cut", tmp_path / "model.gguf", "--from", tmp_path, "--out", tmp_path / "out.gguf")
    )

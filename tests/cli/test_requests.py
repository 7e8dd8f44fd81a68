"""Requests that a user gets wrong, found by using the command line: one line each, exit status 2, nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

L = 5
SMALL = ["--windows", "2", "--tokens", "24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("requests") / "model", n_layers=L)


@pytest.fixture
def refused(run: Any) -> Any:
    """Call the command line; assert one line and exit status 2, and return the line."""

    def call(*arguments: object) -> str:
        status, printed, error = run(*arguments)
        assert (status, printed) == (2, "")
        assert error.count("\n") == 1
        return str(error)

    return call


def masks_file(folder: Path) -> Path:
    np.save(folder / "masks.npy", np.ones((2, L), dtype=bool))
    return folder / "masks.npy"


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "copy"))


def test_force_never_replaces_a_folder_by_a_file_or_the_other_way(refused: Any, model: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    file.write_text("precious")
    masks = masks_file(tmp_path)
    line = refused("evaluate", model, "--masks", masks, "--out", folder, "--force", *SMALL)
    assert "is a folder, and a file is to be written" in line
    line = refused("prune", model, "--remove", 1, "--out", file, "--force", *SMALL)
    assert "is a file, and a folder is to be written" in line
    assert (folder / "thesis.txt").read_text() == file.read_text() == "precious"


def test_a_store_in_the_folder_that_is_replaced(refused: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for store in (out, out / "deep" / "masks.store"):
        assert "keep the store elsewhere" in refused("prune", model, "--remove", 1, "--out", out, "--store", store)
    assert not out.exists()


def test_a_model_in_the_folder_that_is_replaced(refused: Any, model: Path, tmp_path: Path) -> None:
    own = copy_of(model, tmp_path)
    for out in (tmp_path, own):
        line = refused("prune", own, "--remove", 1, "--out", out, "--force", *SMALL)
        assert "which is replaced as a whole: write to another folder" in line
    assert (own / "model.safetensors").exists()


def test_what_a_repair_cannot_be_fitted_to_is_said_before_the_search(
    refused: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layercoop_fast.pruning.prune.search", None)  # whoever comes so far breaks
    for asked, message in (
        (["--repair-text", tmp_path / "absent.txt"], "absent.txt cannot be read"),
        (["--repair-text", "builtin", "--repair-text", "builtin"], "each given once"),
        (["--repair-tokens", 0], "at least 1 token, not 0"),
        (["--repair-text", "builtin", "--offload"], "leave --repair-text out"),
    ):
        assert message in refused("prune", model, "--remove", 1, "--out", tmp_path / "out", *asked, *SMALL)


def test_text_that_is_searched_on_is_no_held_out_text(refused: Any, model: Path, tmp_path: Path) -> None:
    asked = ["--calibration", "builtin-code", "--calibration", "builtin:2"]
    line = refused("prune", model, "--remove", 1, "--out", tmp_path / "out", "--heldout", "builtin", *asked, *SMALL)
    assert "builtin is what masks are searched on" in line


def test_numbers_that_mean_nothing(refused: Any, model: Path, tmp_path: Path) -> None:
    assert "--seed" in refused("plan", "--layers", 4, "--seed", -1)
    assert "kv-ratio must be above 0" in refused("plan", "--layers", 4, "--kv-ratio", "nan")
    assert "--tflops above 0" in refused("plan", "--layers", 4, "--tflops", "nan")
    assert "too many to lay out" in refused("plan", "--layers", 4, "--masks", 10**11)
    prune = ("prune", model, "--remove", 1, "--out", tmp_path / "out", *SMALL)
    assert "budget must be at least 1 mask, not -4" in refused(*prune, "--method", "shortgpt", "--budget", -4)
    assert "hf: names no data set" in refused(*prune, "--calibration", "hf:")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY"])
def test_files_cut_short(refused: Any, model: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.npy"
    file.write_bytes(content)
    assert "is not a plain .npy" in refused(
        "evaluate", model, "--masks", file, "--out", tmp_path / "worths.npz", *SMALL
    )
    assert "is not a worths.npz" in refused("shapley", "--worths", file)


def test_groups_nested_without_end(refused: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text("[" * 100_000)
    line = refused(
        "prune", model, "--remove", 1, "--out", tmp_path / "out", "--players", tmp_path / "groups.json", *SMALL
    )
    assert "is not JSON" in line


def test_one_file_for_two_things(refused: Any, model: Path, tmp_path: Path) -> None:
    masks, file = masks_file(tmp_path), tmp_path / "x"
    for option in ("--profile", "--store"):
        line = refused("evaluate", model, "--masks", masks, "--out", file, option, file, "--force")
        assert f"--out and {option} are the same file" in line
    assert not file.exists()


def test_resume_and_store_at_once(refused: Any, model: Path, tmp_path: Path) -> None:
    masks = masks_file(tmp_path)
    line = refused("evaluate", model, "--masks", masks, "--out", tmp_path / "w", "--store", tmp_path / "s", "--resume")
    assert "--resume goes on from OUT.store" in line


def test_pickled_weights_are_not_opened(refused: Any, model: Path, tmp_path: Path) -> None:
    copy = copy_of(model, tmp_path)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "pickled weights only" in refused("doctor", copy)


def test_a_config_and_weights_that_do_not_belong_together(refused: Any, model: Path, tmp_path: Path) -> None:
    copy = copy_of(model, tmp_path)
    config = json.loads((copy / "config.json").read_text())

    def write(**changes: object) -> None:
        (copy / "config.json").write_text(json.dumps({**config, **changes}))

    write(num_hidden_layers=L - 2)
    assert "weights of more layers than its config calls for (model.layers.3." in refused("doctor", copy)
    write(num_hidden_layers=L + 1)
    assert "weights its config calls for" in refused("doctor", copy)
    write(num_hidden_layers="eight")
    assert "cannot be opened" in refused("doctor", copy)
    write(intermediate_size=config["intermediate_size"] + 8)
    assert "do not have the shapes" in refused("doctor", copy)


def test_other_weights_than_blocks_may_be_there(model: Path, tmp_path: Path) -> None:
    from layercoop_fast.engine.loading import open_checkpoint

    copy = copy_of(model, tmp_path)
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old checkpoints hold it
    weights["classifier.weight"] = torch.ones(4)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert open_checkpoint(str(copy)).tokenizer is not None


def test_a_damaged_tokenizer_is_not_an_absent_one(refused: Any, model: Path, tmp_path: Path) -> None:
    copy = copy_of(model, tmp_path)
    (copy / "tokenizer.json").write_text("{")
    assert "the tokenizer of" in refused("prune", copy, "--remove", 1, "--out", tmp_path / "out", *SMALL)


def test_what_no_checkpoint_can_say_is_refused_before_the_search(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layercoop_fast.game.model_game.play", None)  # nothing may be measured
    experts = save_tiny(tmp_path / "experts", "qwen2_moe", n_layers=4, decoder_sparse_step=1)
    out = ("--out", tmp_path / "out", *SMALL)
    assert "silences its mlp" in refused("prune", experts, "--remove", 1, "--players", "sublayers", *out)
    whole = save_tiny(tmp_path / "whole", n_layers=4)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({**config, "num_kv_shared_layers": 2}))
    assert "no 1 of 4 players can be removed in a plain checkpoint" in refused("prune", whole, "--remove", 1, *out)


def test_no_arguments_and_no_empty_line(run: Any) -> None:
    _, printed, error = run()
    assert "prune" in printed + error
    assert "layercoop-fast: \n" not in error

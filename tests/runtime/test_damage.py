"""Checkpoints with weights that nothing can be computed from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny

from layercoop_fast import LayerSkipModel, RequestError

WITHOUT_1 = np.array([True, False, True])
PROMPT = [5, 6, 7]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("damage") / "llama", "llama", 3)


def opened(path: Path, *arguments: object, **more: object) -> LayerSkipModel:
    return LayerSkipModel.from_pretrained(path, *arguments, kv_memory=1 << 20, **more)


def damaged(folder: Path, to: Path, name: str, value: float) -> Path:
    """A copy of the checkpoint with one number changed."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (weights,) = to.glob("*.safetensors")
    tensors = load_file(weights)
    tensors[name].view(-1)[3] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    return to


@pytest.mark.parametrize(
    ("value", "dtype", "executor", "wrong"),
    [
        (float("nan"), "fp32", "native", "NaN or infinite numbers"),
        (float("-inf"), "fp32", "transformers", "NaN or infinite numbers"),
        (1e20, "int8", "native", "numbers as large as 1e[+]20, and int8 goes up to 8e[+]06"),
        (-1e20, "int4", "native", "numbers as large as 1e[+]20, and int4 goes up to 6.55e[+]04"),
    ],
)
def test_a_block_that_cannot_run_is_named_and_left_out(
    folder: Path, tmp_path: Path, value: float, dtype: str, executor: str, wrong: str
) -> None:
    whole = opened(folder, dtype, executor=executor)
    expected = whole.generate(PROMPT, WITHOUT_1, max_new_tokens=8).tokens
    path = damaged(folder, tmp_path / "damaged", DOWN, value)
    model = opened(path, dtype, executor=executor)
    for ask in (model.generate, model.stream):
        with pytest.raises(
            RequestError, match=f"^{DOWN} holds {wrong}: block 1 cannot run, so leave it out with a mask$"
        ):
            ask(PROMPT)
    assert model.generate(PROMPT, WITHOUT_1, max_new_tokens=8).tokens == expected
    smaller = opened(path, dtype, WITHOUT_1, executor=executor)
    assert smaller.generate(PROMPT, max_new_tokens=8).tokens == expected


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("executor", ["native", "transformers"])
def test_what_no_mask_leaves_out_is_said_at_once(folder: Path, tmp_path: Path, name: str, executor: str) -> None:
    path = damaged(folder, tmp_path / "damaged", name, float("nan"))
    with pytest.raises(RequestError, match=f"{name} holds NaN or infinite numbers: no mask leaves it out"):
        opened(path, "fp32", WITHOUT_1, executor=executor)


def test_a_model_without_a_block_that_runs_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    path = damaged(folder, tmp_path / "damaged", DOWN, float("nan"))
    with pytest.raises(RequestError, match="and no block without such numbers is left"):
        opened(path, "fp32", ~WITHOUT_1)


def test_numbers_within_the_limits_are_packed(folder: Path, tmp_path: Path) -> None:
    for number, (dtype, value) in enumerate([("int8", -8e6), ("int4", -65504.0)]):
        path = damaged(folder, tmp_path / str(number), DOWN, value)
        model = opened(path, dtype)
        assert len(model.generate(PROMPT, max_new_tokens=2).tokens) == 2


def test_the_command_line_runs_what_the_mask_keeps(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    path = damaged(folder, tmp_path / "damaged", DOWN, float("nan"))
    status, out, _ = run(
        "generate", path, "--prompt", "It was", "--mask", "1", "--max-new-tokens", 3, "--kv-memory", "1MB"
    )
    assert status == 0
    assert out
    status, _, error = run("generate", path, "--prompt", "It was", "--max-new-tokens", 3, "--kv-memory", "1MB")
    assert (status, error.count("\n")) == (2, 1)
    assert DOWN in error

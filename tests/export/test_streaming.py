"""A checkpoint written tensor by tensor is, byte for byte, the one that `save_pretrained` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny

from layercoop_fast.engine.loading import Checkpoint, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RunError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.streaming import save_weights
from layercoop_fast.masked.players import make_players
from layercoop_fast.pruning.prune import prune

L = 5


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def both(path: Path, export: Callable[[Checkpoint, Skeleton, Path], None], out: Path) -> list[dict[str, bytes]]:
    """What is written from the model in memory, and from one whose blocks are streamed."""
    written = []
    for offload in (False, True):
        checkpoint = open_checkpoint(str(path), offload=offload)
        skeleton = Skeleton(checkpoint.model, streamed=checkpoint.streamed)
        export(checkpoint, skeleton, out / str(offload))
        written.append(files_of(out / str(offload)))
    return written


@pytest.mark.parametrize(
    ("family", "arguments", "size"),
    [
        ("llama", {}, "5GB"),
        ("qwen3", {}, 60_000),  # ties its embedding and its head
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "5GB"),  # whose query weights change when blocks move
        ("opt", {}, 60_000),
    ],
)
def test_files_are_those_of_the_model_in_memory(
    tmp_path: Path, family: str, arguments: dict[str, Any], size: int | str
) -> None:
    def export(checkpoint: Checkpoint, skeleton: Skeleton, out: Path) -> None:
        skeleton.block(3)  # a block in use at the time makes no difference
        silent = make_players("sublayers", skeleton).sublayers.silencing_parameters(7)  # type: ignore[union-attr]
        export_checkpoint(
            checkpoint.model,
            [0, 2, 3],
            out,
            blocks_path=skeleton.blocks_path,
            tokenizer=checkpoint.tokenizer,
            zeroed={3: silent},
            max_shard_size=size,
            streamed=checkpoint.streamed,
        )

    resident, streamed = both(save_tiny(tmp_path / "model", family, L, **arguments), export, tmp_path)
    assert ("model.safetensors.index.json" in streamed) == (size != "5GB")
    assert resident.keys() == streamed.keys()
    for name, content in resident.items():
        assert content == streamed[name], name


def test_a_pruned_checkpoint_is_the_same_without_the_model_in_memory(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama", L)
    records = []
    for offload in (False, True):
        out = tmp_path / str(offload)
        asked: dict[str, Any] = {"remove": 2, "windows": 2, "tokens": 24, "measure_cost": False, "repair": False}
        done = prune(str(model), out, samples=0, offload=offload, **asked)
        records.append({**done.record, "seconds": None, "command": None})
    verified = [record.pop("verified") for record in records]
    assert records[0] == records[1]
    assert [one.pop("compared") for one in verified] == ["logits", "logits, block by block"]
    assert verified[0] == verified[1]
    resident, streamed = (files_of(tmp_path / str(offload)) for offload in (False, True))
    assert resident["model.safetensors"] == streamed["model.safetensors"]
    assert resident["config.json"] == streamed["config.json"]


def test_costs_are_not_measured_of_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("loads the whole model")

    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", never)
    model = save_tiny(tmp_path / "model", "llama", L)
    done = prune(str(model), tmp_path / "out", remove=1, windows=1, tokens=24, offload=True, method="random")
    assert done.record["cost"] is None


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama", L)
    checkpoint = open_checkpoint(str(model), offload=True)
    skeleton = Skeleton(checkpoint.model, streamed=checkpoint.streamed)
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(200_000)
    with pytest.raises(RunError, match="cut short"):
        export_checkpoint(
            checkpoint.model, [0, 3, 4], tmp_path / "out", blocks_path="model.layers", streamed=checkpoint.streamed
        )
    assert skeleton.n_layers == L
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_of_several_widths(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(5, dtype=torch.uint8),
        "b": torch.randn(3, 3),
        "c": torch.randn(7).bfloat16(),
        "d": torch.randn(2).double(),
    }
    save_weights(tmp_path, tensors, tensors.__getitem__, "5GB", 23)
    back = load_file(tmp_path / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())

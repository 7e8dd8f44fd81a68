"""Quantised models: written, played, pruned and opened again, and the requests that they cannot fulfil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.engine import quantised
from layercoop_fast.engine.loading import fingerprint, open_checkpoint, quiet_transformers
from layercoop_fast.engine.quantised import bytes_of, check_library, parameters_of
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.quantising import quantise_checkpoint, uncalled
from layercoop_fast.pruning.checkpoint_costs import Cost
from layercoop_fast.pruning.prune import prune
from layercoop_fast.report.html.page import report_page

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a shape that bitsandbytes' kernels for AVX512-BF16 take: 32 divides the outputs, 64 the inputs."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny(tmp_path_factory.mktemp("plain") / "model", n_layers=3, **shape)


@pytest.fixture(scope="module")
def nf4(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nf4") / "model"
    done = quantise_checkpoint(str(plain), out)
    assert done["left"] == []
    assert done["bytes"]["quantised"] < 0.6 * done["bytes"]["full"]
    return out


def test_a_quantised_checkpoint_counts_what_it_stands_for(plain: Path, nf4: Path) -> None:
    full, small = open_checkpoint(str(plain)).model, open_checkpoint(str(nf4)).model
    assert parameters_of(small.parameters()) == parameters_of(full.parameters()) == full.num_parameters()
    linear = small.model.layers[0].mlp.down_proj.weight
    assert bytes_of([linear]) == linear.quant_state.shape.numel() // 2 + linear.quant_state.absmax.numel() * 4
    assert fingerprint(small) != fingerprint(full)


def test_prune_of_a_quantised_model_stays_quantised(nf4: Path, tmp_path: Path, run: Run) -> None:
    """The whole road: the game on quantised weights, and a checkpoint that says by itself how it is to be opened."""
    out = tmp_path / "pruned"
    request = ["--remove", 1, "--method", "ppl", "--windows", 2, "--tokens", 32, "--no-cost", "--samples", 0]
    status, _, said = run("prune", nf4, *request, "--out", out)
    assert (status, said) == (0, said)
    record = json.loads((out / "layercoop.json").read_text())
    assert record["repair"] is None
    with quiet_transformers():
        pruned = AutoModelForCausalLM.from_pretrained(out).eval()
    assert pruned.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    skeleton = Skeleton(open_checkpoint(str(nf4)).model)
    ids = torch.arange(3, 27)[None]
    context = skeleton.context(ids)
    hidden = context.embedding
    for layer in record["kept"]:
        hidden = context.run(layer, hidden)
    with torch.inference_mode():
        assert torch.equal(pruned(ids, use_cache=False).logits, context.logits(hidden))


def test_codes_are_copied_from_the_files_and_not_from_memory(nf4: Path, tmp_path: Path) -> None:
    """Kernels repack what they read (GPTQ's and AWQ's always): what memory holds is not what goes into the files."""
    model = open_checkpoint(str(nf4)).model
    skeleton, ids = Skeleton(model), torch.arange(3, 27)[None]
    context = skeleton.context(ids)
    with torch.inference_mode():
        wanted = context.logits(context.run(2, context.run(0, context.embedding)))
    model.model.layers[2].mlp.up_proj.weight.data.zero_()
    export_checkpoint(model, [0, 2], tmp_path / "pruned", blocks_path=skeleton.blocks_path, verify=False)
    pruned = open_checkpoint(str(tmp_path / "pruned")).model
    with torch.inference_mode():
        assert torch.equal(pruned(ids, use_cache=False).logits, wanted)
    for name, said in (
        ("", "bitsandbytes are copied from the model's files, and '' is not a folder"),
        ("no/model", "'no/model' is"),
    ):
        model.name_or_path = name
        with pytest.raises(RequestError, match=said):
            export_checkpoint(model, [0], tmp_path / "again", blocks_path=skeleton.blocks_path)


def test_files_with_other_names_than_the_modules_are_not_copied_from(nf4: Path, tmp_path: Path) -> None:
    shutil.copytree(nf4, tmp_path / "model")
    tensors = load_file(nf4 / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    model = open_checkpoint(str(tmp_path / "model")).model
    save_file(renamed, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"keeps its weights under other names than its modules \(no model.layers.0"):
        export_checkpoint(model, [0], tmp_path / "out", blocks_path="model.layers")


def test_a_pruned_checkpoint_that_is_quantised_says_that_its_figures_are_of_before(plain: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"windows": 1, "tokens": 24, "samples": 0, "measure_cost": False, "repair": False}
    before = prune(str(plain), tmp_path / "pruned", remove=1, method="reverse", **quick).record
    done = quantise_checkpoint(str(tmp_path / "pruned"), tmp_path / "nf4")
    record = json.loads((tmp_path / "nf4" / "layercoop.json").read_text())
    assert record["removed"] == before["removed"]
    assert record["quantised"] == "nf4"
    assert record["ppl"] == {"full": before["ppl"]["full"], "pruned": None, "unquantised": before["ppl"]["pruned"]}
    assert record["verified"] == done["verified"]
    assert (done["verified"]["tokens"], done["verified"]["largest_difference"]) == (48, 0.0)
    assert "<html" in report_page(record)


def test_a_quantised_folder_that_is_not_the_model_is_not_written(
    plain: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def spoil(model: PreTrainedModel, folder: Path, **options: Any) -> None:
        save(model, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight.absmax"].mul_(1.01)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoil)
    status, _, said = run("quantise", plain, "--out", tmp_path / "nf4")
    assert (status, "the written checkpoint is not the masked model: on 48 tokens" in said) == (1, True)
    assert not any(tmp_path.iterdir())
    assert run("quantise", plain, "--out", tmp_path / "nf4", "--no-verify")[0] == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--players", "sublayers"], "halves of blocks are written as zeros"),
        (["--repair"], "a repair is written as new"),
    ],
)
def test_what_quantised_weights_cannot_take_is_said_before_the_search(
    nf4: Path, tmp_path: Path, run: Run, asked: list[str], message: str
) -> None:
    status, _, said = run("prune", nf4, "--remove", 1, "--windows", 2, "--out", tmp_path / "pruned", *asked)
    assert status == 2
    assert message in said
    assert "quantise the result" in said
    assert not (tmp_path / "pruned").exists()


def test_torchao_tensors_are_told_apart_and_pruned(plain: Path, tmp_path: Path) -> None:
    quantise_checkpoint(str(plain), tmp_path / "int4", "int4")
    model = open_checkpoint(str(tmp_path / "int4")).model
    assert fingerprint(model) != fingerprint(open_checkpoint(str(plain)).model)
    skeleton = Skeleton(model)
    export_checkpoint(model, [0, 2], tmp_path / "pruned", blocks_path=skeleton.blocks_path)
    pruned = open_checkpoint(str(tmp_path / "pruned")).model
    ids = torch.arange(3, 27)[None]
    context = skeleton.context(ids)
    with torch.inference_mode():
        wanted = context.logits(context.run(2, context.run(0, context.embedding)))
        assert torch.equal(pruned(ids, use_cache=False).logits, wanted)
    quick: dict[str, Any] = {"windows": 1, "tokens": 24, "samples": 0, "measure_cost": False}
    done = prune(str(tmp_path / "int4"), tmp_path / "whole", remove=1, method="reverse", **quick)
    assert done.record["verified"]["largest_difference"] == 0.0


def test_a_scheme_that_finds_nothing_to_quantise_says_so(tmp_path: Path) -> None:
    """Falcon's linear layers are a class of its own; GPT-2's are too for torchao."""
    model = tiny_model("falcon", 2)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "plain")
    with pytest.raises(RequestError, match="nf4 would change nothing: no layer of FalconForCausalLM is one that bits"):
        quantise_checkpoint(str(tmp_path / "plain"), tmp_path / "nf4")
    assert not (tmp_path / "nf4").exists()


def test_layers_that_no_block_calls_are_left_as_they_are() -> None:
    """Mamba multiplies by the weight of `dt_proj` itself; what no token reached (experts) is another matter."""
    assert uncalled(tiny_model("mamba", 2)) == ["mixer.dt_proj"]
    assert uncalled(tiny_model("qwen2_moe", 2)) == []


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(method: str) -> Any:
        return type("Config", (), {"quantization_config": {"quant_method": method}})()

    monkeypatch.setattr(quantised, "_installed", lambda module: False)
    with pytest.raises(RequestError, match=r"bitsandbytes, whose library .* 'layercoop-fast\[bitsandbytes\]'"):
        check_library("m", config("bitsandbytes"))
    with pytest.raises(RequestError, match="gptq, whose library is not installed: pip install gptqmodel"):
        check_library("m", config("gptq"))
    check_library("m", type("Config", (), {})())


def test_wrong_requests_are_one_line(plain: Path, nf4: Path, tmp_path: Path, run: Run) -> None:
    assert run("quantise", plain, "--scheme", "q4", "--out", tmp_path / "q")[2].count("\n") == 1
    status, _, said = run("quantise", nf4, "--out", tmp_path / "q")
    assert (status, "is quantised already" in said) == (2, True)
    assert not (tmp_path / "q").exists()


def test_prune_of_a_quantised_model_measures_and_writes_samples(
    nf4: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both let go of the searched model's weights first, which no call of bitsandbytes' own does."""
    cost = Cost(1, 2, 3, 4, 5.0, 6.0)
    monkeypatch.setattr("layercoop_fast.pruning.writing.measure_costs", lambda paths, **_: [cost, cost])
    out = tmp_path / "pruned"
    request = ["--remove", 1, "--method", "ppl", "--windows", 2, "--tokens", 32, "--samples", 1]
    status, _, said = run("prune", nf4, *request, "--out", out)
    assert (status, said) == (0, said)
    record = json.loads((out / "layercoop.json").read_text())
    assert record["cost"]["pruned"]["decode_tok_s"] == 6.0
    assert record["generations"][0]["pruned"]
    assert record["params"]["full"] == parameters_of(open_checkpoint(str(nf4)).model.parameters())


def test_what_a_repair_would_write_is_refused(nf4: Path, tmp_path: Path, run: Run) -> None:
    for asked in (["--repair"], ["--repair-text", "builtin"], ["--finalists", 2]):
        status, _, said = run("prune", nf4, "--remove", 1, "--out", tmp_path / "x", *asked)
        assert (status, "new weights, which this model's quantisation does not take" in said) == (2, True)


def test_force_does_not_replace_a_folder_that_holds_the_model(plain: Path, nf4: Path, run: Run) -> None:
    for out in (plain, plain.parent):
        status, _, said = run("quantise", plain, "--out", out, "--force")
        assert (status, "which is replaced as a whole: write to another folder" in said) == (2, True)
    assert (plain / "model.safetensors").exists()

"""What is written is opened again and compared: what holds, and that a broken export leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RunError
from layercoop_fast.export import checkpoint, proof
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.proof import Reference, Tolerance, Written, tolerance
from layercoop_fast.export.quantising import quantise_checkpoint
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.pruning.prune import prune
from layercoop_fast.texts.calibration import load_calibration

Run = Callable[..., tuple[int, str, str]]
QUICK = ["--method", "reverse", "--windows", 2, "--tokens", 24, "--no-cost", "--samples", 0, "--no-repair"]


def asked(**more: Any) -> dict[str, Any]:
    """A prune of a tiny model that takes no time."""
    quick = {"remove": 1, "method": "reverse", "windows": 2, "tokens": 24, "measure_cost": False, "samples": 0}
    return {**quick, "repair": False, "report": False, **more}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama") / "model", "llama", 4)


@pytest.fixture(scope="module")
def nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a shape that bitsandbytes' kernels for AVX512-BF16 take: 32 divides the outputs, 64 the inputs."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("nf4")
    quantise_checkpoint(str(save_tiny(folder / "plain", "llama", 4, **shape)), folder / "model")
    return folder / "model"


@torch.inference_mode()
def plain_logits(folder: Path, ids: Tensor) -> Tensor:
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


@torch.inference_mode()
def masked_logits(folder: Path, kept: list[int], ids: Tensor) -> Tensor:
    skeleton = Skeleton(open_checkpoint(str(folder)).model)
    context = skeleton.context(ids)
    hidden = context.embedding
    for layer in kept:
        hidden = context.run(layer, hidden)
    return context.logits(hidden)


def repack(model: PreTrainedModel) -> None:
    """Do to 4-bit weights what bitsandbytes does at a first pass on AVX512-BF16, on any processor."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and not getattr(state, "packing_format_for_cpu", False):
            module.weight.data, _ = _convert_weight_packed_for_cpu(module.weight.data, state)


def spoilt(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_record_says_what_was_compared_and_holds_the_folders_own_perplexity(llama: Path, tmp_path: Path) -> None:
    record = prune(str(llama), tmp_path / "out", **asked(heldout="builtin-code")).record
    assert record["verified"] == {
        "done": True,
        "compared": "logits",
        "tokens": 24,
        "largest_difference": 0.0,
        "largest_logit": pytest.approx(5, abs=5),
        "tolerance": 0.0,
        "perplexity": "folder",
        "reason": None,
    }
    assert record == json.loads((tmp_path / "out" / "layercoop.json").read_text())
    checkpoint = open_checkpoint(str(llama))
    for spec, part in (("builtin", record), ("builtin-code", record["heldout"])):
        text = load_calibration(spec, checkpoint.tokenizer, Skeleton(checkpoint.model), windows=2, tokens=24)
        own = [token_nll(plain_logits(tmp_path / "out", ids[None]), ids[None]).double().mean() for ids in text.ids]
        assert part["window_nll"]["pruned"] == [float(nll) for nll in own]
        assert part["nll"]["pruned"] == np.mean(own)
        assert part["ppl"]["pruned"] == pytest.approx(np.exp(np.mean(own)), rel=1e-12)
    assert record["worth"]["pruned"] == pytest.approx(record["ppl"]["full"] / record["ppl"]["pruned"], rel=1e-12)


@pytest.mark.parametrize(
    ("family", "arguments", "options"),
    [
        ("qwen3", {}, {"players": "sublayers", "remove": 3}),  # a tied head
        ("llama", {}, {"repair": True, "repair_text": ["builtin"], "repair_tokens": 256, "remove": 2}),
        ("llama", {}, {"dtype": "bfloat16"}),
        ("rwkv", {"rescale_every": 2}, {}),
        ("mixtral", {}, {}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"remove": 2}),
    ],
)
def test_what_is_compared_holds(
    tmp_path: Path, family: str, arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    model = save_tiny(tmp_path / "model", family, 4, **arguments)
    verified = prune(str(model), tmp_path / "out", **asked(**options)).record["verified"]
    assert verified["done"]
    assert verified["tolerance"] == (2e-5 if family in ("mixtral", "gpt2") else 0.0)
    assert verified["largest_difference"] <= verified["tolerance"] * verified["largest_logit"]


def test_a_nested_family_is_that_of_a_proven_folder(llama: Path, tmp_path: Path) -> None:
    options = asked(method="coop", nested=True, remove=2)
    record = prune(str(llama), tmp_path / "out", **options).record
    assert record["verified"]["largest_difference"] == 0.0
    assert record["nested"]["sizes"][-1]["ppl"] == pytest.approx(record["ppl"]["pruned"], rel=1e-5)


def test_streamed_blocks_are_compared_block_by_block(llama: Path, tmp_path: Path) -> None:
    for players in ("layers", "sublayers"):
        record = prune(str(llama), tmp_path / players, **asked(offload=True, players=players)).record
        assert record["verified"]["compared"] == "logits, block by block"
        assert (record["verified"]["largest_difference"], record["verified"]["perplexity"]) == (0.0, "folder")
    opened = open_checkpoint(str(llama), offload=True)
    halves = {2: ["self_attn.o_proj.weight"]}
    where = {"blocks_path": "model.layers", "streamed": opened.streamed}
    export_checkpoint(opened.model, [0, 2], tmp_path / "halved", zeroed=halves, **where)
    assert not load_file(tmp_path / "halved" / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"].any()


def test_scales_that_bitsandbytes_repacks_are_written_as_they_were(nf4: Path, tmp_path: Path) -> None:
    """bitsandbytes 0.50 on AVX512-BF16: its own way back loses the scales, and breaks the model in memory."""
    model = open_checkpoint(str(nf4)).model
    skeleton = Skeleton(model)
    stored = load_file(nf4 / "model.safetensors")
    with torch.inference_mode():
        before = model(torch.arange(48)[None], use_cache=False).logits
    for _ in range(2):
        repack(model)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items() if name in stored)
    with torch.inference_mode():
        assert torch.equal(model(torch.arange(48)[None], use_cache=False).logits, before)
    repack(model)
    export_checkpoint(model, [0, 2], tmp_path / "pruned", blocks_path=skeleton.blocks_path)
    pruned = load_file(tmp_path / "pruned" / "model.safetensors")
    for name, tensor in pruned.items():
        assert torch.equal(tensor, stored[name.replace("layers.1.", "layers.2.")]), name


def test_a_model_quantised_while_it_was_opened_is_written_from_memory(nf4: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(nf4.parent / "plain", quantization_config=how).eval()
    path = Skeleton(model).blocks_path
    repack(model)
    export_checkpoint(model, [1, 3], tmp_path / "pruned", blocks_path=path)
    assert "model.layers.0.mlp.up_proj.weight.nested_absmax" in load_file(tmp_path / "pruned" / "model.safetensors")
    with quiet_transformers():
        again = AutoModelForCausalLM.from_pretrained(nf4.parent / "plain", quantization_config=how).eval()
    repack(again)
    with pytest.raises(RunError.__base__, match="has run before, and bitsandbytes has repacked its weights"):
        Skeleton(again)


def test_a_pruned_nf4_checkpoint_is_the_masked_model(nf4: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    status, _, said = run("prune", nf4, "--remove", 2, *QUICK, "--out", out)
    assert (status, said) == (0, said)
    record = json.loads((out / "layercoop.json").read_text())
    assert (record["verified"]["largest_difference"], record["verified"]["tolerance"]) == (0.0, 0.0)
    ids = torch.arange(3, 60)[None]
    assert torch.equal(plain_logits(out, ids), masked_logits(nf4, record["kept"], ids))


def test_int8_of_bitsandbytes_goes_the_same_way(nf4: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            nf4.parent / "plain", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )
        model.save_pretrained(tmp_path / "int8")
    opened = open_checkpoint(str(tmp_path / "int8")).model
    export_checkpoint(opened, [0, 3], tmp_path / "out", blocks_path="model.layers")
    ids = torch.arange(3, 60)[None]
    assert torch.equal(plain_logits(tmp_path / "out", ids), masked_logits(tmp_path / "int8", [0, 3], ids))


# An export that is broken on purpose: one line with the figures, and nothing is left.


def refused(status: int, said: str, out: Path) -> None:
    assert status == 1, said
    (line,) = [line for line in said.splitlines() if "kernels-community" not in line]
    assert "the written checkpoint is not the masked model" in line
    assert "nothing was written" in line
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_a_tensor_that_changes_on_its_way_is_found(
    llama: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint._save

    def spoil(pruned: PreTrainedModel, model: PreTrainedModel, tokenizer: Any, folder: Path, *rest: Any) -> None:
        save(pruned, model, tokenizer, folder, *rest)
        spoilt(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3, 5].add_(1e-3))

    monkeypatch.setattr(checkpoint, "_save", spoil)
    status, _, said = run("prune", llama, "--remove", 1, *QUICK, "--out", tmp_path / "out")
    refused(status, said, tmp_path / "out")
    assert "logits differ by up to" in said
    assert "must agree bit for bit" in said
    status, _, said = run("prune", llama, "--remove", 1, *QUICK, "--out", tmp_path / "out", "--no-verify")
    assert (status, said) == (0, said)
    record = json.loads((tmp_path / "out" / "layercoop.json").read_text())
    assert (record["verified"]["done"], record["verified"]["reason"]) == (False, "not asked for")
    assert "--no-verify" in record["command"]


def test_layers_in_another_order_are_found(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function of the library too."""
    renumber = checkpoint._renumbered

    def swapped(tensors: Mapping[str, Any], kept: list[int], *rest: Any) -> dict[str, Any]:
        return renumber(tensors, kept[::-1], *rest)

    monkeypatch.setattr(checkpoint, "_renumbered", swapped)
    model = open_checkpoint(str(llama)).model
    with pytest.raises(RunError, match="the written checkpoint is not the masked model"):
        export_checkpoint(model, [0, 2], tmp_path / "out", blocks_path="model.layers")
    assert not any(tmp_path.iterdir())


def test_a_factor_that_is_not_folded_in_is_found(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model", "gpt2", 4, scale_attn_by_inverse_layer_idx=True)
    monkeypatch.setattr(checkpoint, "_fold_inverse_layer_scale", lambda *_, **__: None)
    status, _, said = run("prune", model, "--remove", 1, *QUICK, "--out", tmp_path / "out")
    refused(status, said, tmp_path / "out")


def test_a_repair_that_is_forgotten_is_found(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repair = asked(repair=True, repair_text=["builtin"], repair_tokens=256, remove=2)
    assert prune(str(llama), tmp_path / "good", **repair).record["repair"]["kept"]
    monkeypatch.setattr("layercoop_fast.repair.fit.Repaired.tensors", lambda self: {})
    with pytest.raises(RunError, match="the written checkpoint is not the masked model"):
        prune(str(llama), tmp_path / "out", **repair)
    assert not (tmp_path / "out").exists()


def test_repacked_scales_are_found(nf4: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault as it was: scales from memory, bf16 and transposed, under the names of the loaded ones."""
    stored = checkpoint.stored_tensors

    def repacked(model: PreTrainedModel, path: str) -> dict[str, Tensor]:
        tensors = stored(model, path)
        for name in [name for name in tensors if name.endswith(".absmax")]:
            outputs = model.get_submodule(name.removesuffix(".weight.absmax")).out_features
            tensors[name] = tensors[name].reshape(outputs, -1).T.contiguous().bfloat16()
        return tensors

    monkeypatch.setattr(checkpoint, "stored_tensors", repacked)
    status, _, said = run("prune", nf4, "--remove", 1, *QUICK, "--out", tmp_path / "out")
    assert status == 1
    assert "the written checkpoint" in said
    assert not any(tmp_path.iterdir())


def test_a_config_that_matters_only_further_on_is_found_by_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few dozen tokens are the first ones; a window that is cut short shows in the perplexity behind them."""
    model = save_tiny(tmp_path / "model", "mistral", 4, sliding_window=64, max_position_embeddings=256)
    save = checkpoint._save

    def spoil(pruned: PreTrainedModel, original: PreTrainedModel, tokenizer: Any, folder: Path, *rest: Any) -> None:
        save(pruned, original, tokenizer, folder, *rest)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 50}))

    monkeypatch.setattr(checkpoint, "_save", spoil)
    with pytest.raises(RunError, match="its NLL of the calibration text is"):
        prune(str(model), tmp_path / "out", **asked(tokens=200))


def test_without_the_memory_for_it_the_folder_says_that_nothing_was_compared(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "free_memory", lambda device: 1000)
    with pytest.warns(UserWarning, match="was not compared with the masked pass: not enough memory to open it again"):
        record = prune(str(llama), tmp_path / "out", **asked()).record
    assert not record["verified"]["done"]
    assert "1,000 are free" in record["verified"]["reason"]
    assert (tmp_path / "out" / "config.json").exists()
    with pytest.warns(UserWarning, match="was not compared with the masked pass"):
        export_checkpoint(open_checkpoint(str(llama)).model, [0], tmp_path / "lib", blocks_path="model.layers")


def test_a_folder_that_does_not_run_is_a_line(llama: Path) -> None:
    model = open_checkpoint(str(llama)).model
    del model.lm_head
    with pytest.raises(RunError, match="does not run: AttributeError"):
        Written(model).logits(torch.arange(5)[None])


def test_differences_are_measured_whatever_is_in_the_logits() -> None:
    def checked(got: list[float], share: float) -> float:
        class Same:
            streamed = False

            def logits(self, ids: Tensor) -> Tensor:
                return torch.tensor([[got]])

        wanted = torch.tensor([[[4.0, -8.0, -torch.inf, torch.nan]]])
        reference = Reference(torch.zeros(1, 1, dtype=torch.int64), wanted, Tolerance(share, 1.0))
        return float(reference.check(Same())["largest_difference"])  # type: ignore[arg-type]

    inf, nan = float("inf"), float("nan")
    assert checked([4, -8, -inf, nan], 0.0) == 0
    assert checked([4, -8.5, -inf, nan], 0.1) == 0.5
    for got in ([4, -8.5, -inf, nan], [4, -8, 1, nan], [4, nan, -inf, nan], [4, -8, -inf, 1], [4, -8, -inf]):
        with pytest.raises(RunError, match="is not the masked model"):
            checked(got, 0.05 if got[1] == -8.5 else 1.0)


def test_bit_for_bit_is_asked_where_kernels_and_weights_are_the_same(llama: Path) -> None:
    model = open_checkpoint(str(llama)).model
    assert tolerance(model).logits == 0.0
    assert tolerance(model, rounded=True).logits == 2e-5
    assert tolerance(open_checkpoint(str(llama), dtype="bfloat16").model).logits == 0.0
    assert tolerance(model.bfloat16()).logits == 3e-2  # its rotary frequencies are rounded, a folder's are not


# What else is in a checkpoint's folder.


@pytest.fixture
def linked(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint in the shape of the Hugging Face cache: a snapshot whose files are links to blobs beside it."""
    hub = tmp_path / "models--some--one"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    own = {"preprocessor_config.json": '{"own": 1}', "chat_template.jinja": "own {{ messages }}"}
    for file in llama.iterdir():
        if file.name not in own:
            own[file.name] = ""
    for number, name in enumerate(sorted(own)):
        content = own[name].encode() or (llama / name).read_bytes()
        (hub / "blobs" / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_links_within_the_cache_are_followed_and_others_left_out(linked: Path, tmp_path: Path, run: Run) -> None:
    link = tmp_path / "link"
    link.symlink_to(linked)
    status, _, said = run("prune", link, "--remove", 1, *QUICK, "--out", tmp_path / "out")
    assert (status, said) == (0, said)
    assert "outside the checkpoint" not in said
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"own": 1}'
    assert "own" in (tmp_path / "out" / "chat_template.jinja").read_text()
    secret = tmp_path / "secret"
    secret.write_text("a password")
    for name in ("preprocessor_config.json", "chat_template.jinja"):
        (linked / name).unlink()
        (linked / name).symlink_to(secret)
    with pytest.warns(UserWarning, match="outside the checkpoint.s folder") as said:
        assert run("prune", link, "--remove", 1, *QUICK, "--out", tmp_path / "again")[0] == 0
    assert len(said) == 2
    assert not any("password" in file.read_text(errors="replace") for file in (tmp_path / "again").iterdir())

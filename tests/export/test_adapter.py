"""LoRA adapters on pruned models: peft loads them, and the logits are those of the full model under the mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.errors import RequestError
from layercoop_fast.export.adapter import renumber_adapter
from layercoop_fast.export.checkpoint import export_checkpoint

# Of the versions of peft and transformers together, and of weights that tests tie or not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

L, KEPT = 6, [0, 2, 3, 5]
IDS = torch.arange(20)[None] * 11 % 300
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h"}


def pruned(folder: Path, family: str = "llama", zeroed: dict[int, list[str]] | None = None) -> Path:
    export_checkpoint(tiny_model(family, L), KEPT, folder, blocks_path=LAYERS[family], zeroed=zeroed, verify=False)
    halves = {f"{layer}.mlp" for layer in zeroed or {}}
    removed = [*sorted(set(range(L)) - set(KEPT)), *sorted(halves)]
    kept: list[Any] = [layer if f"{layer}.mlp" not in halves else f"{layer}.attn" for layer in KEPT]
    (folder / "layercoop.json").write_text(json.dumps({"model": "org/Base", "removed": removed, "kept": kept}))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tmp_path_factory.mktemp("adapter") / "pruned")


def adapted(folder: Path, family: str = "llama", base: str = "somewhere/base", **how: Any) -> PreTrainedModel:
    """A full model with an adapter of random numbers, which is saved."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **how})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = peft.get_peft_model(tiny_model(family, L), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    return model.eval()


@contextmanager
def without(model: Any, family: str, removed: set[int]) -> Iterator[None]:
    """While open, the model runs without these blocks."""
    blocks = [block for i, block in enumerate(model.base_model.model.get_submodule(LAYERS[family])) if i in removed]
    for block in blocks:
        block.forward = lambda hidden, *_, **__: hidden
    yield
    for block in blocks:
        del block.forward


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "all layers": ("llama", {}),
    "some layers": ("llama", {"layers_to_transform": [1, 2, 5], "layers_pattern": "layers"}),
    "ranks and alphas by name": (
        "llama",
        {
            "rank_pattern": {"layers.2.self_attn.q_proj": 7, "layers.1.mlp.down_proj": 2, "down_proj": 3},
            "alpha_pattern": {r"model.layers.(3|4).*": 20, "^model.layers.5.self_attn.q_proj": 5},
        },
    ),
    "modules by number": (
        "llama",
        {"target_modules": ["layers.2.mlp.up_proj", "layers.4.mlp.up_proj", "q_proj"]},
    ),
    "a pattern of modules": ("llama", {"target_modules": r".*layers\.(1|3|5)\..*(up|gate)_proj"}),
    "dora, rslora, saved head": ("llama", {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True, "lora_bias": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_full_model_under_the_mask(case: str, small: Path, tmp_path: Path) -> None:
    family, how = CASES[case]
    folder = small if family == "llama" else pruned(tmp_path / "pruned", family)
    model = adapted(tmp_path / "full", family, **how)
    done = renumber_adapter(tmp_path / "full", folder, tmp_path / "out")
    assert done.modules["full"] > done.modules["pruned"] > 0
    assert set(done.layers["pruned"]) == {KEPT.index(layer) for layer in done.layers["full"] if layer in KEPT}
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(base)
    with without(model, family, set(range(L)) - set(KEPT)):
        wanted = logits(model)
    got = logits(peft.PeftModel.from_pretrained(base, tmp_path / "out").eval())
    assert torch.equal(got, wanted)
    assert (got - plain).abs().max() > 0.1  # the adapter does something


def test_what_is_not_of_this_model_is_refused(small: Path, tmp_path: Path) -> None:
    adapted(tmp_path / "full", base="org/other")
    with pytest.raises(RequestError, match="is one of org/other, and the model was pruned from org/Base"):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out")
    assert renumber_adapter(tmp_path / "full", small, tmp_path / "out", any_base=True).layers["pruned"] == [0, 1, 2, 3]
    with pytest.raises(RequestError, match="exists already"):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out", any_base=True)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"layers_to_transform": [1, 4], "layers_pattern": "layers"}, "changes only layers that were removed"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "counts the layers of 'h'"),
    ],
)
def test_layers_that_are_not_there(how: dict[str, Any], reason: str, small: Path, tmp_path: Path) -> None:
    adapted(tmp_path / "full", **{**how, "layers_pattern": "layers"})
    config = tmp_path / "full" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **how}))
    with pytest.raises(RequestError, match=reason):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"peft_type": "IA3"}, "of the kind 'IA3', and only LORA"),
        ({"layer_replication": [[0, 4], [2, 6]]}, "layer_replication"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
        ({"rank_pattern": [3]}, "rank_pattern is no object"),
        ({"alpha_pattern": {"(.+)+!": 3}}, "too involved"),
        ({"layers_to_transform": [0], "layers_pattern": 5}, "is damaged"),
    ],
)
def test_configs_that_cannot_be_renumbered(changed: dict[str, Any], reason: str, small: Path, tmp_path: Path) -> None:
    adapted(tmp_path / "full")
    config = tmp_path / "full" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(RequestError, match=reason):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out")


def test_weights_of_another_model_and_damaged_ones(small: Path, tmp_path: Path) -> None:
    adapted(tmp_path / "full")
    file = tmp_path / "full" / "adapter_model.safetensors"
    tensors = load_file(file)

    def refused(changed: dict[str, torch.Tensor], reason: str) -> None:
        save_file(changed, file)
        with pytest.raises(RequestError, match=reason):
            renumber_adapter(tmp_path / "full", small, tmp_path / "out")

    first = next(iter(tensors))
    refused({**tensors, first: torch.ones(4, 17)}, "matrix of model.layers.0.mlp.down_proj is")
    refused({name.replace("mlp", "ffn"): one for name, one in tensors.items()}, "which the pruned model does not have")
    refused(
        {name.replace("model.layers", "transformer.h"): one for name, one in tensors.items()}, "another architecture"
    )
    refused(
        {name.replace("layers.5.", "layers.6."): one for name, one in tensors.items()}, "that was pruned had 6 layers"
    )
    refused({"a": torch.ones(2)}, "not named as peft names")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RequestError, match="damaged safetensors"):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out")
    file.unlink()
    (file.parent / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="save it as safetensors"):
        renumber_adapter(tmp_path / "full", small, tmp_path / "out")


def test_a_removed_half_cannot_be_adapted(tmp_path: Path) -> None:
    folder = pruned(tmp_path / "pruned", zeroed={2: ["mlp.down_proj.weight"]})
    adapted(tmp_path / "full")
    with pytest.raises(RequestError, match=r"layers.2.mlp.down_proj, and that half of layer 2 was removed"):
        renumber_adapter(tmp_path / "full", folder, tmp_path / "out")
    adapted(tmp_path / "attention", target_modules=["q_proj"])
    assert renumber_adapter(tmp_path / "attention", folder, tmp_path / "out").modules == {"full": 6, "pruned": 4}


def test_the_command_says_what_it_did(small: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    adapted(tmp_path / "full")
    status, said, _ = run("adapter", tmp_path / "full", "--from", small, "--out", tmp_path / "out")
    assert (status, said.splitlines()[0][:39]) == (0, "12 → 8 modules, of 6 → 4 layers. Writte")
    save_tiny(tmp_path / "plain")
    status, _, error = run("adapter", tmp_path / "plain", "--from", small, "--out", tmp_path / "o2")
    assert status == 2
    assert "adapter_config.json cannot be read" in error

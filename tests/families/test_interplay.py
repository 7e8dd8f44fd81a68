"""A pruned checkpoint in the hands of the libraries around transformers: nothing of ours is left in it to trip over."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.engine.loading import quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.export.checkpoint import export_checkpoint

FAMILIES = ["llama", "rwkv"]


@pytest.fixture(scope="module", params=FAMILIES)
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: the tiny model of a family without its first block, with a tokenizer."""
    out: Path = tmp_path_factory.mktemp("interplay") / request.param
    model = tiny_model(request.param, 3)
    export_checkpoint(model, [1, 2], out, blocks_path=Skeleton(model).blocks_path, tokenizer=tiny_tokenizer())
    return out


def opened(folder: Path, **options: Any) -> PreTrainedModel:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


IDS = torch.arange(3, 19)[None]


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits(pruned: Path) -> None:
    """Traced as one graph (a family that loops over tokens may break it) and run by the graph's own operations."""
    model = opened(pruned)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=model.config.model_type == "llama")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of while it traces is its own affair
        got = compiled(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(got, model(input_ids=IDS, use_cache=False).logits, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_accelerate_maps_its_blocks_to_devices(pruned: Path, tmp_path: Path) -> None:
    """One block on the CPU, the other left on disk until it runs."""
    model = opened(pruned)
    path = Skeleton(model).blocks_path
    places: dict[str, Any] = {
        name: "cpu" for name, module in model.named_modules() if name and not any(module.children())
    }
    places = {name: place for name, place in places.items() if not name.startswith(f"{path}.")}
    places |= {f"{path}.0": "cpu", f"{path}.1": "disk"}
    for name, _ in model.named_parameters():  # of modules that hold parameters beside their children
        if not any(name.startswith(f"{part}.") for part in places):
            places[name] = "cpu"
    mapped = opened(pruned, device_map=places, offload_folder=tmp_path / "offload")
    assert {str(place) for place in mapped.hf_device_map.values()} == {"cpu", "disk"}
    with torch.inference_mode():
        got = mapped(input_ids=IDS, use_cache=False).logits
        assert torch.equal(got, opened(pruned)(input_ids=IDS, use_cache=False).logits)


def test_the_text_generation_pipeline_writes_what_generate_writes(pruned: Path) -> None:
    from transformers import pipeline

    with quiet_transformers():
        writer = pipeline("text-generation", model=str(pruned), device="cpu")
    said = writer("once", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    model, tokenizer = opened(pruned), writer.tokenizer
    ids = tokenizer("once", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert said == tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)


def test_trainer_heals_it(pruned: Path, tmp_path: Path) -> None:
    """A few steps on one sentence lower its loss, and what is saved opens again."""
    from transformers import Trainer, TrainingArguments

    model = opened(pruned)
    batch = {"input_ids": IDS[0], "labels": IDS[0]}
    with torch.inference_mode():
        before = float(model(input_ids=IDS, labels=IDS, use_cache=False).loss)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=5,
            learning_rate=1e-2,
            per_device_train_batch_size=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=[batch] * 5)
        trainer.train()
        trainer.save_model(str(tmp_path / "healed"))
    healed = opened(tmp_path / "healed")
    with torch.inference_mode():
        after = float(healed(input_ids=IDS, labels=IDS, use_cache=False).loss)
    assert after < before - 0.1
    assert len(Skeleton(healed).blocks) == 2

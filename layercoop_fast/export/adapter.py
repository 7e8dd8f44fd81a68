"""LoRA adapters of the full model on a pruned one: tensors are renumbered, those of removed layers are left out.

    renumber_adapter(Path("my-adapter"), Path("pruned"), Path("my-adapter-pruned"))

What the config of an adapter says by patterns over module names (ranks, alphas, target modules, layers) is worked out
for each module under its old name, and written for its new one. The result is the full model with the adapter under the
mask: peft computes nothing that depends on a layer's number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layercoop_fast.engine.loading import model_on_meta
from layercoop_fast.engine.structure import find_blocks
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.adapter_config import ROOT, Names, module_of, rewritten
from layercoop_fast.files import RECORD, check_spared, check_target, reason, written_whole
from layercoop_fast.inputs.libraries import library_reads
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import as_saved, read_json
from layercoop_fast.masks.halves import PARTS
from layercoop_fast.masks.text import removed_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Renumbered:
    """What `renumber_adapter` did.

    Attributes:
        out: the folder.
        modules: number of modules that the adapter changes, of the full model (`full`) and of the pruned (`pruned`).
        layers: numbers of the layers that it changes, of the full model (`full`) and of the pruned (`pruned`).
    """

    out: Path
    modules: dict[str, int]
    layers: dict[str, list[int]]


def renumber_adapter(
    adapter: Path, pruned: Path, out: Path, *, any_base: bool = False, force: bool = False
) -> Renumbered:
    """Write the adapter of a full model as one of the pruned model.

    Args:
        adapter: folder that peft's `save_pretrained` wrote: `adapter_config.json` (LoRA) and
            `adapter_model.safetensors`.
        pruned: folder that `prune` wrote.
        out: folder to write.
        any_base: accept an adapter whose config names another base model than the one that was pruned.
        force: replace `out` if it exists.

    Every tensor is read back and compared before the folder takes its place.

    Raises `RequestError` for an adapter of another kind or model, and where it changes half a layer that was removed;
    `RunError` where the folder cannot be written.
    """
    check_target(out, folder=True, force=force)
    for what, place in (("adapter", adapter), ("pruned model", pruned)):
        check_spared(out, what, place, "write to another folder")
    config = _config(adapter)
    removed, n_layers = removed_of(pruned, "pruned=")
    record = read_json(pruned / RECORD)
    with as_saved(pruned / RECORD):
        if not any_base:
            _check_base(str(record["model"]), config.get("base_model_name_or_path"))
    tensors = _tensors(adapter)
    model = model_on_meta(str(pruned))
    blocks = find_blocks(model).path
    whole = {layer for layer, _ in removed if {(layer, part) for part in PARTS} <= removed}
    number = {old: new for new, old in enumerate(layer for layer in range(n_layers) if layer not in whole)}
    names = Names(f"{blocks}.", number, n_layers)
    modules = {name: module_of(name) for name in tensors}
    _check_halves(model, names, modules.values(), {layer for layer, _ in removed} - whole, pruned)
    renamed = {
        f"{ROOT}{new}": tensor
        for name, tensor in tensors.items()
        if (new := names.renamed(name.removeprefix(ROOT))) is not None
    }
    if not any(names.layer(name.removeprefix(ROOT)) is not None for name in renamed):
        raise RequestError(f"{adapter} changes only layers that were removed: nothing of it is left on {pruned}")
    _check_shapes(model, renamed)
    with as_saved(adapter / CONFIG):
        written = rewritten(config, names, tensors, str(pruned))
    with written_whole(out, folder=True, force=force) as folder:
        try:
            save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise RunError(f"the adapter was not written: {reason(error)}") from error
        (folder / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        back = load_file(folder / WEIGHTS)
        if back.keys() != renamed.keys() or any(not _same(back[name], renamed[name]) for name in back):
            raise RunError("the adapter that was read back is not the one that was written; nothing was written")
    touched = [names.layer(name) for name in modules.values()]
    left = [number[layer] for layer in touched if layer in number]
    return Renumbered(
        out,
        {"full": len(set(modules.values())), "pruned": len({module_of(name) for name in renamed})},
        {"full": sorted({layer for layer in touched if layer is not None}), "pruned": sorted(set(left))},
    )


def _config(adapter: Path) -> dict[str, Any]:
    """The config of a LoRA adapter that can be renumbered."""
    if not adapter.is_dir():
        raise RequestError(f"{adapter} is no folder: give one that peft's save_pretrained wrote")
    config = read_json(adapter / CONFIG, hint="give a folder that peft's save_pretrained wrote")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise RequestError(f"{adapter} is an adapter of the kind {kind!r}, and only LORA is renumbered")
    if config.get("layer_replication"):
        raise RequestError(
            f"{adapter} repeats layers of its base (layer_replication), whose numbers mean something else"
        )
    return config


def _check_base(pruned_from: str, base: Any) -> None:
    """Raise `RequestError` where an adapter names another base than the model that was pruned, by the last part."""
    if not isinstance(base, str) or not base:
        return
    own, other = (name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (pruned_from, base))
    if own != other:
        raise RequestError(
            f"the adapter is one of {base}, and the model was pruned from {pruned_from}: if these are the same "
            "weights, pass any_base=True"
        )


def _tensors(adapter: Path) -> dict[str, Tensor]:
    file = adapter / WEIGHTS
    if not file.is_file():
        hint = "save it as safetensors" if (adapter / "adapter_model.bin").exists() else "it is not whole"
        raise RequestError(f"{adapter} holds no {WEIGHTS}: {hint}")
    read_header(file)
    with library_reads(str(file)):
        tensors: dict[str, Tensor] = load_file(file)
    for name in tensors:
        if not name.startswith(ROOT):
            raise RequestError(f"{file} has a tensor {name!r}, which is not named as peft names those of an adapter")
    if not any(".lora_" in name for name in tensors):
        raise RequestError(f"{file} holds no LoRA matrices")
    return tensors


def _check_halves(model: nn.Module, names: Names, modules: Iterable[str], halved: set[int], pruned: Path) -> None:
    """Raise `RequestError` for a module within half a layer that was removed, and for layers that are not there.

    A removed half is written as zeros in its output projection: the child of the block that holds a matrix of zeros is
    that half.
    """
    touched = {module: names.layer(module) for module in modules}
    silent: dict[int, set[str]] = {}  # by layer: finding them reads all of the layer
    if not any(layer is not None for layer in touched.values()):
        raise RequestError(
            f"the adapter changes no module under {names.prefix.rstrip('.')}, where {pruned} has its layers: it is one "
            f"of another architecture (it has {min(touched)})"
        )
    for module, layer in touched.items():
        if layer is not None and layer >= names.n_layers:
            raise RequestError(
                f"the adapter changes {module}, and the model that was pruned had {names.n_layers} layers"
            )
        if layer is None or layer not in halved:
            continue
        child = module[len(names.prefix) :].split(".", 2)[1]
        if layer not in silent:
            silent[layer] = _silent_children(pruned, f"{names.prefix}{names.number[layer]}.")
        if child in silent[layer]:
            raise RequestError(
                f"the adapter changes {module}, and that half of layer {layer} was removed: fit the adapter again on "
                f"{pruned}, or prune whole layers"
            )


def _silent_children(pruned: Path, prefix: str) -> set[str]:
    """Children of a block, by names, that hold a matrix of zeros alone."""
    from safetensors import safe_open

    found, seen = set(), False
    for file in sorted(pruned.glob("*.safetensors")):
        with library_reads(str(file)), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no dict)
                if name.startswith(prefix) and name.endswith(".weight"):
                    seen = True
                    tensor = opened.get_tensor(name)
                    if tensor.dim() >= 2 and not tensor.any():
                        found.add(name[len(prefix) :].split(".", 1)[0])
    if not seen:
        raise RequestError(
            f"the files of {pruned} name their weights in another way than the model: prune whole layers"
        )
    return found


def _check_shapes(model: nn.Module, renamed: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` where the pruned model has no such module, or one of other sizes."""
    modules = dict(model.named_modules())
    for name, tensor in renamed.items():
        path = module_of(name)
        if path not in modules:
            raise RequestError(
                f"the adapter changes {path}, which the pruned model does not have: it is of another model"
            )
        weight = getattr(modules[path], "weight", None)
        if ".lora_" not in name or weight is None or weight.dim() != 2 or tensor.dim() != 2:
            continue
        # A of a linear map is [rank, inputs], B [outputs, rank]; of a Conv1D the weight is transposed.
        size = tensor.shape[1] if name.endswith(("lora_A.weight", "lora_embedding_A")) else tensor.shape[0]
        if size not in weight.shape:
            raise RequestError(
                f"the adapter's matrix of {path} is {list(tensor.shape)}, and the pruned model's weight there is "
                f"{list(weight.shape)}: it is of another model"
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bits."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    )

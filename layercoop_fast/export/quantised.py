"""Quantised modules in a pruned model: those of the original replace the plain ones.

A quantisation library replaces linear layers by its own modules when a checkpoint is loaded. The pruned model, built
from its config, has plain ones; so the quantised modules of the kept blocks are moved into it unchanged, and its config
names the library as before. Such modules may hold other bytes in memory than in the files: GPTQ and AWQ kernels repack
codes, bitsandbytes repacks codes and scales on some processors. So the tensors are copied from the checkpoint's files,
where these hold the quantised tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import CONFIG_NAME, cached_file

from layercoop_fast.engine.quantised import is_quantised, method_of
from layercoop_fast.engine.weight_files import files_of
from layercoop_fast.errors import RequestError

# The tensors of torchao are subclasses that can be saved, and no kernel repacks them after loading.
_WRITTEN_FROM_MEMORY = ("torchao",)


def graft_quantised(
    pruned: PreTrainedModel, model: PreTrainedModel, kept: Sequence[int], prefix: str
) -> tuple[str, ...]:
    """Put the quantised modules of `model` into `pruned`, in place; return the prefixes of their tensors' names.

    `kept` are the original numbers of the blocks of `pruned`, `prefix` is the path of the block list with a dot. A
    library that keeps plain modules and quantises their tensors (torchao) has no such modules; its tensors are treated
    like all others.

    Raises `RequestError` where the library cannot save what it has loaded.
    """
    if not is_quantised(model):
        return ()
    quantizer: Any = model.hf_quantizer
    if not quantizer.is_serializable():
        method = method_of(model.config)
        raise RequestError(f"transformers cannot write checkpoints of {method}: prune first and quantise the result")
    pruned.hf_quantizer = quantizer
    for attribute in ("is_loaded_in_4bit", "is_4bit_serializable", "is_loaded_in_8bit", "is_8bit_serializable"):
        if hasattr(model, attribute):
            setattr(pruned, attribute, getattr(model, attribute))
    pruned.is_quantized = True
    grafted = []
    for name, module in list(pruned.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        original_name = name
        if name.startswith(prefix):
            number, rest = name[len(prefix) :].split(".", 1)
            original_name = f"{prefix}{kept[int(number)]}.{rest}"
        original = model.get_submodule(original_name)
        if type(original) is not type(module) and _features(original) == _features(module):
            pruned.set_submodule(name, original)
            grafted.append(f"{name}.")
    return tuple(grafted)


def is_copied(model: PreTrainedModel) -> bool:
    """Whether the tensors of a pruned model are copied from the files of `model`, where these hold quantised tensors.

    A model that was quantised while it was opened has no such files and is written from memory.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    return (
        quantizer is not None
        and bool(getattr(quantizer, "pre_quantized", False))
        and method_of(model.config) not in _WRITTEN_FROM_MEMORY
    )


def stored_tensors(model: PreTrainedModel, blocks_path: str) -> dict[str, Tensor]:
    """All tensors of the checkpoint that the model was opened from, of any shapes [...], as its files hold them.

    Raises `RequestError` where its safetensors files are missing, or use other names of blocks than the model.
    """
    folder = checkpoint_folder(model)
    method = method_of(model.config)
    if folder is None or not any(folder.glob("*.safetensors")):
        raise RequestError(
            f"tensors of {method} are copied from the model's files, and {model.name_or_path!r} is not a folder with "
            "safetensors files: open the model from one"
        )
    tensors: dict[str, Tensor] = {}
    for file in files_of(folder):
        tensors |= load_file(file)
    blocks: Any = model.get_submodule(blocks_path)
    for number in range(len(blocks)):
        if not any(name.startswith(f"{blocks_path}.{number}.") for name in tensors):
            raise RequestError(
                f"{folder} keeps its weights under other names than its modules (no {blocks_path}.{number}), so "
                f"tensors of {method} cannot be copied from it: prune first and quantise the result"
            )
    return tensors


def checkpoint_folder(model: PreTrainedModel) -> Path | None:
    """The folder that a model was opened from, in the hub's cache where it was opened by name, or None."""
    name = model.name_or_path
    if not name:
        return None
    if not Path(name).is_dir():
        try:
            name = str(Path(cached_file(name, CONFIG_NAME, local_files_only=True)).parent)
        except OSError:  # it is not in the cache either
            return None
    return Path(name)


def _features(module: nn.Module) -> tuple[Any, Any]:
    """Numbers of inputs and of outputs of a linear map, plain or quantised."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return getattr(module, "in_features", None), getattr(module, "out_features", None)

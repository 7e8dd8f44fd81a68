"""Quantised modules in a pruned model: the original's own, put where the plain ones would stand.

A quantisation library replaces linear layers by modules of its own when a checkpoint is loaded. The pruned model, built
from its config, has plain ones; so each quantised module of a kept block is handed over as it is, scales and codes
untouched, and the config says as before by which library the weights are read. Some libraries lay codes out anew for
the machine's kernel once they are read (GPTQ, AWQ): of such models the tensors are copied from the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layercoop_fast.engine.quantised import is_quantised, method_of
from layercoop_fast.errors import RequestError

_REPACKED = ("gptq", "awq")


def graft_quantised(
    pruned: PreTrainedModel, model: PreTrainedModel, kept: Sequence[int], prefix: str
) -> tuple[str, ...]:
    """Put the quantised modules of `model` into `pruned`, in place; return the beginnings of their tensors' names.

    `kept` are the original numbers of the blocks of `pruned`, `prefix` is the path of the block list with a dot. Of a
    library that keeps plain modules and quantises their tensors (torchao) there is nothing to put, and the tensors go
    the way of all others.

    Raises `RequestError` where the library cannot write what it has read.
    """
    if not is_quantised(model):
        return ()
    quantizer: Any = model.hf_quantizer
    if not quantizer.is_serializable():
        method = method_of(model.config)
        raise RequestError(
            f"transformers cannot write checkpoints of {method}: prune first and quantise what comes out"
        )
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


def is_repacked(model: PreTrainedModel) -> bool:
    """Whether the model's codes in memory are laid out otherwise than in its files, which nobody can write back."""
    return is_quantised(model) and method_of(model.config) in _REPACKED


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """All tensors of the folder that the model was opened from, as they lie there.

    Raises `RequestError` where it was no folder, or one without safetensors files.
    """
    files = sorted(Path(model.name_or_path).glob("*.safetensors"))
    if not files:
        raise RequestError(
            f"codes of {method_of(model.config)} are copied from its files, and {model.name_or_path!r} is no "
            "folder with safetensors files: give one"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return tensors


def _features(module: nn.Module) -> tuple[Any, Any]:
    """Numbers of inputs and outputs of a linear map, plain or quantised."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return getattr(module, "in_features", None), getattr(module, "out_features", None)

"""Which parameters of a model are trained, and adapters where it is low-rank matrices beside the weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.healing.options import Trained

RATES = {"all": 2e-4, "head+last": 3e-4, "lora": 1e-3, "norms": 3e-3}
"""The largest learning rate by default, by kind of what is trained."""

_ADAPTER = "default"


def select(skeleton: Skeleton, trained: Trained, seed: int) -> dict[str, nn.Parameter]:
    """Let the parameters that are trained require gradients, and no others; returns them by name, tensors [...].

    For adapters the model's linear layers are replaced by those of peft in place; `merged` puts them back.

    Raises `RequestError` where there is nothing of that kind, or peft is not installed.
    """
    model = skeleton.model
    model.requires_grad_(False)
    if trained.kind == "lora":
        _add_adapters(skeleton, trained.number, seed)
        names = {name for name, _ in model.named_parameters() if re.search(r"\.lora_[AB]\.", name)}
    else:
        names = set(_names(skeleton, trained))
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name in names and parameter.is_floating_point() and (trained.kind == "lora" or not _is_removed(parameter))
    }
    if not found:
        raise RequestError(f"the model has no parameters of the kind {trained.kind!r}: choose another train=")
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def _names(skeleton: Skeleton, trained: Trained) -> Iterator[str]:
    """Names of the parameters of a kind, shared ones by the first of theirs."""
    model = skeleton.model
    if trained.kind == "head+last" and trained.number > skeleton.n_layers:
        raise RequestError(
            f"train='head+last:{trained.number}' is more than the {skeleton.n_layers} blocks of the pruned model"
        )
    first = skeleton.n_layers - trained.number if trained.kind == "head+last" else 0
    prefix = f"{skeleton.blocks_path}."
    embeddings = {id(parameter) for parameter in _embeddings(model)}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{module_name}.{name}".lstrip(".")
            if trained.kind == "norms":
                if "norm" in type(module).__name__.lower():
                    yield whole
            elif whole.startswith(prefix):
                if int(whole[len(prefix) :].split(".", 1)[0]) >= first:
                    yield whole
            elif id(parameter) not in embeddings:
                yield whole


def _embeddings(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Tables of tokens and positions, a head that is one of them included."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters()
    yield from model.get_input_embeddings().parameters()


def _is_removed(parameter: Tensor) -> bool:
    """Whether a matrix is zero: the output projection of a removed half, which is to stay removed."""
    return parameter.dim() > 1 and not bool(parameter.any())


def _add_adapters(skeleton: Skeleton, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RequestError("train='lora:R' needs the extra: pip install 'layercoop-fast[lora]'") from error
    model = skeleton.model
    targets = [
        f"{skeleton.blocks_path}.{layer}.{name}"
        for layer, block in enumerate(skeleton.blocks)
        for name, module in block.named_modules()
        if type(module) in (nn.Linear, Conv1D) and not _is_removed(module.weight)
    ]
    if not targets:
        raise RequestError("the model's blocks have no linear layers that adapters could stand beside")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells that it sets what it can see for itself
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(model.dtype)


@torch.no_grad()
def merged(model: PreTrainedModel) -> None:
    """Add what adapters learnt to the weights, in fp32, and take them out of the model.

    Weights are new tensors: those of before may be the teacher's too.
    """
    from peft.tuners.lora import LoraLayer

    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            base = layer.get_base_layer()
            weight = base.weight.float() + layer.get_delta_weight(_ADAPTER)
            base.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, base)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)

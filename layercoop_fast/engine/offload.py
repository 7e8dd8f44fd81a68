"""Opening a model that need not fit into memory: the matrices of its blocks are streamed, everything else is loaded.

The model is made from its config with parameters on the meta device (buffers, such as rotary frequencies, are real).
Then the parameters outside the blocks, vectors, and parameters that blocks share are read, once. A matrix must be in
the files under its own name, or under that name with or without the prefix of the base model: other translations of
names are not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from layercoop_fast.engine.streamed import Matrix, StreamedBlocks
from layercoop_fast.engine.structure import find_blocks
from layercoop_fast.engine.weight_files import StoredTensor, WeightFiles
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.libraries import library_reads


@dataclass(frozen=True)
class Offloaded:
    """A model, its streamed blocks, and the names in its files that it does not use."""

    model: PreTrainedModel
    blocks: StreamedBlocks
    unexpected: frozenset[str]


@dataclass
class _Shared:
    """A parameter with all modules that hold it and all names that it has."""

    parameter: nn.Parameter
    names: list[str]
    places: list[tuple[nn.Module, str]]


def open_offloaded(
    name: str,
    config: PretrainedConfig,
    dtype: str | torch.dtype,
    *,
    mark: Callable[[str, Tensor], bytes],
    blocks: str | None = None,
    trust_remote_code: bool = False,
) -> Offloaded:
    """Make the model of a checkpoint folder without loading its blocks.

    Args:
        name: the folder.
        config: of the checkpoint.
        dtype: "auto", or the dtype that all weights are converted to while they are read.
        mark: as of `StreamedBlocks`: (name, tensor of any shape [...]) to the bytes that identify it.
        blocks: dotted path of the block list, where it is not found by itself.
        trust_remote_code: run Python code from the checkpoint.

    Raises `RequestError` for files that are missing, damaged or do not fit the config.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise RequestError(f"{name} is quantised: offload= reads plain weights only")
    files = WeightFiles(Path(name))
    config.name_or_path = name
    with _parameters_without_memory(), library_reads(name):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(config, files, dtype), trust_remote_code=trust_remote_code
        ).eval()
    _refuse_mixed_precision(name, model)
    if model.can_generate():
        model.generation_config = _generation_config(name)
    listed = find_blocks(model, blocks)
    used: set[str] = set()
    missing: list[str] = []
    streamed: list[list[Matrix]] = [[] for _ in listed.blocks]
    for shared in _parameters(model):
        stored = list(dict.fromkeys(found for given in shared.names if (found := _find(files, model, given))))
        used |= set(stored)
        if not stored:
            missing.append(shared.names[0])
            continue
        place = _fitting(files, stored[0], shared.parameter)
        layer = _layer_of(shared, listed.path)
        if layer is not None and shared.parameter.dim() > 1:
            streamed[layer].append(_matrix(shared, f"{listed.path}.{layer}.", place))
        else:
            _load(files, shared, stored)
    for given in model.state_dict().keys() & dict(model.named_buffers()).keys():
        if there := _find(files, model, given):
            used.add(there)
            buffer = model.get_buffer(given)
            files.read(_fitting(files, there, buffer), buffer)
        else:
            missing.append(given)
    unexpected = frozenset(files.tensors.keys() - used)
    if missing:
        raise RequestError(_why_missing(name, missing, unexpected))
    return Offloaded(model, StreamedBlocks(files, streamed, mark), unexpected)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Within the `with` block, parameters that modules get are moved to the meta device; buffers are left alone."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _dtype(config: PretrainedConfig, files: WeightFiles, dtype: str | torch.dtype) -> torch.dtype:
    """The requested dtype; for "auto" the config's, or else the first one in the files."""
    if isinstance(dtype, torch.dtype):
        return dtype
    stated = getattr(config, "dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    if isinstance(stated, torch.dtype):
        return stated
    floating = (tensor.dtype for tensor in files.tensors.values() if tensor.dtype.is_floating_point)
    return next(floating, torch.float32)


def _refuse_mixed_precision(name: str, model: PreTrainedModel) -> None:
    """Raise `RequestError` where transformers' loader would keep some modules of this family in fp32."""
    strict = bool(getattr(model, "_keep_in_fp32_modules_strict", None)) and model.dtype != torch.float32
    if strict or (getattr(model, "_keep_in_fp32_modules", None) and model.dtype == torch.float16):
        raise RequestError(f"{name} keeps some of its weights in fp32, which offload= cannot do: use float32 as dtype=")


def _generation_config(name: str) -> GenerationConfig:
    with library_reads(name):
        try:
            return GenerationConfig.from_pretrained(name)
        except OSError:
            return GenerationConfig.from_pretrained(name, config_file_name="config.json", _from_model_config=True)


def _parameters(model: nn.Module) -> list[_Shared]:
    """All parameters, each once, with all of their names and places."""
    found: dict[int, _Shared] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            shared = found.setdefault(id(parameter), _Shared(parameter, [], []))
            shared.names.append(f"{prefix}.{key}" if prefix else key)
            shared.places.append((module, key))
    return list(found.values())


def _find(files: WeightFiles, model: PreTrainedModel, name: str) -> str | None:
    """A parameter's name in the files: its own, or the one without or with the prefix of the base model."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in files.tensors:
            return candidate
    return None


def _fitting(files: WeightFiles, name: str, tensor: Tensor) -> StoredTensor:
    """The stored tensor of that name; `RequestError` unless it has the shape of `tensor`."""
    if files.tensors[name].shape != tuple(tensor.shape):
        raise RequestError(f"{files.folder}: its weights do not have the shapes of its config")
    return files.tensors[name]


def _layer_of(shared: _Shared, path: str) -> int | None:
    """The only block that holds a parameter; None where it is outside the blocks or in several."""
    layers = {
        int(name[len(path) + 1 :].split(".", 1)[0]) if name.startswith(f"{path}.") else None for name in shared.names
    }
    return layers.pop() if len(layers) == len(shared.names) == 1 else None


def _matrix(shared: _Shared, prefix: str, place: StoredTensor) -> Matrix:
    (name,), ((owner, key),) = shared.names, shared.places
    return Matrix(name, name.removeprefix(prefix), owner, key, shared.parameter, place)


def _load(files: WeightFiles, shared: _Shared, stored: Sequence[str]) -> None:
    """Read a parameter under one of its names in the files, and set it in all modules that hold it."""
    first, *others = stored
    read = torch.empty(shared.parameter.shape, dtype=shared.parameter.dtype)
    files.read(files.tensors[first], read)
    for other in others:
        again = torch.empty_like(read)
        if files.tensors[other].shape == tuple(read.shape):
            files.read(files.tensors[other], again)
        if files.tensors[other].shape != tuple(read.shape) or not torch.equal(read, again):
            raise RequestError(
                f"{files.folder} holds {first} and {other}, which differ although its config ties them: correct the "
                "config (usually tie_word_embeddings)"
            )
    loaded = nn.Parameter(read, requires_grad=False)
    for module, key in shared.places:
        module._parameters[key] = loaded


def _why_missing(name: str, missing: list[str], unexpected: frozenset[str]) -> str:
    here = [given for given in unexpected if given.split(".")[-1] == missing[0].split(".")[-1]] or sorted(unexpected)
    if len(unexpected) >= len(missing):
        return (
            f"{name} keeps its weights under other names than its modules ({min(here)}, no {missing[0]}), which are "
            "translated only when it is loaded as a whole: offload= cannot read them"
        )
    return f"{name} lacks {len(missing)} weights of its config ({missing[0]}, ...): it is incomplete"

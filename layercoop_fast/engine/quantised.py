"""Models whose weights a quantisation library holds: which one, how many parameters they stand for, in how many bytes.

Transformers opens them, whatever the library; here is what the rest of the package has to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from layercoop_fast.errors import RequestError

# Of each method that transformers names in a checkpoint: the module it needs, and how that is installed.
_LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "pip install 'layercoop-fast[bitsandbytes]'"),
    "torchao": ("torchao", "pip install 'layercoop-fast[torchao]'"),
    "gptq": ("gptqmodel", "pip install gptqmodel optimum"),
    "awq": ("gptqmodel", "pip install gptqmodel"),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "hqq": ("hqq", "pip install hqq"),
    "quanto": ("optimum.quanto", "pip install optimum-quanto"),
    "aqlm": ("aqlm", "pip install 'aqlm[cpu]'"),
}


def is_quantised(model: nn.Module) -> bool:
    """Whether a quantisation library holds some of the model's weights."""
    return getattr(model, "hf_quantizer", None) is not None


def method_of(config: Any) -> str | None:
    """The quantisation method that a config names, such as "bitsandbytes"; None where it names none."""
    said = getattr(config, "quantization_config", None)
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def check_library(name: str, config: Any) -> None:
    """Raise `RequestError` where the weights of `name` need a library that is not installed, with what to install."""
    method = method_of(config)
    module, install = _LIBRARIES.get(method or "", (None, ""))
    if module is not None and not _installed(module):
        raise RequestError(f"{name} is quantised with {method}, whose library is not installed: {install}")
    if method is not None and not _installed("accelerate"):
        raise RequestError(f"{name} is quantised, and transformers opens such models with accelerate: {install}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def parameters_of(parameters: Iterable[Tensor]) -> int:
    """How many numbers these parameters stand for; bitsandbytes keeps two of them in a byte."""
    return sum(_stands_for(parameter) for parameter in parameters)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """Bytes of these parameters in memory, scales of quantised ones included."""
    return sum(sum(part.numel() * part.element_size() for part in _parts(parameter)) for parameter in parameters)


def drop_weights(model: nn.Module) -> None:
    """Let go of all weights and buffers of a model that is not used any more; its modules stay.

    `model.to("meta")` does that too, but not for weights that a quantisation library holds.
    """
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(_empty(weight), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _stands_for(parameter: Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    """The plain tensors that a tensor is kept as."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        yield state.absmax
        if getattr(state, "state2", None) is not None:
            yield state.state2.absmax

"""Models whose weights a quantisation library holds: which one, how many parameters they stand for, in how many bytes.

Transformers opens them, whatever the library; here is what the rest of the package has to know.

bitsandbytes (0.50 and later) changes its 4-bit weights in memory at the first forward pass on a processor with
AVX512-BF16: codes are interleaved, scales are rounded to bf16 and transposed. Its way back, which `state_dict()` takes,
does not restore the scales, so that asking such a model for its tensors returns wrong ones and breaks the model.
`protect_scales` is called before the first pass: from then on `state_dict()` returns the tensors as they were loaded,
and the next pass repacks them again.
"""

from __future__ import annotations

import copy
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


# The attribute of a bitsandbytes state that holds the state as it was loaded.
_LOADED = "_as_loaded"


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


def protect_scales(model: nn.Module) -> None:
    """Keep the loaded scales of 4-bit bitsandbytes weights beside the repacked ones, for `state_dict()`; in place.

    That takes the bytes of the scales (an eighth of those of the codes) once more, where the library repacks at all.
    A model is protected once; more calls change nothing.

    Raises `RequestError` where the model has run, and was repacked, before it was protected.
    """
    if not is_quantised(model):
        return
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or hasattr(state, _LOADED):
            continue
        if getattr(state, "packing_format_for_cpu", False):
            raise RequestError(
                "this model has run before, and bitsandbytes has repacked its weights for this processor, which cannot "
                "be undone: open it anew"
            )
        setattr(state, _LOADED, copy.copy(state))  # repacking replaces the tensors of a state and writes into none
        module.register_state_dict_pre_hook(_unpack)  # type: ignore[no-untyped-call]


def _unpack(module: Any, prefix: str, keep_vars: bool) -> None:
    """Put codes and scales of a repacked 4-bit module back to what was loaded; the next forward pass repacks them."""
    state = module.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    loaded = getattr(state, _LOADED)
    state.original_nested = False  # scales are not recomputed, they are there
    codes, _ = _convert_weight_packed_for_cpu_inverse(module.weight.data, state)
    module.weight.data = codes
    restored = copy.copy(loaded)
    setattr(restored, _LOADED, loaded)
    module.weight.quant_state = module.quant_state = restored


def parameters_of(parameters: Iterable[Tensor]) -> int:
    """How many numbers these parameters stand for; bitsandbytes keeps two of them in a byte."""
    return sum(_stands_for(parameter) for parameter in parameters)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """Bytes of these parameters as they were loaded, scales of quantised ones included."""
    return sum(sum(part.numel() * part.element_size() for part in _parts(parameter)) for parameter in parameters)


def drop_weights(model: nn.Module) -> None:
    """Let go of all weights and buffers of a model that is not used any more; its modules stay.

    `model.to("meta")` does that too, but not for weights that a quantisation library holds.
    """
    for module in model.modules():
        if getattr(module, "quant_state", None) is not None:  # scales that bitsandbytes keeps beside its weight
            module.quant_state = None  # type: ignore[assignment]
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
        state = getattr(state, _LOADED, state)  # the same bytes before and after the library repacks
        yield state.absmax
        if getattr(state, "state2", None) is not None:
            yield state.state2.absmax

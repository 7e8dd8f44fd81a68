"""Models with weights quantised by a library: the library, the number of parameters, their bytes.

transformers opens such models, whatever the library.

bitsandbytes (0.50 and later) repacks its 4-bit weights in memory at the first forward pass on a processor with
AVX512-BF16: codes are interleaved, scales are rounded to bf16 and transposed. Its inverse, which `state_dict()` uses,
does not restore the scales, so `state_dict()` of such a model returns wrong tensors and breaks the model.
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

# For each method that a checkpoint may name: the Python module it needs, and how to install it.
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
    """Whether some of the model's weights are quantised by a library."""
    return getattr(model, "hf_quantizer", None) is not None


def method_of(config: Any) -> str | None:
    """The quantisation method that a config names, such as "bitsandbytes"; None where it names none."""
    said = getattr(config, "quantization_config", None)
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def check_library(name: str, config: Any) -> None:
    """Raise `RequestError` that says what to install where the weights of `name` need a library that is missing."""
    method = method_of(config)
    module, install = _LIBRARIES.get(method or "", (None, ""))
    if module is not None and not _installed(module):
        raise RequestError(f"{name} is quantised with {method}, whose library is not installed: {install}")
    if method is not None and not _installed("accelerate"):
        raise RequestError(f"{name} is quantised, and transformers opens such models with accelerate: {install}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that contains it
        return False


def protect_scales(model: nn.Module) -> None:
    """Keep the loaded scales of 4-bit bitsandbytes weights for `state_dict()`, next to the repacked ones; in place.

    Where the library repacks, this takes the bytes of the scales (an eighth of the codes) once more. Calling it again
    changes nothing.

    Raises `RequestError` where the model was run, and so repacked, before.
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
                "be undone: open it again"
            )
        setattr(state, _LOADED, copy.copy(state))  # a shallow copy will do: repacking replaces tensors of the state
        module.register_state_dict_pre_hook(_unpack)  # type: ignore[no-untyped-call]


def _unpack(module: Any, prefix: str, keep_vars: bool) -> None:
    """Restore codes and scales of a repacked 4-bit module as they were loaded; the next forward pass repacks them."""
    state = module.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    loaded = getattr(state, _LOADED)
    state.original_nested = False  # the library would recompute the scales, which are restored below
    codes, _ = _convert_weight_packed_for_cpu_inverse(module.weight.data, state)
    module.weight.data = codes
    restored = copy.copy(loaded)
    setattr(restored, _LOADED, loaded)
    module.weight.quant_state = module.quant_state = restored


def parameters_of(parameters: Iterable[Tensor]) -> int:
    """Number of weights in these parameters, of any shapes [...]; bitsandbytes packs two of them in a byte."""
    return sum(_stands_for(parameter) for parameter in parameters)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """Bytes of these parameters, of any shapes [...], as they were loaded; scales of quantised ones count too."""
    return sum(sum(part.numel() * part.element_size() for part in _parts(parameter)) for parameter in parameters)


def drop_weights(model: nn.Module) -> None:
    """Free all weights and buffers of a model that is not used any more; its modules stay.

    `model.to("meta")` does that too, but not for quantised weights.
    """
    for module in model.modules():
        if getattr(module, "quant_state", None) is not None:  # scales that bitsandbytes keeps outside the weight
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
    """The plain tensors that a tensor consists of."""
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

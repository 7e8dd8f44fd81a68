"""From a checkpoint folder to an executor: which weights are kept, and what computes."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layercoop_fast.engine.loading import SPREAD, check_device, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.memory import gpu_named, has_triton
from layercoop_fast.kernels.precision import warn_if_slow
from layercoop_fast.llama.block import UnfitError
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masks.halves import PARTS, WHOLE, Halves, MaskLike, read_mask
from layercoop_fast.masks.text import removed_of
from layercoop_fast.runtime.damage import find_damage
from layercoop_fast.runtime.executor import Executor
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.native import KV_FORMATS, NativeExecutor, fits
from layercoop_fast.runtime.sizes import Sizes

EXECUTORS = ("auto", "native", "transformers")
DTYPES = ("auto", "fp32", "bf16", "int8", "int4")

_MOST_KV_BYTES = 4 * 2**30  # unless asked for more
_NAMES = {"float32": "fp32", "bfloat16": "bf16"}
_KV_NAMES = _NAMES | {"float16": "fp16"}
_QUANTISED = ("int8", "int4")
_said: set[str] = set()


@dataclass(frozen=True)
class Opened:
    """An executor and what belongs to its model.

    Attributes:
        executor: runs the model.
        tokenizer: None where the checkpoint has none.
        eos: tokens that end a text.
        held: uint8 [L], the halves of blocks whose weights are in memory.
        why_general: why blocks run through transformers; None where they do not, or that was requested.
        damage: what is wrong with blocks that are held and cannot run, by their number (`damage.py`); the executor
            does not have them.
        sizes: parameters of the model's parts; None where nobody counted them.
    """

    executor: Executor
    tokenizer: PreTrainedTokenizerBase | None
    eos: frozenset[int]
    held: Halves
    why_general: str | None
    damage: dict[int, str] = field(default_factory=dict)
    sizes: Sizes | None = None


def open_runtime(
    path: str | Path,
    *,
    dtype: str = "auto",
    mask: MaskLike | str | Path | None = None,
    kv_memory: int | None = None,
    kv_dtype: str = "auto",
    executor: str = "auto",
    device: str = "cpu",
) -> Opened:
    """Open a checkpoint to run it under masks.

    Arguments (a mask as there, `[L]` or `[2L]`) and errors are those of `LayerSkipModel.from_pretrained`.
    """
    if executor not in EXECUTORS:
        raise RequestError(f"unknown executor {executor!r}: choose from {', '.join(EXECUTORS)}")
    dtype = _NAMES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise RequestError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    kv_dtype = _KV_NAMES.get(kv_dtype, kv_dtype)
    if kv_dtype not in ("auto", *KV_FORMATS):
        raise RequestError(f"unknown dtype of keys and values {kv_dtype!r}: choose from auto, {', '.join(KV_FORMATS)}")
    if kv_dtype != "auto" and (executor == "transformers" or device != "cpu"):
        raise RequestError(
            f"keys and values of {kv_dtype} are for the native executor on the CPU: leave kv_dtype at auto"
        )
    if dtype in _QUANTISED and executor == "transformers":
        raise RequestError(f"{dtype} weights are not for transformers' blocks: use fp32 or bf16 with those")
    # Quantising begins at the numbers that are stored, on the CPU: a GPU holds the packed weights alone.
    if dtype in _QUANTISED and device == SPREAD:
        raise RequestError(f"{dtype} weights lie on one device: name cuda or cuda:N instead of {SPREAD}")
    packed_on = check_device(device) if dtype in _QUANTISED and device != "cpu" else None
    if packed_on is not None:
        if executor == "native":
            raise RequestError(f"the native executor is for the CPU, not for {device}: leave executor= or device= out")
        gpu_named(device, f"{dtype} weights")
    opened_on = "cpu" if packed_on is not None else device
    skeleton, tokenizer, there, sublayers = _open(str(path), "auto" if dtype in _QUANTISED else dtype, mask, opened_on)
    damage = find_damage(skeleton, there, dtype)
    sizes = Sizes.of(skeleton)
    held = there.copy()
    held[list(damage)] = 0
    runs_on = packed_on or skeleton.device
    budget = min(free_memory(runs_on) // 4, _MOST_KV_BYTES) if kv_memory is None else kv_memory
    eos = _ends(skeleton.model)
    why = None
    if packed_on is not None:
        found = _on_gpu(skeleton, budget, held, dtype, packed_on)
        if not isinstance(found, Executor):
            raise RequestError(f"{path} cannot run in {dtype} on {device}: {found}")
        _give_back()
        return Opened(found, tokenizer, eos, there, None, damage, sizes)
    if skeleton.device.type == "cuda" and executor == "auto":
        found = _on_gpu(skeleton, budget, held)
        if isinstance(found, Executor):
            return Opened(found, tokenizer, eos, there, None, damage, sizes)
        why = found
        say_once(f"{path} runs on the blocks of transformers, since our own for GPUs cannot run it: {why}")
    elif executor != "transformers":
        why = _why_not_native(skeleton, held)
        if why is None:
            packed = str(skeleton.dtype).removeprefix("torch.") if dtype == "auto" else dtype
            native = NativeExecutor(skeleton, _NAMES.get(packed, packed), held, budget, kv_dtype)
            _give_back()
            return Opened(native, tokenizer, eos, there, None, damage, sizes)
        required = executor == "native" or dtype in _QUANTISED
        if required or kv_dtype != "auto":
            need = f"{dtype} and speed need" if required else f"keys and values of {kv_dtype} need"
            raise RequestError(f"{path} cannot run on the native executor, which {need}: {why}")
        say_once(f"{path} runs on the blocks of transformers, since the native executor cannot run it: {why}")
    if dtype == "auto" and skeleton.device.type == "cpu":
        warn_if_slow(skeleton.dtype)
    return Opened(GeneralExecutor(skeleton, budget, held, sublayers), tokenizer, eos, there, why, damage, sizes)


def _on_gpu(
    skeleton: Skeleton, budget: int, held: Halves, dtype: str | None = None, device: torch.device | None = None
) -> Executor | str:
    """The executor for GPUs, perhaps of quantised weights, or why it cannot run a model."""
    if not has_triton():
        return "Triton is not installed"
    from layercoop_fast.runtime.gpu import GpuExecutor  # here, since it loads Triton

    try:
        return GpuExecutor(skeleton, budget, held, dtype=dtype, device=device)
    except UnfitError as reason:
        return str(reason)


def _why_not_native(skeleton: Skeleton, held: Halves) -> str | None:
    """Why the native executor cannot run a model; None where it can."""
    if skeleton.device.type != "cpu":
        return f"it is for the CPU, not for {skeleton.device}"
    if str(skeleton.dtype).removeprefix("torch.") not in _NAMES:
        return f"its weights are {skeleton.dtype}"
    return fits(skeleton, held)


def _open(
    path: str, dtype: str, mask: MaskLike | str | Path | None, device: str
) -> tuple[Skeleton, PreTrainedTokenizerBase | None, Halves, Sublayers | None]:
    """The model with the weights that the mask keeps, and how its blocks fall into halves where some are left out."""
    if mask is not None and Path(path).is_dir() and device == "cpu":
        # Blocks are read in passing, to see how they are called, and those that stay once more.
        try:
            opened = open_checkpoint(path, dtype=dtype, offload=True)
        except RequestError:  # weights that transformers translates, or a folder that is wrong: said by what follows
            opened = open_checkpoint(path, dtype=dtype)
    else:
        opened = open_checkpoint(path, dtype=dtype, device=device)
    skeleton = Skeleton(opened.model, streamed=opened.streamed)
    n_layers = skeleton.n_layers
    held = _held(mask, n_layers)
    sublayers = Sublayers(skeleton) if ((held > 0) & (held < WHOLE)).any() else None
    if opened.streamed is not None:
        opened.streamed.release()
        skeleton.streamed = None
        for layer in np.flatnonzero(held).tolist():
            opened.streamed.keep(layer)
    for layer in range(n_layers):
        block = skeleton.blocks[layer]
        if held[layer] == 0:
            _let_go(skeleton.model, block, but=skeleton.embedding_norm)
        elif held[layer] < WHOLE and sublayers is not None:
            halves = sublayers.halves[layer]
            _let_go(skeleton.model, block.get_submodule(halves.mlp if held[layer] == 1 else halves.attn))
    return skeleton, opened.tokenizer, held, sublayers


def _held(mask: MaskLike | str | Path | None, n_layers: int) -> Halves:
    """What is kept in memory."""
    if isinstance(mask, (str, Path)):
        removed, counted = removed_of(Path(mask))
        if counted != n_layers:
            raise RequestError(f"{mask} is about a model of {counted} layers, and this one has {n_layers}")
        halves: Halves = np.full(n_layers, WHOLE, dtype=np.uint8)
        for block, part in removed:
            halves[block] &= ~np.uint8(1 << PARTS.index(part))
        mask = halves
    return read_mask(mask, n_layers)


def _let_go(model: PreTrainedModel, part: nn.Module, but: nn.Module | None = None) -> None:
    """Move a part's parameters to the meta device, except those that others share, and those of `but`."""
    kept = set() if but is None else {id(parameter) for parameter in but.parameters()}
    own = {id(parameter) for parameter in part.parameters()} - kept
    elsewhere = {
        parameter.data_ptr()
        for parameter in model.parameters()
        if id(parameter) not in own and not parameter.is_meta and parameter.numel()
    }
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta and parameter.data_ptr() not in elsewhere:
                empty: Tensor = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _ends(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text, by the generation config or else the config."""
    found = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
    if found is None:
        found = getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset(map(int, found if isinstance(found, Sequence) else [found]))


def _give_back() -> None:
    """Hand what was freed while weights were packed back to the system, where the allocator keeps it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def say_once(text: str) -> None:
    """Warn, the first time that this is to be said in this process."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=4)

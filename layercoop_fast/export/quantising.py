"""A checkpoint in 4 bits: what `layercoop-fast quantise` writes, to be pruned afterwards or pruned before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.engine.quantised import bytes_of, is_quantised
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import check_spared, reason, written_whole

_GROUP = 32


def quantise_checkpoint(
    name: str,
    out: str | Path,
    scheme: str = "nf4",
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    force: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint's linear layers in 4 bits into the folder `out`, for plain `from_pretrained`.

    Schemes: "nf4" (bitsandbytes, blocks of 64 weights a scale), "int4" (torchao, groups of 32; on the CPU, where it has
    no packed form, every code is stored in a byte). The head stays as it is, and so do layers whose weights a block
    reads without calling them (Mamba's `dt_proj`), since a library can stand in for calls only; with "nf4" also those
    whose shapes bitsandbytes does not take on every processor (`left_whole`).

    Returns the scheme, which layers were left, and bytes of all files before and after. Raises `RequestError` for a
    wrong request or a library that is not installed, `RunError` where the folder cannot be written.
    """
    if scheme not in _SCHEMES:
        raise RequestError(f"unknown scheme {scheme!r}: choose from {', '.join(_SCHEMES)}")
    library, make = _SCHEMES[scheme]
    if find_spec(library) is None or find_spec("accelerate") is None:
        raise RequestError(f"{scheme} needs {library}: pip install 'layercoop-fast[{library}]'")
    if Path(name).exists():
        check_spared(Path(out), "model", name, "write to another folder")
    checkpoint = open_checkpoint(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if is_quantised(checkpoint.model):
        raise RequestError(f"{name} is quantised already")
    left = (left_whole if library == "bitsandbytes" else uncalled)(checkpoint.model)
    head = [
        path for path, module in checkpoint.model.named_modules() if module is checkpoint.model.get_output_embeddings()
    ]
    compute = checkpoint.model.dtype
    with written_whole(Path(out), folder=True, force=force) as folder:
        try:
            with quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(
                    name,
                    dtype=compute,
                    device_map=device,
                    trust_remote_code=trust_remote_code,
                    quantization_config=make([*left, *head], compute, device),
                )
                model.save_pretrained(folder)
        except (ImportError, RuntimeError, ValueError) as error:
            raise RunError(f"{name} was not quantised: {reason(error)}") from error
        if bytes_of(model.parameters()) >= bytes_of(checkpoint.model.parameters()):
            raise RequestError(
                f"{scheme} would change nothing: no layer of {type(model).__name__} is one that {library} quantises"
            )
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(folder)
        record = Path(name) / "layercoop.json"
        if record.is_file():  # what was removed from which model holds for the quantised one
            shutil.copyfile(record, folder / record.name)
    return {
        "scheme": scheme,
        "left": left,
        "bytes": {"full": _weights_of(Path(name)), "quantised": _weights_of(Path(out))},
    }


def left_whole(model: PreTrainedModel) -> list[str]:
    """Names, within a block, of linear layers that bitsandbytes is not to quantise.

    Those whose weights a block reads without calling them (Mamba's `dt_proj`), since a library can stand in for calls
    only; and those whose shapes bitsandbytes does not take on every processor (`shared_expert_gate`, with one output):
    its kernels for AVX512-BF16 want outputs in multiples of 32 and inputs in multiples of 64.
    """
    left = set(uncalled(model))
    for block in Skeleton(model).blocks:
        for name, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
                if outputs % 32 or inputs % 64:
                    left.add(name)
    return sorted(left)


def uncalled(model: PreTrainedModel) -> list[str]:
    """Names, within a block, of linear layers that no block calls in a forward pass though it computes with them."""
    skeleton = Skeleton(model)
    called: set[str] = set()
    seen: set[str] = set()
    handles = []
    for block in skeleton.blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                seen.add(name)
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
    try:
        context = skeleton.context(torch.arange(8, device=skeleton.device)[None] % skeleton.vocab_size)
        hidden = context.embedding
        for layer in range(skeleton.n_layers):
            hidden = context.run(layer, hidden)
    finally:
        for handle in handles:
            handle.remove()
    # An expert that no token reached is not called either, but its sisters are.
    kinds = {name.rpartition(".")[2] for name in called}
    return sorted(name for name in seen - called if name.rpartition(".")[2] not in kinds)


def _nf4(left: list[str], compute: torch.dtype, device: str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=left
    )


def _int4(left: list[str], compute: torch.dtype, device: str) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    packed = not device.startswith("cpu")
    how = (
        Int4WeightOnlyConfig(group_size=_GROUP)
        if packed
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(_GROUP))  # type: ignore[attr-defined]
    )
    return TorchAoConfig(how, modules_to_not_convert=left)


_SCHEMES: dict[str, tuple[str, Callable[[list[str], torch.dtype, str], Any]]] = {
    "nf4": ("bitsandbytes", _nf4),
    "int4": ("torchao", _int4),
}
SCHEMES = tuple(_SCHEMES)


def _weights_of(folder: Path) -> int | None:
    """Bytes of the weight files of a folder; None where it is none."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else None

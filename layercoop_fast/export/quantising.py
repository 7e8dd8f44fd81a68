"""Writing a checkpoint in 4 bits (`layercoop-fast quantise`), before or after it is pruned."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layercoop_fast.engine.loading import open_checkpoint, quiet_transformers
from layercoop_fast.engine.quantised import bytes_of, drop_weights, is_quantised
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.carried import LICENSE_FILES, copy_own
from layercoop_fast.export.proof import NoRoom, Written, masked_reference, not_verified, probe_ids
from layercoop_fast.files import RECORD, check_spared, reason, written_whole
from layercoop_fast.inputs.text import is_flat, read_json
from layercoop_fast.masked.players import make_players

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
    verify: bool = True,
    finish: Callable[[Path], Mapping[str, bytes | str]] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's linear layers in 4 bits into the folder `out`, for plain `from_pretrained`.

    The head is not quantised, and neither are layers whose weights a block reads without calling them (Mamba's
    `dt_proj`), since a library replaces calls only; with "nf4" also those whose shapes bitsandbytes does not support on
    every processor (`left_whole`).

    Args:
        name: checkpoint folder or hub name.
        out: the folder to write.
        scheme: "nf4" (bitsandbytes, a scale for 64 weights) or "int4" (torchao, groups of 32; on the CPU, where it has
            no packed form, every code is stored in a byte).
        dtype: that the model computes in; "auto" is the checkpoint's own.
        device: to quantise on.
        force: replace `out` if it exists.
        trust_remote_code: run Python code from the checkpoint.
        verify: open the folder again before it is renamed to `out`, and compare its logits with those of the quantised
            model in memory (`export/proof.py`).
        finish: called with the temporary folder when all else is written; the files it returns by plain name (`str`
            becomes UTF-8) are added.

    The `layercoop.json` of a pruned checkpoint is copied; its figures of the model before quantisation become
    `unquantised`.

    Returns the scheme, the layers that were not quantised (`left`), bytes of all files before and after, and the result
    of the comparison (`verified`). Raises `RequestError` for a wrong request or a library that is not installed,
    `RunError` where the folder cannot be written or is not the quantised model.
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
    compute, full_bytes = checkpoint.model.dtype, bytes_of(checkpoint.model.parameters())
    drop_weights(checkpoint.model)  # it is opened again below, and quantised then
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
        if bytes_of(model.parameters()) >= full_bytes:
            raise RequestError(
                f"{scheme} would change nothing: no layer of {type(model).__name__} is one that {library} quantises"
            )
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(folder)
        proof = (
            _verified(model, folder, trust_remote_code)
            if verify
            else {**not_verified("not asked for"), "perplexity": None}
        )
        del model
        _carry_record(Path(name), folder, scheme, proof)
        copy_own(Path(name), folder, LICENSE_FILES)
        for file, content in (finish(folder) if finish else {}).items():
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    return {
        "scheme": scheme,
        "left": left,
        "bytes": {"full": _weights_of(Path(name)), "quantised": _weights_of(Path(out))},
        "verified": proof,
    }


def _verified(model: PreTrainedModel, folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """Compare the folder with the quantised model in memory, which is freed; return the entry of `layercoop.json`."""
    device = str(model.device)
    try:
        skeleton = Skeleton(model)
        reference = masked_reference(make_players("layers", skeleton), range(skeleton.n_layers), probe_ids(skeleton))
    except AssertionError as error:  # raised by bitsandbytes for shapes that its kernel for this processor cannot take
        raise RunError(f"the quantised model does not run on this processor: {reason(error)}") from error
    drop_weights(model)
    try:
        proof = reference.check(Written.open(folder, device=device, trust_remote_code=trust_remote_code))
    except NoRoom as full:
        warnings.warn(f"the quantised checkpoint was not compared with the model in memory: {full}", stacklevel=3)
        proof = not_verified(str(full))
    return {**proof, "perplexity": None}  # there is no text here


def _carry_record(source: Path, folder: Path, scheme: str, proof: dict[str, Any]) -> None:
    """Copy the record of a pruned checkpoint: its removed layers are those of the quantised one too.

    Measured figures do not hold for the quantised model: they are moved to `unquantised` and replaced by null.
    """
    copy_own(source, folder, (RECORD,))
    if not (folder / RECORD).is_file():
        return
    try:
        record = read_json(folder / RECORD)
        if not is_flat(record):
            raise ValueError(record)
        for part in (record, record.get("heldout") or {}):
            for name in ("worth", "nll", "ppl"):
                if part.get(name):
                    part[name] = {**part[name], "pruned": None, "unquantised": part[name]["pruned"]}
            if "window_nll" in part:
                part["window_nll"] = None
        record.update(cost=None, generations=None, quantised=scheme, verified=proof)
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except (ValueError, KeyError, TypeError, AttributeError):
        (folder / RECORD).unlink()
        warnings.warn(f"{source / RECORD} is not a record of `prune`: it is left out", stacklevel=3)


def left_whole(model: PreTrainedModel) -> list[str]:
    """Names, within a block, of linear layers that bitsandbytes must not quantise.

    These are layers whose weights a block reads without calling them (Mamba's `dt_proj`), since a library replaces
    calls only, and those that bitsandbytes multiplies wrongly on some processors. Its kernels for AVX512-BF16 need
    outputs in multiples of 32 and inputs in multiples of 64 (`shared_expert_gate` has one output), and they read inputs
    as if these were contiguous (seen in 0.50: Mamba's `x_proj` and `out_proj` get transposed inputs, and returned
    entirely different numbers).
    """
    never_called, transposed = _calls(model)
    left = {*never_called, *transposed}
    for block in Skeleton(model).blocks:
        for name, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
                if outputs % 32 or inputs % 64:
                    left.add(name)
    return sorted(left)


def uncalled(model: PreTrainedModel) -> list[str]:
    """Names, within a block, of linear layers that are not called in a forward pass although their weights are used."""
    return _calls(model)[0]


def _calls(model: PreTrainedModel) -> tuple[list[str], set[str]]:
    """Names, within a block, of linear layers that are never called, and of those whose inputs are not contiguous.

    They are found by a forward pass over a few tokens.
    """
    skeleton = Skeleton(model)
    seen: set[str] = set()
    called: set[str] = set()
    transposed: set[str] = set()

    def watch(name: str, given: Sequence[Any]) -> None:
        called.add(name)
        if given and not given[0].is_contiguous():
            transposed.add(name)

    handles = []
    for block in skeleton.blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                seen.add(name)
            if isinstance(module, (nn.Linear, Conv1D)):
                handles.append(module.register_forward_pre_hook(lambda _, given, name=name: watch(name, given)))
    try:
        context = skeleton.context(torch.arange(8, device=skeleton.device)[None] % skeleton.vocab_size)
        hidden = context.embedding
        for layer in range(skeleton.n_layers):
            hidden = context.run(layer, hidden)
    finally:
        for handle in handles:
            handle.remove()
    # An expert that no token reached is not called either, but other experts are.
    kinds = {name.rpartition(".")[2] for name in called}
    return sorted(name for name in seen - called if name.rpartition(".")[2] not in kinds), transposed


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


def _weights_of(folder: Path) -> int | None:
    """Bytes of the weight files of a folder; None where it is not a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else None

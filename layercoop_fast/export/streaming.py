"""Writing safetensors files tensor by tensor, for a model that does not fit into memory.

The files are those that `save_pretrained` would write: the same names, shards and index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from layercoop_fast.engine.weight_files import DTYPES, INDEX, WEIGHTS

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    value: Callable[[str], Tensor],
    max_shard_size: int | str,
    n_parameters: int,
) -> None:
    """Write the weights of a model into `folder`.

    Args:
        folder: without shards.
        tensors: tensors of any shapes [...] by name, for their shapes and dtypes. Of those that share memory (and are
            not on the meta device) only the first is written.
        value: from a name to its tensor, which is valid until the next call; names come in the order of the files.
        max_shard_size: as of `export_checkpoint`.
        n_parameters: of the model, for the index of shards.
    """
    distinct: dict[object, str] = {}
    for name, tensor in tensors.items():
        distinct.setdefault(name if tensor.is_meta else (tensor.data_ptr(), tuple(tensor.shape)), name)
    kept = {name: tensors[name] for name in distinct.values()}
    pattern = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(kept, filename_pattern=pattern, max_shard_size=max_shard_size)
    (folder / WEIGHTS).unlink(missing_ok=True)
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, kept, names, value)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": n_parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    value: Callable[[str], Tensor],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, with no copy of its tensors in memory.

    Args:
        file: to be written.
        tensors: tensors of any shapes [...] by name, for their shapes and dtypes.
        names: of those that are written.
        value: from a name to its tensor, as of `save_weights`.
        about: texts for the header, by name.
    """
    # Wide dtypes first, so that all tensors are aligned; then by name, so that tensors of a block are adjacent.
    order = sorted(names, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(about or {})}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = value(name).detach().cpu().contiguous()
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

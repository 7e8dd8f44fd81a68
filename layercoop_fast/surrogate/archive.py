"""Saved fits: arrays as safetensors, everything else as JSON in the file's header. Reading one executes nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason, written_whole
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import as_saved, parse_json


def write_archive(path: Path, form: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `arrays` ([...], by name) and the JSON of `header` to `path`, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    payload = safetensors_bytes(contiguous, {"format": form, "header": json.dumps(dict(header))})
    with written_whole(path, force=True) as temporary:
        temporary.write_bytes(payload)


def read_archive(path: Path, form: str, names: Collection[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays ([...], by name) of a file that `write_archive` wrote as `form`.

    Raises:
        RequestError: when the file is missing, corrupt, of another form, or holds other arrays than `names`.
    """
    found = read_header(path)
    if found.metadata.get("format") != form or set(found.tensors) != set(names):
        raise RequestError(f"{path} is not a file of the form {form} that this version saved")
    with as_saved(path):
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise RequestError(f"cannot read {path}: {reason(error)}") from error
        header = parse_json(found.metadata["header"], f"the header of {path}")
        if not isinstance(header, dict):
            raise RequestError(f"{path} is damaged: its header is not a JSON object")
    return header, arrays

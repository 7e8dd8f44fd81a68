"""Saving fits: arrays as safetensors, everything else as JSON in the file's header. Nothing in it is ever executed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole


def write_archive(path: Path, form: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `arrays` and the JSON of `header` to `path`, in place of what was there, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    payload = safetensors_bytes(contiguous, {"format": form, "header": json.dumps(dict(header))})
    with written_whole(path, force=True) as temporary:
        temporary.write_bytes(payload)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """What fails inside says that the file is not what it claims to be."""
    try:
        yield
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RequestError(f"{path} is damaged, or was not saved by this version: {error!r}") from error


def read_archive(path: Path, form: str, names: Collection[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read header and arrays of what `write_archive` wrote as `form`.

    Raises `RequestError` when the file is missing, corrupt, of another form, or holds other arrays than `names`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form or set(file.keys()) != set(names):
                raise RequestError(f"{path} is not a file of the form {form} that this version saved")
            arrays = {name: file.get_tensor(name) for name in names}
            header = json.loads(metadata["header"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"cannot read {path}: {error}") from error
    return header, arrays

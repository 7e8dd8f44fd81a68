"""Where an operation runs, what its arguments must be, and a tensor's memory as the NumPy array that the core takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.system.openmp import borrow_torchs_threads

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_interpreted = False

borrow_torchs_threads()


def is_native(tensor: Tensor) -> bool:
    """Whether the C++ core takes a tensor [...]: fp32 or bf16 in the memory of the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype in NATIVE_DTYPES


def on_gpu(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor [...]: fp32, bf16 or fp16 on a GPU, with Triton installed."""
    return tensor.dtype in GPU_DTYPES and (tensor.device.type == "cuda" or _interpreted) and has_triton()


@contextmanager
def through_interpreter() -> Iterator[None]:
    """Send tensors on the CPU to the Triton kernels too, for Triton's interpreter (TRITON_INTERPRET=1).

    Tests use it to run the code of GPUs on tiny models where there is no GPU. An element takes microseconds.
    """
    global _interpreted
    before, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = before


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def gpu_named(device: str, what: str) -> torch.device:
    """The GPU called "cuda" or "cuda:1", on which Triton is to run `what`.

    Raises:
        RequestError: for another name, without Triton, and where there is no such GPU.
    """
    if device.split(":")[0] != "cuda":
        raise RequestError(f"device: {device} is neither cpu nor cuda or cuda:N")
    if not has_triton():
        raise RequestError(f"{what} on a GPU needs Triton: pip install 'layercoop-fast[triton]'")
    if _interpreted:
        return torch.device("cpu")
    found = torch.device(device)
    if (found.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device: there is no {device} here")
    return found


def array(tensor: Tensor) -> NDArray[Any]:
    """The memory of a native tensor [...], without a copy; bf16, which NumPy lacks, as the uint16 of its bits [...]."""
    tensor = tensor.detach()
    found: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def require(tensor: Tensor, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise `RequestError` unless a tensor is contiguous, of shape [*shape], and has the dtype and device of `like`."""
    if tuple(tensor.shape) != shape:
        raise RequestError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise RequestError(f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise RequestError(f"{name}: expected {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}")


def require_matrix(tensor: Tensor, name: str) -> None:
    """Raise `RequestError` unless a tensor is a contiguous matrix [rows, columns] of floating-point numbers."""
    if tensor.dim() != 2 or not tensor.is_floating_point() or not tensor.is_contiguous():
        raise RequestError(
            f"{name}: expected a contiguous floating-point matrix, got {tensor.dtype} {list(tensor.shape)} "
            f"with strides {list(tensor.stride())}"
        )


def require_index(tensor: Tensor, name: str, size: int, like: Tensor) -> None:
    """Raise `RequestError` unless a tensor is a contiguous int32 or int64 vector [size] on the device of `like`.

    Its numbers are not read: that would make the host wait for the device.
    """
    fits = tensor.dim() == 1 and len(tensor) == size and tensor.is_contiguous() and tensor.device == like.device
    if not fits or tensor.dtype not in (torch.int32, torch.int64):
        raise RequestError(
            f"{name}: expected contiguous int32 or int64 [{size}] on {like.device}, got {tensor.dtype} "
            f"{list(tensor.shape)} on {tensor.device}"
        )

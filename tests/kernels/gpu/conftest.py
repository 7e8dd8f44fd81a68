"""Triton kernels: on a GPU where there is one, else in Triton's interpreter (which tests/conftest.py asks for)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def overflow_is_no_error() -> Iterator[None]:
    """The interpreter computes by NumPy, which warns of the infinities that kernels mean; chips do not."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session", autouse=True)
def numbers_of_one_element() -> Iterator[None]:
    """Triton 3.6's interpreter takes int() of arrays of one element, which NumPy refuses since 2.4; 3.9's does not."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    interpreter._patch_lang_tensor = patch
    yield
    interpreter._patch_lang_tensor = before


@pytest.fixture
def device() -> Iterator[str]:
    """Where tensors have to lie for the functions of `kernels/` to take the Triton kernels."""
    from layercoop_fast.kernels.gpu.frame import interpreted
    from layercoop_fast.kernels.memory import through_interpreter

    if interpreted():
        with through_interpreter():
            yield "cpu"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("Triton was imported without TRITON_INTERPRET=1, and there is no GPU")


@pytest.fixture(scope="session")
def compile_ahead() -> Callable[..., list[dict[str, Any]]]:
    """Compile kernels in a process of its own, since this one's Triton may be in its interpreter."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, Path(__file__).parents[2] / "support" / "ahead_of_time.py", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["compiled"]
        return found

    return run

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kernel_cases import CASES

Compile = Callable[..., list[dict[str, Any]]]


def test_every_operation_compiles_for_a_chip_that_is_not_here(compile_ahead: Compile) -> None:
    found = compile_ahead("--quick")
    assert len({each["operation"] for each in found}) >= len(CASES)
    assert all(each["target"] == "cuda:90" and each["registers"] > 0 and not each["wrong"] for each in found)
    # Sizes of 1 are constants to Triton, which is not so in its interpreter.
    assert len({each["kernel"] for each in found if each["shape"].startswith(("[1, ", "1 "))}) == 13


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_every_case_compiles_for_every_chip(compile_ahead: Compile, target: str) -> None:
    found = compile_ahead("--targets", target)
    assert not [each for each in found if each["wrong"]]
    assert all(each["registers"] > 0 for each in found)

"""The part of `doctor` about a GPU, on the CPU: kernels in Triton's interpreter, and without Triton."""

from __future__ import annotations

import pytest
import torch

from layercoop_fast.kernels import checks
from layercoop_fast.kernels.memory import through_interpreter
from layercoop_fast.report import gpu_checks
from layercoop_fast.report.gpu_checks import check_gpu
from layercoop_fast.report.tables import show_gpu

CPU = torch.device("cpu")


def test_a_row_for_each_kernel_and_for_graphs(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = checks.Check("rotary", "cpu", "float32", 0.25, 1e-4, None)
    broken = checks.Check("gated", "cpu", "float32", None, 1e-4, "CompilationError: at 9:4: no such dtype")
    known = {(each.operation, CPU, torch.float32): each for each in (wrong, broken)}
    monkeypatch.setattr(checks, "_checks", known)
    with through_interpreter():
        found = check_gpu(CPU, torch.float32)
    assert [each["operation"] for each in found["kernels"]] == list(checks.OPERATIONS)
    problems = {each["operation"]: each["problem"] for each in found["kernels"] if each["problem"]}
    assert problems.keys() == {"rotary", "gated"}
    assert found["graphs"] == "the device has none"
    show_gpu(found)
    printed = capsys.readouterr().out
    assert "torch: it is wrong" in printed
    assert "torch: it raises" in printed
    assert "gated: CompilationError: at 9:4: no such dtype" in printed
    assert "rotary: off by 2.5e-01 of the largest number, 1e-04 allowed" in printed
    assert printed.count("Triton") == len(checks.OPERATIONS) - 2


def test_without_triton_torch_computes_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (checks, gpu_checks):
        monkeypatch.setattr(module, "has_triton", lambda: False)
    found = check_gpu(CPU, torch.float32)
    assert found["kernels"] == []
    show_gpu(found)
    assert "pip install 'layercoop-fast[triton]'" in capsys.readouterr().out

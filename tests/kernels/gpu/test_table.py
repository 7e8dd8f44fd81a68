from __future__ import annotations

from pathlib import Path

from kernel_cases import Case
from kernel_page import all_cases, roofline

PAGE = Path(__file__).parents[3] / "docs" / "kernels.md"


def test_the_page_has_the_cases_as_they_are() -> None:
    cases = all_cases()
    assert roofline(cases) in PAGE.read_text(), "run python tests/support/kernel_page.py"
    compiled = PAGE.read_text().split("## What compilers make of it")[1]
    for case in cases:
        assert f"| {case.operation} |" in compiled
        assert f"| {case.shape} |" in compiled


def test_what_bounds_a_case() -> None:
    def row(**counts: int) -> list[str]:
        case = Case("op", "[1]", "config", lambda: None, **counts)
        return [cell.strip() for cell in roofline([case]).splitlines()[2].split("|")[1:-1]]

    assert row(bytes=3_350_000) == ["op", "[1]", "3.35 MB", "", "", "memory", "1 µs"]
    assert row(bytes=10, flops=989 * 10**9)[5:] == ["matrix units", "1 ms"]
    assert row(bytes=999, operations=67 * 10**6) == ["op", "[1]", "999 B", "", "67 M", "fp32 units", "1 µs"]

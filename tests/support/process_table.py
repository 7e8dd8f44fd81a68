"""Which processes there are, from /proc: what tests of kills ask. A process that nobody has waited for is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def parents() -> dict[int, int]:
    """Process ids, and that of the parent of each."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))) and stat[0] not in "ZX":
            found[int(folder.name)] = int(stat[1])
    return found


def descendants(process: int) -> set[int]:
    """The children of a process, theirs, and so on."""
    table, found, last = parents(), set(), {process}
    while last:
        last = {child for child, parent in table.items() if parent in last}
        found |= last
    return found


def command_of(process: int) -> str:
    """Its command line; empty where it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def left_after(processes: Iterable[int], seconds: float) -> set[int]:
    """Those that are still there after so many seconds; returns as soon as none is."""
    deadline = time.monotonic() + seconds
    left = set(processes)
    while left := left & parents().keys():
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def _stat(process: int) -> list[str]:
    """State and parent; nothing where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []

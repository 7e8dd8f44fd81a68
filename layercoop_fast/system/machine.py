"""The processors and the memory that this process may use, limits of control groups (containers) included.

Imports no torch, so that a request for too much is refused before anything is loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may use: those of its affinity, or fewer where a control group has a CPU quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([count, *(math.ceil(quota) for quota in quotas)]))


def free_bytes() -> int:
    """Bytes of memory that can still be allocated: the machine's, or fewer where a control group has a limit."""
    limits = [room for folder in _groups("memory") if (room := _room(folder)) is not None]
    return max(0, min([_free_of_machine(), *limits]))


def _free_of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of the installed memory is a careful guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups whose controller limits this process: its own group and those above it.

    A line of /proc/self/cgroup is "0::/path" (version 2) or "4:memory,...:/path" (version 1). Inside a container the
    path may be that of the host, which does not exist there; the root of the mount is then the container's own group.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root = _CGROUPS
        elif controller in controllers.split(","):
            root = _CGROUPS / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _quota(folder: Path) -> float | None:
    """Processors that a group may use, as a share of time per period; None where it has no quota."""
    if (found := _words(folder / "cpu.max")) and len(found) == 2:
        quota, period = found
    elif found := _words(folder / "cpu.cfs_quota_us"):
        quota, period = found[0], (_words(folder / "cpu.cfs_period_us") or ["0"])[0]
    else:
        return None
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None  # "max", or -1
    return int(quota) / int(period)


def _room(folder: Path) -> int | None:
    """Bytes that a group may still allocate; None where it has no limit. Cached files count as free."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _words(folder / limit), _words(folder / used)
        if most and taken and most[0].isdecimal() and taken[0].isdecimal():
            words = _words(folder / "memory.stat")
            dropped = dict(zip(words[::2], words[1::2], strict=False)).get(cache, "0")
            return int(most[0]) - int(taken[0]) + int(dropped)
    return None


def _words(file: Path) -> list[str]:
    """The words of a small file; none where it cannot be read."""
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []

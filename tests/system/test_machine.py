"""What a process may use of its machine, under limits of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layercoop_fast.system import machine

MIB = 2**20


def groups(monkeypatch: pytest.MonkeyPatch, root: Path, lines: str, files: dict[str, str]) -> None:
    """Let `machine` see these control groups: the lines of /proc/self/cgroup, and files below /sys/fs/cgroup."""
    read = Path.read_text
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def read_text(path: Path, *arguments: object, **named: object) -> str:
        return lines if str(path) == "/proc/self/cgroup" else read(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "_CGROUPS", root)
    monkeypatch.setattr(Path, "read_text", read_text)


V1 = "5:cpu,cpuacct:/docker/1234\n4:memory:/docker/1234\n0::/\n"
LIMITED = {
    "version 2, its own": ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n", "a/b/memory.max": f"{900 * MIB}",
        "a/b/memory.current": f"{500 * MIB}", "a/b/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n"}),
    "version 2, above": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/b/memory.max": "max\n",
        "a/b/memory.current": "7\n", "a/cpu.max": "150000 100000\n", "a/memory.max": f"{500 * MIB}",
        "a/memory.current": "0\n"}),
    "version 1": (V1, {"cpu/docker/1234/cpu.cfs_quota_us": "150000", "cpu/docker/1234/cpu.cfs_period_us": "100000",
        "memory/docker/1234/memory.limit_in_bytes": f"{500 * MIB}", "memory/docker/1234/memory.usage_in_bytes": "0"}),
    "the host's path": (V1, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": f"{500 * MIB}", "memory/memory.usage_in_bytes": "0"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITED)
def test_limits_of_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    groups(monkeypatch, tmp_path, *LIMITED[kind])
    assert machine.processors() == 2  # one and a half
    assert machine.free_bytes() == 500 * MIB


@pytest.mark.parametrize("broken", ["", "max\n", "-1 0\n", "text", "\udcff"])
def test_files_without_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6})
    groups(monkeypatch, tmp_path, "0::/\n" + V1 + "broken\n", {"memory/memory.usage_in_bytes": "5"})
    for name in ("cpu.max", "memory.max", "memory.current", "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(broken.encode("utf-8", "surrogateescape"))
    assert machine.processors() == 3
    assert machine.free_bytes() > 500 * MIB

"""The choice of configurations: the launcher's own rule, unless a measurement on this device found a faster one.

Nothing is measured unasked, so that results do not depend on a hidden clock. `tune(run)`, which
`layercoop-fast bench gpu` calls, runs a function under every configuration of every kernel in it and writes the fastest
to `~/.cache/layercoop_fast/` (or `$XDG_CACHE_HOME`), one file for each device and version of Triton. Later processes
read it. In the interpreter and ahead of time the launchers' own rules hold.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
import triton

from layercoop_fast.files import written_whole
from layercoop_fast.kernels.gpu.frame import Config, interpreted

_forced: dict[str, str] | None = None
_asked: dict[str, list[str]] = {}
# What was chosen before, since a launch is to cost the host microseconds.
_decided: dict[tuple[str, tuple[object, ...], str], Config] = {}


def chosen(operation: str, key: tuple[object, ...], configs: Mapping[str, Config], default: str) -> Config:
    """The configuration of an operation at a key: what its speed depends on (widths, dtype, rough numbers of rows)."""
    if _forced is not None:
        place = _place(operation, key)
        _asked[place] = list(configs)
        return configs[_forced.get(place, default)]
    if interpreted() or not torch.cuda.is_available():
        return configs[default]
    found = _decided.get((operation, key, default))
    if found is None:
        found = configs.get(_table(table_path()).get(_place(operation, key), default), configs[default])
        _decided[operation, key, default] = found
    return found


def tune(run: Callable[[], object], *, clock: Callable[[Callable[[], object]], float] | None = None) -> dict[str, str]:
    """Measure a function under every configuration of the kernels it launches, one kernel at a time, and keep the best.

    `clock` measures the time of a call (default: Triton's benchmark). Configurations that need more memory than the
    device has are skipped. Returns the choices: {operation and key: configuration}.
    """
    global _forced
    clock = clock or triton.testing.do_bench
    found: dict[str, str] = {}
    try:
        _asked.clear()
        _forced = {}
        run()
        for place, names in list(_asked.items()):
            times: dict[str, float] = {}
            for name in names if len(names) > 1 else []:
                _forced = {**found, place: name}
                try:
                    times[name] = clock(run)
                except triton.OutOfResources:
                    continue
            if times:
                found[place] = min(times, key=lambda name: times[name])
    finally:
        _forced = None
    if found:
        path = table_path()
        with written_whole(path, force=True) as made:
            made.write_text(json.dumps({**_table(path), **found}, indent=1, sort_keys=True))
        _table.cache_clear()
        _decided.clear()
    return found


def table_path() -> Path:
    """The file of this device and version of Triton."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layercoop_fast"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return folder / f"tuned-{re.sub(r'[^A-Za-z0-9]+', '-', device)}-{triton.__version__}.json"


def _place(operation: str, key: tuple[object, ...]) -> str:
    return f"{operation} {' '.join(map(str, key))}"


@cache
def _table(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # not tuned yet, or another program's file: the launchers' rules hold
    if not isinstance(found, dict):
        return {}
    return {place: name for place, name in found.items() if isinstance(name, str)}

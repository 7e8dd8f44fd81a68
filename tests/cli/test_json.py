"""Commands that print results take `--json`, and then print one JSON document and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tiny_models import save_tiny

from layercoop_fast.cli.app import app

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--windows", "2", "--tokens", "16"]


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by what is typed to call it."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


def test_every_command_that_prints_a_result_takes_json() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert {"prune", "bench", "store merge", "report", "plan"} <= found.keys()
    without = {
        name
        for name, command in found.items()
        if "--json" not in {option for parameter in command.params for option in parameter.opts}
    }
    # A conversation prints no result.
    assert without == {"chat", "serve"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("json") / "model", n_layers=3))


def test_store_commands(run: Run, model: str, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", ~np.eye(3, dtype=bool))
    one, both, out = tmp_path / "one.store", tmp_path / "both.store", tmp_path / "again.npz"
    evaluate = ["evaluate", model, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "w.npz", *SMALL]
    assert run(*evaluate, "--store", one)[0] == 0
    status, printed, said = run("store", "export", one, "--out", out, "--json")
    assert (status, said) == (0, "")
    assert json.loads(printed) == {"out": str(out), "bytes": out.stat().st_size, "masks": 4, "not_finite": 0}
    status, printed, said = run("store", "merge", one, one, "--out", both, "--json")
    assert (status, said) == (0, "")
    assert json.loads(printed) == {
        "out": str(both), "bytes": both.stat().st_size, "games": 1, "masks": 4, "repeats": 4, "largest_difference": 0.0,
    }  # fmt: skip
    status, printed, said = run("store", "drop", both, "--key", 1, "--json")
    assert (status, said) == (0, "")
    assert json.loads(printed) == {"file": str(both), "bytes": both.stat().st_size, "key": 1, "masks": 4}


def test_report(run: Run, model: str, tmp_path: Path) -> None:
    pruned, out = tmp_path / "pruned", tmp_path / "report.html"
    quick = ["--method", "reverse", "--no-repair", "--no-cost", "--no-report", "--samples", 0, *SMALL]
    assert run("prune", model, "--remove", 1, "--out", pruned, *quick)[0] == 0
    status, printed, said = run("report", pruned, "--out", out, "--json")
    assert (status, said) == (0, "")
    assert json.loads(printed) == {"out": str(out), "bytes": out.stat().st_size}

"""What a release and its continuous checks name: Pythons agree, targets and scripts exist, the version stands once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import layercoop_fast

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return found


def test_pythons_agree() -> None:
    classified = re.findall(r"Python :: (3\.\d+)", PROJECT)
    wheels = [f"3.{minor}" for minor in re.findall(r'"cp3(\d+)-\*"', PROJECT)]
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', PROJECT)
    assert lowest is not None
    assert wheels == classified
    assert classified[0] == lowest[1]
    (test,) = [path for path in WORKFLOWS if path.stem == "test"]
    text = test.read_text(encoding="utf-8")
    assert sorted(set(re.findall(r'"(3\.\d+)"', text)), key=lambda name: int(name[2:])) == classified


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_workflows_run_exists(workflow: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, job in jobs(workflow).items():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            command = step.get("run", "")
            targets = matrix["target"] if "${{ matrix.target }}" in command else re.findall(r"make (\S+)", command)
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{name}: make {target}"
            if command.startswith("."):
                assert (ROOT / command).is_file()


def test_the_version_stands_in_one_place() -> None:
    assert 'version = { attr = "layercoop_fast._version.__version__" }' in PROJECT
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == layercoop_fast.__version__, "what is cited is what is installed"


def test_a_wheel_is_asked_what_its_core_computes() -> None:
    command = re.search(r'^test-command = "python \{project\}/(\S+)"$', PROJECT, re.MULTILINE)
    assert command is not None
    from core_of_a_wheel import main

    assert command[1] == "tests/support/core_of_a_wheel.py"
    main()

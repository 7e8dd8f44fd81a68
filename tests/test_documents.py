"""What README and docs name exists: scripts and their options, commands and theirs, and the files they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from layercoop_fast.cli.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {path.name: path for path in (ROOT / "benchmarks").rglob("*.py")}
# A command as it stands in code: in a span, or on a line that is indented by four spaces.
CODE = re.compile(r"`([^`]+)`|^ {4}(\S.*(?:\\\n.*)*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def code_of(text: str) -> list[str]:
    return [" ".join((span or line).replace("\\\n", " ").split()) for span, line in CODE.findall(text)]


def scripts_named() -> list[tuple[str, str, str]]:
    """(document, script, what follows its name) of every mention of a script in code."""
    found = []
    for document in DOCUMENTS:
        for code in code_of(document.read_text(encoding="utf-8")):
            for match in re.finditer(r"((?:benchmarks|tests)/[\w/]+\.py|\b(?:bench|study|train)_\w+\.py)([^#]*)", code):
                found.append((document.name, match[1], match[2]))
    return found


def test_scripts_and_their_options_exist() -> None:
    named = scripts_named()
    assert len(named) > 40
    for document, script, rest in named:
        path = ROOT / script if "/" in script else SCRIPTS.get(script)
        assert path is not None, f"{document} names {script}, which does not exist"
        assert path.is_file(), f"{document} names {script}, which does not exist"
        for option in OPTION.findall(rest):
            assert f'"{option}"' in path.read_text(encoding="utf-8"), f"{document}: {script} has no {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(document: Path) -> None:
    root = typer.main.get_command(app)
    for code in code_of(document.read_text(encoding="utf-8")):
        if not (match := re.search(r"(?:^|[ /])layercoop-fast ([^#|]*)", code)):
            continue
        command, words = root, match[1].split()
        # typer groups descend from its own copy of click in some versions: what has `commands` is a group.
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert command is not root or not words or words[0].startswith("-"), f"{document.name}: unknown: {code}"
        for option in OPTION.findall(" ".join(words)):
            assert option in {*known, "--help"}, f"{document.name}: `{code}`: no {option}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_section_of_measurements_names_machine_and_day() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) > 15
    for section in sections:
        title = section.splitlines()[0]
        if title != "On a GPU":  # nothing was measured there
            assert re.search(r"20\d\d-\d\d-\d\d", section), f"'{title}' names no day"
            assert re.search(r"[Mm]achine [A-Z]|Counted", section), f"'{title}' names no machine"

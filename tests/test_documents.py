"""What documents name exists: scripts, commands and their options, files and names in them, links and headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from layercoop_fast.cli.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
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
        code = with_neighbours(path)
        for option in OPTION.findall(rest):
            assert f'"{option}"' in code, f"{document}: {script} has no {option}"


def with_neighbours(script: Path) -> str:
    """A script's code, and that of the scripts of its folder that it imports from, which may define its options."""
    code = script.read_text(encoding="utf-8")
    beside = (script.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", code, re.MULTILINE))
    return "\n".join([code, *(path.read_text(encoding="utf-8") for path in beside if path.is_file())])


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
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            if "://" not in target:
                there = document.parent / path if path else document
                assert there.exists(), f"{document.name} links to {path}"
                assert not heading or heading in headings(there), f"{document.name} links to {target}: no such heading"


def headings(document: Path) -> set[str]:
    """What links call the headings of a document: lower case, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# A file in code, perhaps with a name in it: `masked/plan.py:build_plan`. Files are named from the package or the root.
FILE = re.compile(r"((?:\w+/)+\w+\.(?:py|pyi|cpp|h|css|ipynb))(?::(\w+))?")
PLACEHOLDER = re.compile(r"NAME|^a/|^b/")


def test_files_and_the_names_in_them_exist() -> None:
    found = 0
    for document in DOCUMENTS:
        for code in re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8")):
            match = FILE.fullmatch(code)
            if match is None or PLACEHOLDER.search(code):
                continue
            places = [place / match[1] for place in (ROOT, ROOT / "layercoop_fast", ROOT / "csrc")]
            file = next((place for place in places if place.is_file()), None)
            assert file is not None, f"{document.name} names {match[1]}, which does not exist"
            text = file.read_text(encoding="utf-8")
            assert not match[2] or re.search(rf"\b{match[2]}\b", text), f"{document.name} names {code}: not in the file"
            found += 1
    assert found > 100


def test_files_of_the_code_name_documents_that_exist() -> None:
    for folder in ("layercoop_fast", "csrc", "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h") and path != Path(__file__):
                for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                    assert (ROOT / name).exists() or name == "docs/gguf.md", f"{path.name} names {name}"  # ggml's own


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [int(name[:3]) for name in files] == list(range(1, len(files) + 1))
    assert re.findall(r"\]\((\d[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")) == files
    for name in files:
        text = (folder / name).read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_every_section_of_measurements_names_machine_and_day() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) > 15
    for section in sections:
        title = section.splitlines()[0]
        if title != "On a GPU":  # nothing was measured there
            assert re.search(r"20\d\d-\d\d-\d\d", section), f"'{title}' names no day"
            assert re.search(r"[Mm]achine [A-Z]|Counted", section), f"'{title}' names no machine"

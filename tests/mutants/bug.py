"""What a seeded bug is, and the list of all of them: the `BUGS` of every module in the folder `bugs`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bug:
    """One bug: in `file`, the text `old` is replaced by `new`."""

    name: str  # unique within its area
    file: str  # relative to the root of the repository
    old: str  # stands in the file exactly once
    new: str
    means: str  # what a user would suffer, in one line
    tests: str  # arguments of pytest, separated by blanks: the tests that should find it
    area: str = ""  # the module of the list that names it

    @property
    def id(self) -> str:
        """`area/name`, unique in the list."""
        return f"{self.area}/{self.name}"

    def applied(self, text: str) -> str:
        """`text` with the bug in it. ValueError where the old text does not stand there exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.id} no longer applies: its text stands {found} times in {self.file}, not once")
        return text.replace(self.old, self.new)

    def test_files(self) -> list[str]:
        """The paths among `tests`, without the names of tests behind them."""
        return [word.partition("::")[0] for word in self.tests.split() if word.startswith("tests/")]


def all_bugs() -> list[Bug]:
    """Every bug, by area, in the order of its module. ValueError where two have the same name."""
    bugs = []
    for path in sorted((Path(__file__).parent / "bugs").glob("*.py")):
        for bug in importlib.import_module(f"mutants.bugs.{path.stem}").BUGS:
            bugs.append(Bug(**{**vars(bug), "area": path.stem}))
    names = [bug.id for bug in bugs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names that stand twice: {', '.join(twice)}")
    return bugs

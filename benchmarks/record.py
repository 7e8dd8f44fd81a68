"""The file that a benchmark in parts writes: a JSON of rows by part, and next to it the same as Markdown tables.

Both are written anew after each row, so that nothing is lost when a part ends early, and a later run goes on where the
file ends: a row that is there, and did not fail, is not measured again. A file of another machine, other versions or
other sizes is not continued.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.files import written_whole


@dataclass
class Record:
    """Rows by part, and how each part ended."""

    path: Path
    found: dict[str, Any]

    @classmethod
    def open(cls, path: Path, head: dict[str, Any]) -> Record:
        """The record at a path that begins with `head`, continued where the file that is there begins alike."""
        found: dict[str, Any] = {**head, "rows": {}, "parts": {}}
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = {}
        if isinstance(there, dict) and all(there.get(name) == value for name, value in head.items()):
            found = there
        return cls(path, found)

    def missing(self, part: str, row: str) -> bool:
        """Whether a row is still to be measured."""
        return bool(self.found["rows"].get(part, {}).get(row, {"failed": ""}).get("failed") is not None)

    def add(self, part: str, row: str, figures: dict[str, Any]) -> None:
        """Add a row, and write both files."""
        self.found["rows"].setdefault(part, {})[row] = figures
        self._write()

    def end(self, part: str, seconds: float, problem: str | None) -> None:
        """Say how a part ended: `problem` in one line, or None."""
        self.found["parts"][part] = {"seconds": round(seconds, 1), "problem": problem}
        self._write()

    @property
    def problems(self) -> list[str]:
        """What failed, a line each."""
        lines = [f"{part}: {end['problem']}" for part, end in self.found["parts"].items() if end["problem"]]
        for part, rows in self.found["rows"].items():
            lines += [f"{part}, {row}: {figures['failed']}" for row, figures in rows.items() if "failed" in figures]
        return lines

    def _write(self) -> None:
        for path, text in (
            (self.path, json.dumps(self.found, indent=1) + "\n"),
            (self.path.with_suffix(".md"), table(self.found)),
        ):
            with written_whole(path, force=True) as made:
                made.write_text(text, encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """What was measured, for people: Markdown, ready for docs/performance.md."""
    lines = [found["title"], ""]
    for part, rows in found["rows"].items():
        columns = _columns(rows)
        lines += [f"**{part}**", "", "| " + " | ".join(["what", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
        for row, figures in rows.items():
            cells = [_cell(figures.get(name)) for name in columns]
            if "failed" in figures:
                cells[0] = f"failed: {figures['failed'].splitlines()[0][:100]}"
            lines.append("| " + " | ".join([row, *cells]) + " |")
        lines.append("")
    lines += [f"{part}: {end['problem']}" for part, end in found["parts"].items() if end["problem"]]
    return "\n".join(lines).rstrip() + "\n"


def _columns(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The names of all figures, in the order in which they come; what is no plain figure is in the JSON alone."""
    names: dict[str, None] = {}
    for figures in rows.values():
        names |= dict.fromkeys(
            name for name, value in figures.items() if name != "failed" and not isinstance(value, (dict, list))
        )
    return list(names) or ["result"]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

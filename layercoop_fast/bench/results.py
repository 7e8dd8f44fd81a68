"""What a run of the benchmarks measured: raw seconds of every way of doing something, and the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole
from layercoop_fast.inputs.text import as_saved, read_json

SCHEMA = 1
OURS = "ours"
"""The way that all others of a figure are compared with."""


@dataclass(frozen=True)
class Figure:
    """One thing that was timed, done in one or several ways.

    Attributes:
        folder: which folder of the benchmarks it is from, "engine" for example.
        name: what was timed, shapes included.
        ways: raw seconds of each round by the name of the way ("ours", "torch", ...).
    """

    folder: str
    name: str
    ways: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Median seconds of a way."""
        return float(np.median(self.ways[way]))

    def spread(self, way: str) -> float:
        """Half the distance between the quartiles of a way, over its median."""
        low, high = np.quantile(self.ways[way], [0.25, 0.75])
        return float((high - low) / 2 / self.median(way))

    def ratio(self, way: str) -> float | None:
        """How many times longer a way takes than ours; None where ours was not timed."""
        return self.median(way) / self.median(OURS) if OURS in self.ways else None


@dataclass(frozen=True)
class Results:
    """One run of the benchmarks.

    Attributes:
        machine: what it ran on, with versions.
        settings: what it ran with.
        figures: what was timed.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    figures: Sequence[Figure]

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write JSON, whole or not at all."""
        with written_whole(path, force=force) as made:
            made.write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """What `save` writes."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote. Raises `RequestError` in one line for anything else."""
        form = "a file that `layercoop-fast bench` wrote is needed"
        content = read_json(path, hint=form)
        with as_saved(path, "it holds no benchmark figures as `layercoop-fast bench` writes them"):
            if content["schema"] != SCHEMA:
                raise RequestError(f"{path} has schema {content['schema']}: this version reads schema {SCHEMA}")
            figures = [Figure(str(f["folder"]), str(f["name"]), _ways(f["ways"])) for f in content["figures"]]
            return cls(dict(content["machine"]), dict(content["settings"]), figures)


def _ways(ways: dict[str, Any]) -> dict[str, list[float]]:
    """The ways of a figure, checked: each has at least one round, of positive finite seconds."""
    checked = {str(way): [float(second) for second in seconds] for way, seconds in ways.items()}
    if not all(seconds and all(0 < second < float("inf") for second in seconds) for seconds in checked.values()):
        raise ValueError("no seconds")
    return checked

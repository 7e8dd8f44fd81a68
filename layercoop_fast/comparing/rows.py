"""The rows of a comparison, and a file that keeps those that are finished.

    kept = KeptRows(Path("worths.store.rows"))
    found = kept.find(request)          # what `keep` was given for an equal request, or None
    kept.keep(request, content)

The file is for one machine and can be removed at any time: a missing row is searched for again. It is text, one line
for each row, with a checksum; a line is written by one call, so a run that is killed loses only the row it was working
on. A line that is incomplete or damaged is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.masks.types import Floats
from layercoop_fast.search.base import finite_or_none, perplexity

# The share of sign flips of a paired test below which a difference is called real.
REAL = 0.05
_HEADER = b"layercoop_fast rows 1\n"
_KEPT = ("removed", "params", "masks", "passes", "seconds", "repair", "compensation")
# A row has a number for each window of each text; a longer line is not a row.
_LONGEST = 2**26


@dataclass(frozen=True, eq=False)
class Measured:
    """A pruned model on one text.

    Attributes:
        text: SPEC of the text.
        window_nll: mean NLL of each window, float64 [W]; with several texts weighted, so that the mean is that of the
            texts.
        p_best: p-value of the difference from the best at this size (two-sided, random signs of the windows'
            differences); 1 for the best itself, None where a window is not finite, and before all rows of the size are
            there. Models with a repair or another compensation are compared with the best of them, others with the
            best other one.
        p_unrepaired: for a model with a repair or another compensation, the p-value of its difference from itself
            without one; else None.
    """

    text: str
    window_nll: Floats
    p_best: float | None = None
    p_unrepaired: float | None = None

    @property
    def ppl(self) -> float | None:
        """exp of the mean NLL."""
        return perplexity(float(self.window_nll.mean()))

    @property
    def ppl_stderr(self) -> float | None:
        """Standard error of the perplexity over windows, to first order."""
        ppl = self.ppl
        if ppl is None or len(self.window_nll) < 2:
            return None
        return finite_or_none(ppl * float(self.window_nll.std(ddof=1)) / math.sqrt(len(self.window_nll)))


@dataclass(frozen=True, eq=False)
class Judged:
    """A pruned model by one of the judges (`comparing/judges.py`).

    Attributes:
        values: of each document, float64 [N], more is better.
        p_best: p-value of the difference from the best at this size, as that of a text, by documents
            (`masks/paired.py`); None before all rows are there, and 1 for the best itself and where all differences
            are 0.
        p_unrepaired: as that of a text.
    """

    values: Floats
    p_best: float | None = None
    p_unrepaired: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        count = len(self.values)
        return {
            "documents": count,
            "mean": float(self.values.mean()),
            "stderr": float(self.values.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
            "p_best": self.p_best,
            "as_good_as_best": None if self.p_best is None else self.p_best >= REAL,
            "p_unrepaired": self.p_unrepaired,
        }


@dataclass(frozen=True, eq=False)
class Row:
    """What one method did at one size.

    Attributes:
        method: its name.
        n_remove: number of players removed.
        removed: labels of the units that are removed; None for a method that removes width.
        params: number of parameters removed.
        masks: number of masks the method measured.
        passes: cost of the method by itself, in passes of the full model over the calibration text without its head.
        seconds: of the search in this comparison, where nothing is measured twice; for a row with a repair or another
            compensation, with that.
        texts: the calibration text first, then the others.
        repair: for a repaired model, `record` of the repair (`repair/fit.py`); else None.
        compensation: for a model with another compensation, its `record` (`comparing/compensations.py`); else None.
        judged: by the names of the judges; those of a model of less width are missing.
    """

    method: str
    n_remove: int
    removed: list[Any] | None
    params: int
    masks: int
    passes: float
    seconds: float
    texts: list[Measured] = field(default_factory=list)
    repair: dict[str, Any] | None = None
    compensation: dict[str, Any] | None = None
    judged: dict[str, Judged] = field(default_factory=dict)

    @property
    def compensated(self) -> bool:
        """Whether the model has a repair or another compensation."""
        return self.repair is not None or self.compensation is not None

    @property
    def label(self) -> str:
        """The method, and what followed it."""
        if self.compensation is not None:
            return f"{self.method} + {self.compensation['name']}"
        return self.method if self.repair is None else f"{self.method} + repair"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return {
            "method": self.method,
            "repaired": self.repair is not None,
            "remove": self.n_remove,
            "removed": self.removed,
            "params_removed": self.params,
            "masks": self.masks,
            "passes": round(self.passes, 2),
            "seconds": round(self.seconds, 3),
            "texts": [
                {
                    "text": one.text,
                    "ppl": one.ppl,
                    "ppl_stderr": one.ppl_stderr,
                    "nll": finite_or_none(float(one.window_nll.mean())),
                    "p_best": one.p_best,
                    "as_good_as_best": None if one.p_best is None else one.p_best >= REAL,
                    "p_unrepaired": one.p_unrepaired,
                }
                for one in self.texts
            ],
            "repair": self.repair,
            "compensation": self.compensation,
            "judged": {name: one.as_json() for name, one in self.judged.items()},
        }


def content_of(row: Row, mask: list[int] | None) -> dict[str, Any]:
    """What a file keeps of a row and of the indices of the players it removes, exact to the last bit."""
    kept = {name: getattr(row, name) for name in _KEPT}
    judged = {name: one.values.tolist() for name, one in row.judged.items()}
    return {**kept, "mask": mask, "window_nll": [one.window_nll.tolist() for one in row.texts], "judged": judged}


def row_of(method: str, n_remove: int, content: dict[str, Any], texts: list[str]) -> Row:
    """The row from what `content_of` kept of it, on texts with these SPECs."""
    measured = [
        Measured(text, np.array(nll, dtype=np.float64)) for text, nll in zip(texts, content["window_nll"], strict=True)
    ]
    kept = {name: content[name] for name in _KEPT}
    judged = {name: Judged(np.array(values, dtype=np.float64)) for name, values in content["judged"].items()}
    return Row(method, n_remove, texts=measured, judged=judged, **kept)


def digest_of(ids: NDArray[np.int64]) -> str:
    """A digest of token ids [W, T], for what a row depends on."""
    return hashlib.sha256(f"{ids.shape}".encode() + ids.astype("<i8").tobytes()).hexdigest()


def rows_file(store: str | Path) -> Path:
    """The file next to a store that keeps the finished rows."""
    return Path(f"{store}.rows")


class KeptRows:
    """A file of finished rows, by request; without a path nothing is found and nothing kept.

    Raises `RequestError` for a file that does not hold rows.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        try:
            if not path.is_file():
                raise _no_rows(path)
            with path.open("rb") as file:
                if not _HEADER.startswith(file.readline(len(_HEADER))):
                    raise _no_rows(path)
                for line in iter(lambda: file.readline(_LONGEST), b""):
                    self._take(line)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {reason(error)}") from error

    def find(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The content kept for an equal request."""
        return self._rows.get(_key(request))

    def keep(self, request: dict[str, Any], content: dict[str, Any]) -> None:
        """Keep a row's content; `RunError` where it cannot be written."""
        key = _key(request)
        self._rows[key] = content
        if self.path is None:
            return
        text = json.dumps({"request": key, "row": content}).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        try:
            # In one call, since another comparison may write here too; after an incomplete line, on a new one.
            with open(self.path, "a+b", buffering=0) as file:
                if file.seek(0, os.SEEK_END) < len(_HEADER):
                    file.truncate(0)
                    line = _HEADER + line
                else:
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                if file.write(line) != len(line):
                    raise OSError("the disk is full")
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {reason(error)}; the rows that were finished before are kept"
            ) from error

    def _take(self, line: bytes) -> None:
        """A row of the file, if its line is whole."""
        crc, _, text = line.rstrip(b"\n").partition(b" ")
        if crc != b"%08x" % zlib.crc32(text):
            return
        try:
            found = json.loads(text)
            row = dict(found["row"])
            if row.keys() >= {*_KEPT, "mask", "window_nll", "judged"}:
                self._rows[str(found["request"])] = row
        except (ValueError, TypeError, KeyError, RecursionError):
            return


def _no_rows(path: Path) -> RequestError:
    return RequestError(
        f"{path} does not hold the rows of a comparison, which are kept under that name next to the store: name "
        "another store, or move it away"
    )


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

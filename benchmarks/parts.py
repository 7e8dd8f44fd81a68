"""A benchmark in parts: each a process of its own with a limit, whose rows are written as they are made (`record.py`).

    suite = Suite(Path(__file__), {"smoke": ("gpu_smoke", 60)}, head_of, bench_of)
    options = suite.parser(__doc__, Path("bench-gpu.json")).parse_args()
    sys.exit(suite.run(options))

A part names a module with `rows(bench)`, which yields the name of each row and what measures it. A part that dies or
takes too long, and a row that fails, leave a line; the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import Record, table

from layercoop_fast.system.processes import tied

# A row's name and what measures it: figures by their names.
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
# With --long or --tiny a part may take so many times as long.
_LONGER = 15


@dataclass(frozen=True)
class Suite:
    """A benchmark in parts.

    Attributes:
        script: its file, which is run again for each part.
        parts: of each part the module whose `rows` it runs, and its limit in seconds.
        head: what its file begins with; one that begins otherwise is not continued.
        bench: what `rows` of a part is given.
        around: what rows are measured within.
    """

    script: Path
    parts: dict[str, tuple[str, int]]
    head: Callable[[argparse.Namespace], dict[str, Any]]
    bench: Callable[[argparse.Namespace], Any]
    around: Callable[[argparse.Namespace], AbstractContextManager[Any]] = lambda _: nullcontext()

    def parser(self, about: str | None, out: Path) -> argparse.ArgumentParser:
        """The options of every such benchmark; `out` is where it writes unless told."""
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, default=out)
        parser.add_argument("--only", default=",".join(self.parts), help=f"of {', '.join(self.parts)}")
        parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
        parser.add_argument("--long", action="store_true", help="also what takes long")
        parser.add_argument("--afresh", action="store_true", help="also what the file that is there holds")
        parser.add_argument("--part", help=argparse.SUPPRESS)
        return parser

    def run(self, options: argparse.Namespace) -> int:
        """Run all parts that `options` name, or the one that this process is for; the exit status."""
        if options.part is not None:
            self._run_part(options)
            return 0
        parts = options.only.split(",")
        if unknown := [part for part in parts if part not in self.parts]:
            sys.stderr.write(f"{unknown[0]} is not one of {', '.join(self.parts)}\n")
            return 2
        if options.afresh:
            options.out.unlink(missing_ok=True)
        for part in parts:
            self._run_apart(part, options)
        record = Record.open(options.out, self.head(options))
        sys.stdout.write(table(record.found))
        sys.stderr.write("".join(f"{line}\n" for line in record.problems))
        return 1 if record.problems else 0

    def _run_apart(self, part: str, options: argparse.Namespace) -> None:
        """Run a part as a process of its own, and write how it ended."""
        sys.stderr.write(f"{part} ...\n")
        limit = self.parts[part][1] * (_LONGER if options.long or options.tiny else 1)
        command = tied(str(self.script), *sys.argv[1:], "--part", part)
        started, problem = time.perf_counter(), None
        try:
            status = subprocess.run(command, timeout=limit, check=False).returncode
            if status != 0:
                problem = f"its process ended with status {status}; rows that it had measured are kept"
        except subprocess.TimeoutExpired:
            problem = f"it took more than its {limit} seconds; rows that it had measured are kept"
        record = Record.open(options.out, self.head(options))
        record.end(part, time.perf_counter() - started, problem)

    def _run_part(self, options: argparse.Namespace) -> None:
        """Measure the rows of a part that are missing; one that fails leaves a line in its place."""
        record = Record.open(options.out, self.head(options))
        with self.around(options):
            for row, measure in importlib.import_module(self.parts[options.part][0]).rows(self.bench(options)):
                if not record.missing(options.part, row):
                    continue
                sys.stderr.write(f"  {row} ...\n")
                try:
                    figures = measure()
                except Exception as problem:  # one row less is no reason to lose the others
                    traceback.print_exc()
                    figures = {"failed": f"{type(problem).__name__}: {problem}"[:300]}
                record.add(options.part, row, figures)

"""Seed bugs one at a time and see whether the tests find them: `make mutants`.

The bugs are a list of our own (`bugs/*.py`) and not those of a mutation tester such as mutmut or cosmic-ray: their
mutants are random changes of single operators, most of which change nothing that a user could see, a suite of minutes
cannot be run for the tens of thousands that this code would give, and C++ is out of their reach. The list has bugs of
the kind that people make and users suffer from, each with the tests that should find it.

For every bug the tree is a copy in a temporary folder; a bug in C++ compiles the files that it touches with the flags
of setup.py. The tests named must pass without any bug first. Results are appended to a file as they come, and what it
holds already for the same bug and tests is not run again. docs/mutants.md says more.

Exit status: 0 where at least 95 of 100 bugs were found, 1 where fewer were, or one is broken (it no longer applies,
does not compile, or its tests fail without it), 2 where the list itself is wrong.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.bug import ROOT, Bug, all_bugs
from mutants.extension import Extension
from mutants.tree import BROKEN, FOUND, SURVIVED, Outcome, Tree

ASKED = 0.95


def main() -> int:
    """Parse the arguments, run, and print one line a bug and a summary."""
    arguments = _parser().parse_args()
    try:
        bugs = [bug for bug in all_bugs() if any(fnmatch.fnmatch(bug.id, pattern) for pattern in arguments.only)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not bugs:
        print(f"error: no bug matches {' '.join(arguments.only)}; --list names all", file=sys.stderr)
        return 2
    if arguments.list:
        for bug in bugs:
            print(f"{bug.id:45} {bug.file}: {bug.means}")
        return 0
    results = Results(arguments.results)
    waiting = [bug for bug in bugs if bug.id not in results.known(bugs)]
    extension = Extension(ROOT, arguments.jobs)
    if any(bug.file.startswith("csrc/") for bug in waiting):
        extension.prepare()
    with (
        tempfile.TemporaryDirectory(prefix="layercoop-mutants-") as folder,
        _trees(folder, arguments, extension) as trees,
    ):
        if waiting and not arguments.no_baseline:
            tree = trees.get()
            tests = sorted({word for bug in waiting for word in bug.test_files()})
            what, by = tree.run_tests(tests, arguments.limit * len(tests))
            trees.put(tree)
            if what != SURVIVED:
                print(f"error: the tests fail without any bug: {by}", file=sys.stderr)
                return 1

        def attempt(bug: Bug) -> None:
            tree = trees.get()
            try:
                outcome = tree.try_bug(bug, arguments.limit)
            finally:
                trees.put(tree)
            results.add(bug, outcome)
            print(f"{outcome.what:8} {bug.id:45} {outcome.seconds:4.0f} s  {outcome.by}", flush=True)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(attempt, waiting))
    return summarise(bugs, results.known(bugs))


class Results:
    """The file of results: one JSON object a line, the last one of a bug being the one that counts."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def known(self, bugs: list[Bug]) -> dict[str, str]:
        """What became of those of the bugs that were tried as they are now, by name."""
        if not self._path.exists():
            return {}
        keys = {bug.id: _key(bug) for bug in bugs}
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return {line["bug"]: line["what"] for line in lines if keys.get(line["bug"]) == line["key"]}

    def add(self, bug: Bug, outcome: Outcome) -> None:
        """Append one result."""
        line = {"bug": bug.id, "key": _key(bug), **vars(outcome)}
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def summarise(bugs: list[Bug], known: dict[str, str]) -> int:
    """Print a line for each area and one for all; the exit status."""
    for area in dict.fromkeys(bug.area for bug in bugs):
        of_area = [bug for bug in bugs if bug.area == area]
        found = sum(known[bug.id] == FOUND for bug in of_area)
        print(f"{area:12} {found:3} of {len(of_area):3} found")
    for bug in bugs:
        if known[bug.id] != FOUND:
            print(f"{known[bug.id]}: {bug.id} ({bug.file}): {bug.means}")
    found = sum(what == FOUND for what in known.values())
    share = found / len(bugs)
    print(f"found {found} of {len(bugs)} seeded bugs ({100 * share:.1f} %; at least {100 * ASKED:.0f} % are asked for)")
    return 0 if share >= ASKED and BROKEN not in known.values() else 1


@contextmanager
def _trees(folder: str, arguments: argparse.Namespace, extension: Extension) -> Iterator[queue.Queue[Tree]]:
    """A copy of the repository for each job."""
    trees: queue.Queue[Tree] = queue.Queue()
    for number in range(arguments.jobs):
        trees.put(Tree(ROOT, Path(folder) / str(number), extension))
    yield trees
    while not trees.empty():
        trees.get().close()


def _key(bug: Bug) -> str:
    """What a result depends on: the bug, its file and its tests as they are."""
    digest = hashlib.sha256(repr(bug).encode())
    for name in [bug.file, *bug.test_files()]:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Seed bugs one at a time and see whether the tests find them.")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of bugs, such as 'csrc/*'")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="name the bugs and what they mean, and run nothing")
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of a bug; more counts as found")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a bug first")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build/mutants/results.jsonl", help="file of results, which is continued"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

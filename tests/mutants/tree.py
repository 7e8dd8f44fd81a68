"""A copy of the repository in which one bug at a time is put in, tried and taken out again."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants.bug import Bug
from mutants.extension import Extension

FOUND, SURVIVED, BROKEN = "found", "survived", "broken"


@dataclass(frozen=True)
class Outcome:
    """What became of a bug: found, survived, or broken (it does not apply, compile, or name tests that run)."""

    what: str
    by: str  # the test that failed first, or why a bug is broken
    seconds: float


class Tree:
    """A copy of `root`: what git knows or would add, and the built extension. `folder` is its place."""

    def __init__(self, root: Path, folder: Path, extension: Extension):
        self.folder = folder
        self._extension = extension
        # A file's time tells Python whether its compiled form is stale: every change gets a second of its own.
        self._clock = itertools.count(int(time.time()))
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        built = [str(path.relative_to(root)) for path in (root / "layercoop_fast").glob("_C*.so")]
        for name in [*listed.split("\0"), *built]:
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        self._server = _started(folder)

    def try_bug(self, bug: Bug, limit: float) -> Outcome:
        """Put the bug in, run its tests with `limit` seconds, and take it out."""
        began = time.monotonic()
        path = self.folder / bug.file
        original = path.read_text()
        built = [(each, each.read_bytes()) for each in (self.folder / "layercoop_fast").glob("_C*.so")]
        try:
            self._write(path, bug.applied(original))
            if bug.file.startswith("csrc/"):
                self._extension.build(self.folder, self._extension.users_of(bug.file))
            what, by = self.run_tests(bug.tests.split(), limit)
        except ValueError as error:
            what, by = BROKEN, str(error)
        except subprocess.CalledProcessError as error:
            what, by = BROKEN, f"does not compile: {error.stderr.strip().splitlines()[0]}"
        finally:
            self._write(path, original)
            if bug.file.startswith("csrc/"):
                for each, content in built:
                    each.unlink()  # a new file: a process that still runs keeps the old one
                    each.write_bytes(content)
        return Outcome(what, by, time.monotonic() - began)

    def run_tests(self, tests: list[str], limit: float) -> tuple[str, str]:
        """(found, the test that failed), (survived, "") or (broken, why); a run past `limit` seconds is found."""
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)  # what failed with another bug tells of this one
        answer = self._ask(tests, limit)
        status, output = answer["status"], answer["output"]
        if status is None:
            return FOUND, f"over {limit:.0f} s"
        if status == 0:
            return SURVIVED, ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if status in (1, 2) and failed:
            return FOUND, failed[1]
        if status < 0:
            return FOUND, f"ended by signal {-status}"
        return BROKEN, f"pytest: status {status}: {(output.strip().splitlines() or ['no word'])[-1]}"

    def close(self) -> None:
        """End the process that runs the tests."""
        self._server.stdin.close()
        self._server.wait()

    def _ask(self, tests: list[str], limit: float) -> dict[str, Any]:
        """What the server (`server.py`) answers."""
        self._server.stdin.write(json.dumps({"tests": tests, "limit": limit}) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        now = next(self._clock)
        os.utime(path, (now, now))


def _started(folder: Path) -> Any:
    """The process that runs tests (`server.py`), with pipes, once it has loaded what it needs."""
    server: Any = subprocess.Popen(
        [sys.executable, "tests/mutants/server.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stream: Any = server.stdout
    if stream.readline() != "ready\n":
        raise RuntimeError("the process that runs the tests did not start")
    return server

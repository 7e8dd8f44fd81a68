"""Damaged inputs of every format that is read: each must be taken, or refused in one line, in 10 s and 1 GB.

python tests/fuzz/run.py --minutes 30                  # fresh seeds; the last line is JSON
python tests/fuzz/run.py --cases 1000 --first 0        # so many cases of each format, from a seed on
python tests/fuzz/run.py --format gguf --first 1234 --cases 1 --keep /tmp/case     # one case again, and its files
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = (
    *("npz", "npy", "store", "gguf", "layercoop.json", "masks", "items", "groups", "surrogates"),
    *("checkpoint", "tokenizer"),
)
# Cases beside those of other formats: what opens a whole model takes longest.
SHARES = {"store": 0.5, "checkpoint": 0.05, "tokenizer": 0.05, "adapter": 0.2}
# Cases of a format before the next one takes its turn.
_TURN = 200
# Seconds until an answer that does not come is a failure. A case has 10 s of the processor; before its first one a
# worker loads its libraries and makes its files.
_PATIENCE, _FIRST_PATIENCE = 60, 600


@dataclass
class Tally:
    """What came of a format's cases."""

    cases: int = 0
    taken: int = 0
    refused: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, int]:
        """The counts."""
        return {"cases": self.cases, "taken": self.taken, "refused": self.refused, "failed": len(self.failures)}


class Fuzzer:
    """Runs cases in a worker, which is replaced when it dies; a context manager."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        # Ours, since a worker that is killed clears nothing away; in memory where the system has such a folder, since
        # what is written whole is flushed to the disk.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._scratch = tempfile.TemporaryDirectory(prefix="layercoop-fuzz-", dir=memory)
        self._worker: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()
        self._unread = b""

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._scratch.cleanup()

    def run(self, name: str, first: int, last: int, keep: str | None = None) -> Tally:
        """Try the seeds `first` to `last` − 1 of a format."""
        tally = self.tallies.setdefault(name, Tally())
        while first < last:
            self._ask({"format": name, "first": first, "last": last, "keep": keep})
            while first < last:
                answer = self._answer(_PATIENCE if name in self._known else _FIRST_PATIENCE)
                if answer is None and name not in self._known:
                    raise RuntimeError(f"the worker did not come to its first case of {name}")
                self._known.add(name)
                tally.cases += 1
                if answer is None:
                    tally.failures.append({"format": name, "seed": first, "why": "the process died, or did not answer"})
                    self._end()
                    first += 1
                    break
                first = answer["seed"] + 1
                tally.taken += answer["outcome"] == "taken"
                tally.refused += answer["outcome"] == "refused"
                if answer["outcome"] == "failed":
                    tally.failures.append({"format": name, **answer})
        return tally

    def _ask(self, request: dict[str, Any]) -> None:
        if self._worker is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LAYERCOOP_THREADS": "1"}
            environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}
            self._worker = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), self._scratch.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if "LAYERCOOP_FUZZ_SHOW" not in os.environ else None,
                env=environment,
            )
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(request).encode() + b"\n")
        self._worker.stdin.flush()

    def _answer(self, patience: float) -> dict[str, Any] | None:
        """The next line of the worker; None where none comes."""
        assert self._worker is not None
        assert self._worker.stdout is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._worker.stdout], [], [], max(0, deadline - time.monotonic()))
            piece = os.read(self._worker.stdout.fileno(), 2**16) if ready else b""
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
        self._worker, self._unread, self._known = None, b"", set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="go on for so long, with seeds that were not tried before")
    parser.add_argument("--cases", type=int, default=100, help="cases of each format, where no minutes are given")
    parser.add_argument("--first", type=int, help="first seed; a fresh one unless given")
    parser.add_argument("--format", choices=NAMES, action="append", help="this format alone; repeatable")
    parser.add_argument("--keep", help="folder for the files of the last case")
    asked = parser.parse_args(arguments)
    first = secrets.randbelow(2**40) if asked.first is None else asked.first
    names = asked.format or NAMES
    ends = None if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    started = time.monotonic()
    print(f"seeds from {first} on", flush=True)
    with Fuzzer() as fuzzer:
        at = dict.fromkeys(names, first)
        while True:
            for name in names:
                share = SHARES.get(name, 1.0) if len(names) > 1 else 1.0
                count = max(1, round(share * (_TURN if ends is not None else asked.cases)))
                known = len(fuzzer.tallies[name].failures) if name in fuzzer.tallies else 0
                tally = fuzzer.run(name, at[name], at[name] + count, asked.keep)
                at[name] += count
                for failure in tally.failures[known:]:
                    print(f"{name}, seed {failure['seed']}: {failure['why']}", flush=True)
                if ends is not None and time.monotonic() > ends:
                    break
            if ends is None or time.monotonic() > ends:
                break
            print(f"{sum(one.cases for one in fuzzer.tallies.values())} cases so far", file=sys.stderr, flush=True)
        counts = {name: tally.as_json() for name, tally in fuzzer.tallies.items()}
    failed = sum(one["failed"] for one in counts.values())
    total = {"first_seed": first, "cases": sum(one["cases"] for one in counts.values()), "failed": failed}
    print(json.dumps({**total, "seconds": round(time.monotonic() - started), "formats": counts}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

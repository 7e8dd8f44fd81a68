"""A process that tries damaged inputs within a limit of memory and time, and says what came of each.

Its argument is a folder to work in. It reads lines of JSON, `{"format": "npz", "first": 0, "last": 100}`, and answers
each seed with a line `{"seed": 0, "outcome": "taken" | "refused" | "failed", "why": "..."}`. Where it dies, or does not
answer, the seed that it has not answered failed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
SECONDS, BYTES = 10, 2**30


class _SlowError(BaseException):
    """The time for a case is over."""


def main() -> None:
    """Answer requests until there are no more."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "support")]
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries print
    warnings.simplefilter("ignore")
    from formats import FORMATS, emptied

    # Of the processor's time, so that a busy machine makes no failures; whoever waits for an answer goes by the clock.
    signal.signal(signal.SIGPROF, _over)
    made: dict[str, Any] = {}
    scratch = Path(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["format"]
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if name not in made:
            made[name] = FORMATS[name](emptied(scratch / name / "sound"))
        for seed in range(asked["first"], asked["last"]):
            place = emptied(scratch / name / "place")
            resource.setrlimit(resource.RLIMIT_AS, (_held() + BYTES, resource.RLIM_INFINITY))
            outcome, why = _tried(made[name], Random(f"{name} {seed}"), place)
            answers.write(json.dumps({"seed": seed, "outcome": outcome, "why": why}) + "\n")
            answers.flush()
            if asked.get("keep"):
                emptied(Path(asked["keep"]))
                shutil.copytree(place, Path(asked["keep"]) / f"{name} {seed}")


def _tried(one: Any, rng: Random, place: Path) -> tuple[str, str]:
    """What came of a case, and of a failure why."""
    from layercoop_fast.errors import LayercoopError
    from layercoop_fast.shown import shown

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        one.attempt(rng, place)
        return "taken", ""
    except LayercoopError as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        line = str(error)
        if not line or "\n" in line or shown(line) != line:
            return "failed", f"not one plain line: {line!r}"
        if _is_of_memory(error):
            return "failed", f"more than {BYTES:,} bytes: {line}\n{traceback.format_exc()[-3000:]}"
        return "refused", line
    except _SlowError:
        return "failed", f"more than {SECONDS} s\n{traceback.format_exc()[-3000:]}"
    except BaseException:  # of Rust code that panicked too
        signal.setitimer(signal.ITIMER_PROF, 0)
        return "failed", traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that there was no more memory."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _held() -> int:
    """Bytes of addresses that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _over(*_: object) -> None:
    raise _SlowError


if __name__ == "__main__":
    main()

"""What is left when runs are killed, disks are full, and two write to one place. Ends in one JSON line.

    python benchmarks/robustness/bench_kills.py [--kills 50] [--prunes 20] [--drivers 20] [--parts kills full ...]

Everything is the command line itself on a tiny model, killed with SIGKILL at moments drawn evenly over an undisturbed
run. A moment is so many seconds of processor time, of the run and its children, so that it means the same on a machine
that is busy with other things:

    kills    `evaluate --store`: nothing committed is lost, and the worths of the last run have the bits of one that was
             never killed.
    prunes   `prune --force` over an older folder, costs measured: the folder is always whole, the old one or the new
             one, processes that it started are gone within five seconds, and the next run clears what killed ones left.
    drivers  `evaluate --workers 2`: no worker is left after five seconds.
    full     a file system without room (a tmpfs, mounted here: needs root): one line, exit status 1, nothing
             half-written; with room again the same command ends as if nothing had been.
    writers  two runs into one store, and two into one folder, without --force and with it.

Most runs are forks of this process, which has imported what they need, so that kills fall into their work; every fifth
begins as a fresh interpreter, so that some fall into its start and its imports. Workers and the processes that measure
costs are fresh interpreters in any case. A part that finds something else ends the benchmark with an assertion. (About
five minutes of processor time.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch; also of what is started here

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from machine import machine
from process_table import descendants, left_after
from tiny_models import save_tiny

import layercoop_fast.pruning.prune  # noqa: F401  (what runs import is imported here, once)
from layercoop_fast.__main__ import main as main_of_the_command_line
from layercoop_fast.errors import RequestError
from layercoop_fast.game.store import Store, check_store
from layercoop_fast.game.worths import Worths

LAYERS, MASKS = 14, 3000
TEXT = ["--windows", "4", "--tokens", "64"]
SECONDS = 5.0
LEFTOVERS = ".*.layercoop-*"


class Place:
    """The folder of a part, with the model, masks, and what an undisturbed run makes of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.model = save_tiny(folder / "model", n_layers=LAYERS)
        self.masks = np.unique(np.random.default_rng(5).random((MASKS, LAYERS)) < 0.6, axis=0)
        np.save(folder / "masks.npy", self.masks)
        self.seconds: dict[str, float] = {}
        self.timed("evaluate", self.evaluate(folder / "plain.npz", folder / "plain.store"))
        self.timed("start", ["doctor", str(self.model)], fresh=True)
        self.worths = Worths.load(folder / "plain.npz")

    def evaluate(self, out: Path, store: Path, *more: str, masks: Path | None = None) -> list[str]:
        """The command that measures the masks."""
        files = ["--masks", str(masks or self.folder / "masks.npy"), "--out", str(out), "--store", str(store)]
        return ["evaluate", str(self.model), *files, *TEXT, "--force", *more]

    def prune(self, out: Path, *more: str, remove: int = 3) -> list[str]:
        """The command that removes layers by a rule that takes no time."""
        asked = ["--remove", str(remove), "--method", "reverse", "--no-repair", "--samples", "0", "--out", str(out)]
        return ["prune", str(self.model), *asked, *TEXT, *more]

    def timed(self, name: str, command: Sequence[str], *, fresh: bool = False) -> None:
        """Run a command to its end, and note how much processor time that took."""
        before = os.times()
        status, said = Run(command, fresh=fresh).end()
        after = os.times()
        assert status == 0, said
        self.seconds[name] = sum(after[2:4]) - sum(before[2:4])

    def moment(self, name: str, *, fresh: bool, late: bool = False) -> float:
        """A moment of a run, in seconds of processor time: from `start` on where it is fresh, or in its latter half."""
        seconds = self.seconds[name] + (self.seconds["start"] if fresh else 0.0)
        return float(self.rng.uniform(0.5 if late else 0.0, 1.0) * seconds)


class Run:
    """A run of the command line on its way; `fresh`: as an interpreter of its own, else as a fork of this process."""

    def __init__(self, command: Sequence[str], *, fresh: bool = False) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the run)
        self.status: int | None = None
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            self._be(command, fresh)

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        if self.status is None and (found := os.waitpid(self.process, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status

    def end(self) -> tuple[int, str]:
        """Wait for it: its exit status, and what it said on standard error."""
        while self.poll() is None:
            time.sleep(0.02)
        self.said.seek(0)
        assert self.status is not None
        return self.status, self.said.read().decode()

    def _be(self, command: Sequence[str], fresh: bool) -> NoReturn:
        """Be the run: this is a child now."""
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self.said.fileno(), 2)
            if fresh:
                os.execv(sys.executable, [sys.executable, "-m", "layercoop_fast", *command])
            sys.argv = ["layercoop-fast", *command]
            main_of_the_command_line()
        except SystemExit as left:
            status = int(left.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run the command line to its end: exit status, standard error."""
    return Run(command).end()


def killed(command: Sequence[str], seconds: float, *, fresh: bool) -> tuple[int, set[int], set[int]]:
    """Kill a run after so much processor time: its status, the processes it had started, and those left 5 s later."""
    one = Run(command, fresh=fresh)
    while one.poll() is None:
        if sum(map(processor_seconds, {one.process} | descendants(one.process))) < seconds:
            time.sleep(0.02)
            continue
        os.kill(one.process, signal.SIGSTOP)  # it starts nothing more while its children are listed
        children = descendants(one.process)
        os.kill(one.process, signal.SIGKILL)
        return one.end()[0], children, left_after(children, SECONDS)
    return one.end()[0], set(), set()


def processor_seconds(process: int) -> float:
    """What a process, and the children that it has waited for, have used; none where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def tell(part: str, done: int, count: int) -> None:
    """How far a part is, on standard error."""
    print(f"{part}: {done} of {count}", file=sys.stderr, flush=True)


def held_by(store: Path) -> int:
    """Masks that a store holds; asserts that none was measured twice."""
    try:
        with Store(store) as opened:
            games = opened.games()
    except RequestError:
        assert not store.exists() or not check_store(store)
        return 0
    assert [game.masks for game in games] == [game.measured for game in games]
    return sum(game.masks for game in games)


def same_bits(place: Place, out: Path) -> bool:
    """Whether worths have the bits of the run that was never disturbed."""
    found = Worths.load(out)
    return found.worths.tobytes() == place.worths.worths.tobytes() and (
        found.window_nll.tobytes() == place.worths.window_nll.tobytes()
    )


def digest(folder: Path) -> dict[str, str]:
    """The files of a pruned checkpoint: their hashes, but for the two that hold times."""
    return {
        path.name: ""
        if path.name in ("layercoop.json", "report.html")
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def kills(place: Place, count: int) -> dict[str, Any]:
    """`evaluate --store`, killed again and again."""
    done, finished, kept, in_the_middle = 0, 0, 0, 0
    folder = place.folder
    while done < count:
        store, out = folder / f"{finished}.store", folder / f"{finished}.npz"
        fresh = done % 5 == 4
        status, _, left = killed(place.evaluate(out, store), place.moment("evaluate", fresh=fresh), fresh=fresh)
        assert not left
        if status == 0:
            assert same_bits(place, out)
            finished, kept = finished + 1, 0
            continue
        assert status == -signal.SIGKILL
        done += 1
        tell("kills", done, count)
        held = held_by(store)
        assert held >= kept
        in_the_middle += held > kept
        kept = held
    store, out = folder / f"{finished}.store", folder / f"{finished}.npz"
    status, said = run(place.evaluate(out, store))
    assert status == 0, said
    assert same_bits(place, out)
    assert not list(folder.glob(LEFTOVERS))
    return {"kills": done, "that_had_measured": in_the_middle, "runs_that_finished": finished + 1, "same_bits": True}


def prunes(place: Place, count: int) -> dict[str, Any]:
    """`prune --force`, killed again and again, over a folder that another size of removal has made."""
    out = place.folder / "pruned"
    place.timed("prune", place.prune(out))
    new = digest(out)
    assert run(place.prune(out, "--force", "--no-cost", remove=2)) == (0, "")
    old = digest(out)
    done, left_folders, children_seen, replaced = 0, 0, 0, 0
    while done < count:
        fresh = done % 5 == 4
        at = place.moment("prune", fresh=fresh, late=done % 2 == 0)  # later the folder is written, and costs measured
        status, children, left = killed(place.prune(out, "--force"), at, fresh=fresh)
        assert not left, left
        if out.exists():
            assert digest(out) in (old, new)
        else:
            (aside,) = place.folder.glob(f"{LEFTOVERS}/old")
            assert digest(aside) in (old, new)
        if status == 0:
            assert not list(place.folder.glob(LEFTOVERS))
            replaced += 1
            continue
        assert status == -signal.SIGKILL
        done += 1
        tell("prunes", done, count)
        children_seen += len(children)
        after = len(list(place.folder.glob(LEFTOVERS)))
        left_folders += after > 0
        assert after <= 1  # the last one's: those before are cleared
    assert run(place.prune(out, "--force", "--no-cost")) == (0, "")
    assert digest(out) == new
    assert not list(place.folder.glob(LEFTOVERS))
    return {
        "kills": done, "half_written": 0, "left_a_hidden_folder": left_folders, "cleared_by_the_next": True,
        "children_at_the_kill": children_seen, "children_left": 0, "runs_that_finished": replaced + 1,
    }  # fmt: skip


def drivers(place: Place, count: int) -> dict[str, Any]:
    """`evaluate --workers 2`, the driver killed again and again."""
    done, seen, with_workers = 0, 0, 0
    store, out = place.folder / "drivers.store", place.folder / "drivers.npz"
    place.timed("drivers", place.evaluate(out, store, "--workers", "2"))
    store.unlink()
    while done < count:
        fresh = done % 5 == 4
        command = place.evaluate(out, store, "--workers", "2")
        status, children, left = killed(command, place.moment("drivers", fresh=fresh), fresh=fresh)
        assert not left, left
        if status == 0:
            store.unlink()
            continue
        assert status == -signal.SIGKILL
        done += 1
        tell("drivers", done, count)
        seen += len(children)
        with_workers += bool(children)
    return {
        "kills": done, "kills_that_met_workers": with_workers, "workers_at_the_kill": seen, "workers_left": 0,
    }  # fmt: skip


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full(place: Place) -> dict[str, Any]:
    """No room for a store, and none for a checkpoint."""
    if os.geteuid() != 0:
        return {"not_done": "a file system can be mounted by root alone"}
    weights = sum(path.stat().st_size for path in place.model.iterdir())
    with small_disk(place.folder / "disk", 4 * weights + 2**20) as disk:
        ballast, store, out = disk / "ballast", disk / "all.store", disk / "worths.npz"
        room = shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(room - 96 * 1024))
        status, said = run(place.evaluate(out, store))
        assert (status, said.count("\n"), out.exists()) == (1, 1, False), said
        ballast.unlink()
        kept = held_by(store)
        assert run(place.evaluate(out, store)) == (0, "")
        assert same_bits(place, out)
        store.unlink()
        pruned, lines = disk / "pruned", []
        assert run(place.prune(pruned, "--no-cost", remove=10)) == (0, "")
        before = digest(pruned)
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - weights // 3))
        for command in (place.prune(disk / "new", "--no-cost"), place.prune(pruned, "--no-cost", "--force")):
            status, refused = run(command)
            assert (status, refused.count("\n")) == (1, 1), refused
            lines.append(refused.strip())
            assert digest(pruned) == before
            assert sorted(path.name for path in disk.iterdir()) == ["ballast", "pruned", "worths.npz"]
        ballast.unlink()
        assert run(place.prune(pruned, "--no-cost", "--force")) == (0, "")
    return {"store": said.strip(), "kept_in_it": kept, "prune": lines, "same_bits_with_room_again": True}


def writers(place: Place) -> dict[str, Any]:
    """Two at a time."""
    folder, masks = place.folder, place.masks
    both = folder / "both.store"
    halves = [(folder / f"half{i}.npy", folder / f"half{i}.npz") for i in range(2)]
    parts = [masks[: 2 * len(masks) // 3], masks[len(masks) // 3 :]]
    for (path, _), part in zip(halves, parts, strict=True):
        np.save(path, part)
    ends = ended([place.evaluate(out, both, masks=path) for path, out in halves])
    assert [status for status, _ in ends] == [0, 0], ends
    known = {mask.tobytes(): nll.tobytes() for mask, nll in zip(masks, place.worths.window_nll, strict=True)}
    for _, out in halves:
        found = Worths.load(out)
        assert all(
            nll.tobytes() == known[mask.tobytes()] for mask, nll in zip(found.masks, found.window_nll, strict=True)
        )
    with Store(both) as store:
        (game,) = store.games()
    assert game.masks == len(masks) + (not masks.all(axis=1).any())

    target, told = folder / "one", []
    ends = ended([place.prune(target, "--no-cost"), place.prune(target, "--no-cost", remove=2)])
    assert sorted(status for status, _ in ends)[0] == 0, ends
    assert sorted(status for status, _ in ends)[1] in (1, 2), ends
    told += [error.strip() for status, error in ends if status]
    sizes = [len(digest(target))]
    ends = ended([place.prune(target, "--no-cost", "--force", remove=size) for size in (4, 5)])
    assert 0 in [status for status, _ in ends], ends
    told += [error.strip() for status, error in ends if status]
    sizes.append(len(digest(target)))
    assert sizes[0] == sizes[1]
    assert all(error.count("\n") == 0 for error in told)
    assert not list(folder.glob(LEFTOVERS))
    return {"one_store": {"masks": game.masks, "measured_twice": game.measured - game.masks}, "one_folder": told}


def ended(commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Exit statuses and what was said of commands that run at the same time."""
    return [one.end() for one in [Run(command) for command in commands]]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--prunes", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=["kills", "prunes", "drivers", "full", "writers"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parts: dict[str, Any] = {
        "kills": lambda place: kills(place, arguments.kills),
        "prunes": lambda place: prunes(place, arguments.prunes),
        "drivers": lambda place: drivers(place, arguments.drivers),
        "full": full,
        "writers": writers,
    }
    result: dict[str, Any] = {"benchmark": "robustness/kills", "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), arguments.seed)
        for name in arguments.parts:
            began = time.monotonic()
            result[name] = parts[name](place)
            result[name]["seconds"] = round(time.monotonic() - began, 1)
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
        result["processor_seconds_undisturbed"] = {name: round(seconds, 1) for name, seconds in place.seconds.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

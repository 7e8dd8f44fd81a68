"""llama.cpp and ik_llama.cpp as `benchmarks/peers/*.sh` built them: one run of their `llama-batched-bench`."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from small_model import cache_folder

# Folders in the cache, and the ways of running each that are tried.
WAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llama.cpp": (("-fa", "on"),),
    "ik_llama.cpp": ((), ("-rtr",)),  # its flash attention is on by itself
}
_LIMIT = 600  # seconds of a run


def peers_folder() -> Path:
    """Where the scripts put what they build."""
    return cache_folder() / "peers"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        prompt: tokens of each request's prompt.
        new: tokens that each request is answered with.
        batch: number of requests.
    """

    prompt: int
    new: int
    batch: int = 1


@dataclass(frozen=True)
class Speeds:
    """Tokens a second over all requests: of prompts, and of answers."""

    prompt: float
    answer: float


@dataclass(frozen=True)
class Peer:
    """A program that is there, run one way.

    Attributes:
        name: of the program.
        folder: of its binaries.
        threads: that it may use.
        way: further options.
    """

    name: str
    folder: Path
    threads: int
    way: tuple[str, ...]

    def speeds(self, file: Path, run: Run) -> Speeds:
        """Run a GGUF file. Raises `RuntimeError` where the program fails."""
        context = (run.prompt + run.new) * run.batch + 64
        command = [str(self.folder / "llama-batched-bench"), "-m", str(file), "-c", str(context)]
        command += ["-b", "2048", "-ub", "512", "-t", str(self.threads), "-tb", str(self.threads), *self.way]
        command += ["-npp", str(run.prompt), "-ntg", str(run.new), "-npl", str(run.batch)]
        with tempfile.TemporaryDirectory() as scratch:  # where it may leave a log
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False, cwd=scratch)
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]  # ik_llama.cpp writes its table to the second
        cells = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
        rows = [row for row in cells if row and row[0].strip().isdigit()]
        if done.returncode != 0 or not rows:
            raise RuntimeError(f"{self.name} ended with status {done.returncode}: {done.stderr[-200:]}")
        return Speeds(prompt=float(rows[-1][5]), answer=float(rows[-1][7]))


def peers_here(threads: int) -> list[Peer]:
    """The programs that were built, each in all its ways."""
    return [
        Peer(name, folder, threads, way)
        for name, ways in WAYS.items()
        if (folder := peers_folder() / name).joinpath("llama-batched-bench").is_file()
        for way in ways
    ]


def quantise(source: Path, out: Path, kind: str) -> None:
    """Write a GGUF file in another type by llama.cpp's own tool; below 16 bits the head has 8, as ours."""
    tool = peers_folder() / "llama.cpp" / "llama-quantize"
    part = out.with_suffix(".part")
    table = ["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"] if kind.startswith("Q") else []
    subprocess.run(
        [str(tool), "--allow-requantize", *table, str(source), str(part), kind], check=True, capture_output=True
    )
    part.rename(out)

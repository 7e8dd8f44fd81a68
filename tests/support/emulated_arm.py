"""A wheel for 64-bit ARM, and tests of its kernels on processors that are not here: `make test-arm`.

    python tests/support/emulated_arm.py [arguments of pytest]

QEMU runs a Python for ARM, with torch, which builds the wheel into build/arm/wheel with a cross compiler. The wheel's
kernels are then tested on three processors in turn: one with NEON alone, one with dot products of integers too
(DotProd), and one with all that the core uses (I8MM, BF16). Without arguments the tests are those of packed products
and of the choice of instructions, and on the last processor those of all kernels. It takes some minutes to set up and
three quarters of an hour to run. What it downloads and builds stays in build/arm.

Needs of Debian: g++-aarch64-linux-gnu qemu-user mmdebstrap.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import requires
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUILT = PROJECT / "build" / "arm"
ROOT, SITE, SOURCE, WHEEL, TREE = (BUILT / name for name in ("root", "site", "source", "wheel", "tree"))

COMPILER, EMULATOR, BOOTSTRAP = "aarch64-linux-gnu-g++", "qemu-aarch64", "mmdebstrap"
NEEDED = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user", BOOTSTRAP: "mmdebstrap"}

# QEMU's names, from the least to the most instructions.
# The last one checks pointers as fast as QEMU can: by default that takes most of the time.
PROCESSORS = {"cortex-a72": "NEON alone", "neoverse-n1": "DotProd", "max,pauth-impdef=on": "I8MM and BF16"}
FASTEST = list(PROCESSORS)[-1]
PRODUCTS = ("tests/kernels/test_linear.py", "tests/csrc/test_dispatch.py", "tests/csrc/test_dots.py")
KERNELS = ("tests/kernels", "--ignore", "tests/kernels/gpu", "tests/csrc/test_dispatch.py", "tests/csrc/test_dots.py")

# ARM wheels of later versions of torch come with gigabytes of CUDA. pip reads markers for the machine it runs on, so
# torch comes without its own requirements, which are named here.
TORCH = "torch>=2.4,<2.9"
LIBRARIES = (
    *("filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools"),
    *("pytest>=8", "hypothesis", "pybind11>=2.13"),
)


def run(*command: str | Path, cwd: Path = PROJECT) -> None:
    """Run a command; raises CalledProcessError where it fails."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def version() -> str:
    """Version of the Python in the tree for ARM, "3.13" for example."""
    return os.readlink(ROOT / "usr/bin/python3").removeprefix("python")


def make_root() -> None:
    """Unpack a small Debian for ARM with Python."""
    if (ROOT / "usr/bin/python3").is_symlink():
        return
    shutil.rmtree(ROOT, ignore_errors=True)
    packages = "python3,libpython3-dev,libstdc++6,libgomp1,zlib1g,libexpat1"
    run(BOOTSTRAP, "--arch=arm64", "--variant=extract", f"--include={packages}", "stable", ROOT)
    for name in ("lib", "bin"):
        if not (ROOT / name).exists():
            (ROOT / name).symlink_to(f"usr/{name}")


def make_site() -> None:
    """Unpack the wheels for ARM that tests of kernels use."""
    if (SITE / "complete").exists():
        return
    shutil.rmtree(SITE, ignore_errors=True)
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", SITE, "--only-binary=:all:", *platforms)
    pip += ("--implementation=cp", f"--python-version={version()}")
    ours = [one for one in requires("layercoop-fast") or () if "extra ==" not in one and not one.startswith("torch")]
    run(*pip, *ours, *LIBRARIES)
    run(*pip, "--no-deps", TORCH)
    (SITE / "complete").touch()


def make_wheel() -> Path:
    """Build the wheel as on ARM; the compiler that Debian's Python names there is a cross compiler here."""
    for kept in ("csrc", "layercoop_fast"):
        shutil.rmtree(SOURCE / kept, ignore_errors=True)
        shutil.copytree(PROJECT / kept, SOURCE / kept, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(PROJECT / name, SOURCE)
    shutil.rmtree(WHEEL, ignore_errors=True)
    headers = f"-isystem {ROOT}/usr/include/python{version()} -isystem {ROOT}/usr/include"
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(WHEEL)!r})"
    environment = {**os.environ, "CFLAGS": headers, "CXXFLAGS": headers}
    subprocess.run([interpreter(FASTEST), "-c", code], cwd=SOURCE, env=environment, check=True)
    return next(WHEEL.glob("*_aarch64.whl"))


def make_tree(wheel: Path) -> None:
    """Unpack the wheel, with the tests beside it."""
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.unpack_archive(wheel, TREE, "zip")
    shutil.copytree(PROJECT / "tests", TREE / "tests", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(PROJECT / "pyproject.toml", TREE)


def interpreter(processor: str) -> Path:
    """A command that is Python on a processor. Tests start it too: the system could not run the ARM program itself."""
    made = BUILT / f"python-{processor.partition(',')[0]}"
    paths = f"{TREE}:{SITE}"
    command = shlex.join([EMULATOR, "-cpu", processor, "-L", str(ROOT), str(ROOT / "usr/bin" / f"python{version()}")])
    made.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(paths)} exec {command} "$@"\n')
    made.chmod(0o755)
    return made


def tested(processor: str, arguments: Sequence[str]) -> bool:
    """Whether tests pass on a processor."""
    python = interpreter(processor)
    code = f"import sys, pytest; sys.executable = {str(python)!r}; sys.exit(pytest.main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(BUILT / "pyc")}
    command = [python, "-c", code, "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=TREE, env=environment, check=False).returncode == 0


def summary(processors: Iterable[str], failed: Sequence[str]) -> int:
    """Say which processors ran and on which the tests failed; 1 where they did on any."""
    print(f"\nprocessors run: {'; '.join(processors)}" + (f" - failed on {'; '.join(failed)}" if failed else ""))
    return int(bool(failed))


def main(arguments: Sequence[str]) -> int:
    """Set up what is missing and run the tests on every processor; 1 where any fail, 2 where a tool is missing."""
    missing = [package for tool, package in NEEDED.items() if shutil.which(tool) is None]
    if missing:
        print(f"not installed: {' '.join(missing)} (packages of Debian)", file=sys.stderr)
        return 2
    BUILT.mkdir(parents=True, exist_ok=True)
    make_root()
    make_site()
    wheel = make_wheel()
    make_tree(wheel)
    print(f"built {wheel.relative_to(PROJECT)}", flush=True)
    run(interpreter(FASTEST), TREE / "tests/support/core_of_a_wheel.py", cwd=BUILT)
    failed = []
    for processor, instructions in PROCESSORS.items():
        print(f"\n== {processor}: {instructions}", flush=True)
        chosen = arguments or (KERNELS if processor == FASTEST else PRODUCTS)
        if not tested(processor, chosen):
            failed.append(processor)
    return summary(PROCESSORS, failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

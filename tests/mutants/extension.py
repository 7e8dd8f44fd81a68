"""The C++ extension, compiled file by file with the flags of setup.py, so that a bug costs the files that it touches.

Objects of the source without bugs stay in `build/mutants`; one is compiled again when its source or a header that it
includes is newer.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OBJECTS = "build/mutants"


class Extension:
    """The commands that make the extension of the tree `root`, whose objects are kept."""

    def __init__(self, root: Path, jobs: int):
        self.root = root
        self.jobs = jobs
        self._compiler, self._link_flags = _commands(root)
        self.sources = sorted(str(path.relative_to(root)) for path in root.glob("csrc/**/*.cpp"))

    def prepare(self) -> None:
        """Compile what is missing or older than its source. CalledProcessError where the compiler fails."""
        stale = [source for source in self.sources if self._is_stale(source)]
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda source: self._compile(source, self.root, self._object(source)), stale))

    def users_of(self, file: str) -> list[str]:
        """The sources that are compiled again when `file`, a source or a header, changes."""
        return [source for source in self.sources if file in self._reads(source)]

    def build(self, tree: Path, changed: list[str]) -> None:
        """Make the extension of `tree`, whose `changed` sources differ from the root's, in place.

        CalledProcessError, with what the compiler says, where a source does not compile.
        """
        own = {source: tree / OBJECTS / f"{number}.o" for number, source in enumerate(changed)}
        for source, target in own.items():
            self._compile(source, tree, target)
        objects = [str(own.get(source, self._object(source))) for source in self.sources]
        to = tree / "layercoop_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        _run([self._compiler[0], "-shared", *objects, *self._link_flags, "-o", str(to)], tree)

    def _compile(self, source: str, tree: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _run([*self._compiler, "-MMD", "-c", source, "-o", f"{target}.part"], tree)
        Path(f"{target}.part").replace(target)

    def _object(self, source: str) -> Path:
        return self.root / OBJECTS / (source.removesuffix(".cpp").replace("/", ".") + ".o")

    def _reads(self, source: str) -> list[str]:
        # The compiler's own list: "target: file file \", with the paths relative to the root where the file is ours.
        listed = Path(f"{self._object(source)}.d").read_text().replace("\\\n", " ").partition(": ")[2]
        return [file for file in listed.split() if not file.startswith("/")]

    def _is_stale(self, source: str) -> bool:
        target = self._object(source)
        if not target.exists() or not Path(f"{target}.d").exists():
            return True
        made = target.stat().st_mtime
        return any(
            not (self.root / file).exists() or (self.root / file).stat().st_mtime > made for file in self._reads(source)
        )


def _commands(root: Path) -> tuple[list[str], list[str]]:
    """The compiler with its flags, and the flags of the linker, as setup.py states them."""
    from distutils.core import run_setup

    import setuptools  # noqa: F401 - puts its own distutils in the place of Python's

    before = Path.cwd()
    os.chdir(root)
    try:
        (extension,) = run_setup("setup.py", stop_after="init").ext_modules
    finally:
        os.chdir(before)
    includes = [*extension.include_dirs, sysconfig.get_path("include")]
    python = shlex.split(f"{sysconfig.get_config_var('CFLAGS') or ''} {sysconfig.get_config_var('CCSHARED') or ''}")
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = [*python, *extension.extra_compile_args, *(f"-I{folder}" for folder in includes)]
    return [*compiler, *flags], list(extension.extra_link_args)


def _run(command: list[str], tree: Path) -> None:
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)

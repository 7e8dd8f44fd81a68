"""Writing files and folders whole or not at all.

Everything the package writes goes through `written_whole`: the content is made under a temporary name beside the
target, flushed to the disk, and put in place by one rename. A run that is killed or meets a full disk leaves what was
there before, untouched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layercoop_fast.errors import RequestError, RunError


def check_target(target: Path, *, folder: bool = False, force: bool = False) -> None:
    """Refuse a target that exists (unless `force`) or whose parent cannot be a folder, before any work is done.

    `force` replaces like by like only: a file never takes the place of a folder, nor a folder that of a file.

    Raises `RequestError` with one line.
    """
    if target.exists() and target.is_dir() != folder:
        is_it, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise RequestError(f"{target} is {is_it}, and {wanted} is to be written: name another place")
    if target.exists() and not force:
        raise RequestError(f"{target} exists already: name another place, or pass --force to replace it")
    ancestor = target.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise RequestError(f"{target} cannot be written: {ancestor} is a file, not a folder")
    if not os.access(ancestor, os.W_OK):
        raise RequestError(f"{target} cannot be written: no permission to write in {ancestor}")


def check_spared(target: Path, what: str, place: str | Path, instead: str) -> None:
    """Refuse a target folder, replaced as a whole, that is the folder or file `place` or holds it.

    Raises `RequestError` with one line that ends in what to do `instead`.
    """
    place = Path(place)
    if target.resolve() in (place.resolve(), *place.resolve().parents):
        raise RequestError(f"the {what} {place} is in {target}, which is replaced as a whole: {instead}")


@contextmanager
def written_whole(target: Path, *, folder: bool = False, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` when the block ends without an exception.

    With `folder` the yielded path is an empty folder, otherwise it is the name of a file to be written. An existing
    folder that `force` replaces is moved aside first and put back if the new one cannot take its place.

    Raises `RequestError` as `check_target` does, and `RunError` when the system refuses to write (disk full, ...).
    """
    check_target(target, folder=folder, force=force)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    except OSError as error:
        raise RunError(f"{target} cannot be written: {reason(error)}") from error
    try:
        made = workplace / "new"
        if folder:
            made.mkdir()
        yield made
        _flush(made)
        _put_in_place(made, target, workplace / "old")
    except OSError as error:
        raise RunError(f"{target} was not written: {reason(error)}; nothing was left behind") from error
    finally:
        # Never remove the only copy: where the old folder could not be put back, it stays aside.
        if target.exists() or not (workplace / "old").exists():
            shutil.rmtree(workplace, ignore_errors=True)


def reason(error: BaseException) -> str:
    """The operating system's words for an error, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _put_in_place(made: Path, target: Path, aside: Path) -> None:
    if not (target.is_dir() and not target.is_symlink()):
        os.replace(made, target)  # a file, or nothing: the rename itself is the whole exchange
        return
    try:
        os.rename(target, aside)
        os.rename(made, target)
    except BaseException:  # Ctrl-C between the two must not cost the old folder either
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise


def _flush(made: Path) -> None:
    """Bring the bytes to the disk before the rename, so that a crash cannot leave a full name with empty content.

    Some libraries write their files readable by the owner alone; what is handed over follows the user's umask.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in [made, *made.rglob("*")] if made.is_dir() else [made]:
        if path.is_file():
            path.chmod(0o666 & ~mask)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

"""Writing files and folders whole or not at all.

Everything the package writes goes through `written_whole`: the content is made under a temporary name next to the
target, flushed to the disk, and put in place by one rename. A run that is killed, or that fills the disk, leaves the
previous file or folder untouched.

A run that is killed cannot remove its temporary folder, `.NAME.layercoop-*`. The next run that writes to the same
target removes it: each such folder holds a file that its process keeps locked, and the system releases the lock when
the process ends, however it ends. Folders whose lock another process holds, and folders that this package did not make,
are left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layercoop_fast.errors import RequestError, RunError

RECORD = "layercoop.json"
"""The file of a pruned checkpoint that records what `prune` did."""

# Names within a temporary folder. The content is written to NEW; libraries may add files whose names begin with it.
_NEW, _OLD, _LOCK = "new", "old", "lock"
# Errors of systems whose file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_target(target: Path, *, folder: bool = False, force: bool = False) -> None:
    """Refuse a target that exists (unless `force`) or whose parent cannot be a folder, before any work is done.

    With `force` a file replaces a file only, and a folder a folder only. Temporary folders of killed runs are removed
    first, which may restore the folder that such a run was about to replace.

    Raises `RequestError`.
    """
    _clear_leftovers(target)
    if target.exists() and target.is_dir() != folder:
        is_it, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise RequestError(f"{target} is {is_it}, and {wanted} is to be written: name another place")
    if target.exists() and not force:
        raise RequestError(f"{target} exists already: name another place, or set force= to replace it")
    ancestor = target.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise RequestError(f"{target} cannot be written: {ancestor} is a file, not a folder")
    if not os.access(ancestor, os.W_OK):
        raise RequestError(f"{target} cannot be written: no permission to write in {ancestor}")


def check_spared(target: Path, what: str, place: str | Path, instead: str) -> None:
    """Refuse a target folder, which is replaced as a whole, where it is or contains the folder or file `place`.

    Raises `RequestError` that ends with `instead`, what to do instead.
    """
    place = Path(place)
    if target.resolve() in (place.resolve(), *place.resolve().parents):
        raise RequestError(f"the {what} {place} is in {target}, which is replaced as a whole: {instead}")


@contextmanager
def written_whole(target: Path, *, folder: bool = False, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `target`; rename it to `target` when the block ends without an exception.

    With `folder` the yielded path is an empty folder, otherwise it is the name of a file to be written. An existing
    folder that `force` replaces is renamed first, and renamed back if the new one cannot take its place.

    Raises `RequestError` as `check_target` does, and `RunError` when the system refuses to write (disk full, ...).
    """
    check_target(target, folder=folder, force=force)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        workplace, lock = _make_workplace(target)
    except OSError as error:
        raise RunError(f"{target} cannot be written: {reason(error)}") from error
    try:
        made = workplace / _NEW
        if folder:
            made.mkdir()
        yield made
        _flush(made)
        _put_in_place(made, target, workplace / _OLD, force=force)
    except OSError as error:
        raise RunError(f"{target} was not written: {reason(error)}; nothing was left behind") from error
    finally:
        # Never remove the only copy: an old folder that could not be renamed back stays in the temporary folder.
        if target.exists() or not (workplace / _OLD).exists():
            with suppress(OSError):
                _remove_workplace(workplace)
        os.close(lock)


def reason(error: BaseException) -> str:
    """The operating system's text for an error, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _prefix(target: Path) -> str:
    return f".{target.name}.layercoop-"


def _make_workplace(target: Path) -> tuple[Path, int]:
    """A temporary folder next to the target, and the descriptor of its lock; closing it releases the lock."""
    while True:
        workplace = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=_prefix(target)))
        # Until the lock is held, another process may take the folder for a leftover and remove it: then try again.
        with suppress(FileNotFoundError):
            lock = os.open(workplace / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _held(workplace, lock, wait=True):
                return workplace, lock
            os.close(lock)


def _held(workplace: Path, lock: int, *, wait: bool = False) -> bool:
    """Whether this process now holds the lock of a temporary folder that still exists."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        # Another process holds it, or the file system has no locks: there, no folder is ever taken for a leftover.
        return wait
    try:
        return os.path.samestat(os.fstat(lock), os.stat(workplace / _LOCK))
    except FileNotFoundError:
        return False


def _remove_workplace(workplace: Path) -> None:
    """Remove a temporary folder, its lock last: if this is interrupted, the rest is still recognised as a leftover."""
    for path in list(workplace.iterdir()):
        if path.name != _LOCK:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    (workplace / _LOCK).unlink(missing_ok=True)
    workplace.rmdir()


def _clear_leftovers(target: Path) -> None:
    """Remove the temporary folders next to a target that processes which have ended left behind.

    A process that was killed between the two renames of an exchange left the old folder in its temporary folder and
    nothing at the target. The old folder is then renamed back, unless the target exists by now. A warning says so.
    """
    with suppress(OSError):  # the parent does not exist, or cannot be read or written: `check_target` says so
        for entry in list(os.scandir(target.absolute().parent)):
            if entry.name.startswith(_prefix(target)) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _clear(Path(entry.path), target)


def _clear(workplace: Path, target: Path) -> None:
    names = {path.name for path in workplace.iterdir()}
    if not names:
        workplace.rmdir()  # the process was killed before it made its lock
        return
    if _LOCK not in names or not all(name in (_LOCK, _OLD) or name.startswith(_NEW) for name in names):
        return
    lock = os.open(workplace / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if not _held(workplace, lock):
            return
        if {_OLD, _NEW} <= names:
            if os.path.lexists(target):
                warnings.warn(
                    f"{target}: a run was killed while it replaced an older folder; the older folder is in "
                    f"{workplace / _OLD}: move it elsewhere, and remove {workplace}",
                    stacklevel=2,
                )
                return
            os.rename(workplace / _OLD, target)
            warnings.warn(
                f"{target}: a run was killed while it replaced this folder; the folder was restored",
                stacklevel=2,
            )
        _remove_workplace(workplace)
    finally:
        os.close(lock)


def _put_in_place(made: Path, target: Path, aside: Path, *, force: bool) -> None:
    """Rename what was made. Without `force` nothing is replaced, not even a target that appeared in the meantime."""
    try:
        if force:
            _exchange(made, target, aside)
        elif made.is_dir():
            os.rename(made, target)  # the system refuses where the target is a file or a folder that is not empty
        else:
            _link(made, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise RunError(
            f"{target} was not written: another run has written it in the meantime, and its result is kept; name "
            "another place"
        ) from error


def _exchange(made: Path, target: Path, aside: Path) -> None:
    if not (target.is_dir() and not target.is_symlink()):
        os.replace(made, target)  # the target is a file or does not exist: one rename does it
        return
    try:
        os.rename(target, aside)
        os.rename(made, target)
    except BaseException:  # Ctrl-C between the two renames must not lose the old folder either
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise


def _link(made: Path, target: Path) -> None:
    """Give a file its name unless that name exists; a rename would replace the other file."""
    try:
        os.link(made, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(made, target)


def _flush(made: Path) -> None:
    """Flush the bytes to the disk before the rename, so that a crash cannot leave the target with empty content.

    Some libraries write files that only the owner can read; permissions are set by the user's umask instead.
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

"""Files and folders appear whole or not at all, and what was there before is never lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import check_target, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_under_its_name_only(tmp_path: Path) -> None:
    with written_whole(tmp_path / "new" / "file") as made:
        made.write_text("content")
        assert not (tmp_path / "new" / "file").exists()
    assert (tmp_path / "new" / "file").read_text() == "content"
    assert names(tmp_path / "new") == ["file"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "folder", folder=True) as made:
        (made / "part").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(RunError, match="folder was not written: No space left on device; nothing was left"):
        with written_whole(tmp_path / "folder", folder=True) as made:
            (made / "part").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_force_replaces_a_folder_and_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("precious")
    with pytest.raises(RequestError, match="exists already"), written_whole(target, folder=True):
        pass
    with pytest.raises(ZeroDivisionError), written_whole(target, folder=True, force=True):
        raise ZeroDivisionError
    assert names(target) == ["old"]
    with written_whole(target, folder=True, force=True) as made:
        (made / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("precious")
    rename = os.rename

    def refuse_the_new_one(source: Path, to: Path) -> None:
        if Path(source).name == "new":
            raise failure
        rename(source, to)

    monkeypatch.setattr("layercoop_fast.files.os.rename", refuse_the_new_one)
    with pytest.raises((RunError, KeyboardInterrupt)), written_whole(target, folder=True, force=True):
        pass
    assert (target / "old").read_text() == "precious"
    assert names(tmp_path) == ["folder"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file is a file, not a folder"):
        check_target(tmp_path / "file" / "deep" / "out")


def test_written_folders_can_be_read_by_others(tmp_path: Path) -> None:
    """mkdtemp and some libraries make private files; what is handed over follows the user's umask."""
    with written_whole(tmp_path / "folder", folder=True) as made:
        (made / "weights").touch(mode=0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "folder" / "weights").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def written_by_a_process(target: Path, *, force: bool = False, folder: bool = True, before: str = "") -> int:
    """Have another process write a target; `before` is code that it runs first. Returns its exit status."""
    code = f"""
import os, signal, sys
from pathlib import Path
from layercoop_fast import files
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
{before}
with files.written_whole(Path(sys.argv[1]), folder={folder}, force={force}) as made:
    (made / "weights" if {folder} else made).write_text("content")
"""
    return subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode


KILLED_AT = {
    "while it is made": "files._flush = kill",
    "before its lock": "os.open = kill",
    "before the old one is moved aside": "files._put_in_place = kill",
    "between the two renames": """
rename = os.rename
def once(*places):
    rename(*places)
    kill()
os.rename = once""",
    "before the old one is removed": "files._remove_workplace = kill",
    "while the old one is removed": "files.shutil.rmtree = kill",
}


@pytest.mark.parametrize("at", KILLED_AT)
def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path, at: str) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "weights").write_text("precious")
    assert written_by_a_process(target, force=True, before=KILLED_AT[at]) == -signal.SIGKILL
    assert len(names(tmp_path)) == (1 if at == "between the two renames" else 2)
    if at == "between the two renames":
        with pytest.warns(UserWarning, match="the folder was restored"):
            check_target(target, folder=True, force=True)
        assert (target / "weights").read_text() == "precious"
    whole = "content" if "removed" in at else "precious"
    check_target(target, folder=True, force=True)
    assert names(tmp_path) == ["folder"]
    assert (target / "weights").read_text() == whole


def test_an_old_folder_whose_place_is_taken_stays_aside(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "weights").write_text("precious")
    assert written_by_a_process(target, force=True, before=KILLED_AT["between the two renames"]) == -signal.SIGKILL
    target.mkdir()
    with pytest.warns(UserWarning, match="the older folder is in"):
        check_target(target, folder=True, force=True)
    (aside,) = tmp_path.glob(".folder.layercoop-*/old/weights")
    assert aside.read_text() == "precious"


def test_what_others_made_or_hold_is_never_cleared(tmp_path: Path) -> None:
    """Of users, of other targets, and of a process that lives."""
    mine = {".folder.layercoop-notes/diary": "dear", ".folder.backup1/lock": "", ".folder/new": ""}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / ".folder.layercoop-with_more").mkdir()
    for name in ("lock", "new", "diary"):
        (tmp_path / ".folder.layercoop-with_more" / name).touch()
    with written_whole(tmp_path / "folder", folder=True, force=True) as made:
        (made / "part").touch()
        assert written_by_a_process(tmp_path / "folder") == 0
        assert (made / "part").exists()
        check_target(tmp_path / "folder", folder=True, force=True)  # by the same process as well
        assert (made / "part").exists()
    assert names(tmp_path / "folder") == ["part"]
    assert names(tmp_path) == [
        ".folder", ".folder.backup1", ".folder.layercoop-notes", ".folder.layercoop-with_more", "folder",
    ]  # fmt: skip


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("linked", [True, False])
def test_the_second_of_two_writers_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, linked: bool
) -> None:
    if not linked:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("layercoop_fast.files.os.link", refuse)
    target = tmp_path / "target"
    with pytest.raises(RunError, match="another run has written it in the meantime, and its result is kept"):
        with written_whole(target, folder=folder) as made:
            (made / "weights" if folder else made).write_text("second")
            assert written_by_a_process(target, folder=folder) == 0
    assert (target / "weights" if folder else target).read_text() == "content"
    assert names(tmp_path) == ["target"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("layercoop_fast.files.os.link", refuse)
    with written_whole(tmp_path / "file") as made:
        made.write_text("content")
    assert (tmp_path / "file").read_text() == "content"

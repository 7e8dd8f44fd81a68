"""Files and folders appear whole or not at all, and what was there before is never lost."""

from __future__ import annotations

import errno
import os
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

"""Uploading to a hub on this machine, through `huggingface_hub` itself, over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny_hub import COMMIT, TinyHub

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.push import _asked, push

# What huggingface_hub calls in its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `prune` writes it, but for the weights' content, which the hub does not read."""
    made = tmp_path / "pruned"
    (made / "additional").mkdir(parents=True)
    (made / ".cache").mkdir()
    contents = {
        "layercoop.json": b'{"schema": 1}',
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 40,
        "README.md": b"---\nlicense: apache-2.0\n---\n# Model\n",
        "additional/one.jinja": b"{{ x }}",
        ".cache/hidden": b"no",
        ".secret": b"no",
    }
    for name, content in contents.items():
        (made / name).write_bytes(content)
    (tmp_path / "outside").write_bytes(b"no")
    (made / "link").symlink_to(tmp_path / "outside")
    return made


def test_a_folder_becomes_a_private_repository(folder: Path) -> None:
    with TinyHub() as hub:
        done = subprocess.run(
            [sys.executable, "-m", "layercoop_fast", "push", str(folder), "me/pruned", "--json"],
            env={**os.environ, **hub.environment()},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    wanted = ["README.md", "additional/one.jinja", "config.json", "layercoop.json", "model.safetensors"]
    assert dict(sorted(hub.files["me/pruned"].items())) == {name: (folder / name).read_bytes() for name in wanted}
    assert hub.visibility == {"me/pruned": "private"}
    said = json.loads(done.stdout)
    assert (said["repo"], said["commit"], sorted(said["files"])) == ("me/pruned", COMMIT, wanted)
    assert said["url"] == f"{hub.address}/me/pruned"


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch, hub: TinyHub, token: str = "hf_right") -> Iterator[TinyHub]:
    """While open, `huggingface_hub` of this process asks this hub, as with the variables of its environment."""
    with hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token)
        yield hub


def test_public_and_an_existing_repository_only_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, TinyHub()) as hub:
        assert push(folder, "pruned", private=False).repo == "me/pruned"
        assert hub.visibility == {"me/pruned": "public"}
        with pytest.raises(RequestError, match="me/pruned exists already: name another one, or pass force=True"):
            push(folder, "me/pruned")
        (folder / "config.json").write_text('{"a": 1}')
        push(folder, "me/pruned", force=True)
    assert hub.files["me/pruned"]["config.json"] == b'{"a": 1}'


def test_weights_that_were_there_and_are_not_in_the_folder_are_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would load the old `model.safetensors` and not the shards."""
    with asked(monkeypatch, TinyHub()) as hub:
        push(folder, "me/pruned")
        hub.files["me/pruned"] |= {"notes.md": b"mine", "other/model.safetensors": b"no host looks here"}
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text("{}")
        push(folder, "me/pruned", force=True)
        there = hub.files["me/pruned"].keys()
        assert "model.safetensors" not in there
        assert {"model-00001-of-00001.safetensors", "model.safetensors.index.json", "notes.md"} <= there
        assert "other/model.safetensors" in there
        (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
        (folder / "model.safetensors.index.json").unlink()
        push(folder, "me/pruned", force=True)
        assert {name for name in hub.files["me/pruned"] if "safetensors" in name} == {
            "model.safetensors",
            "other/model.safetensors",
        }


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(RunError, match=r"gone\.safetensors cannot be read: No such file"):
        _asked("me/pruned", gone.read_bytes)


def test_what_the_hub_will_not_take_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, TinyHub(), token="hf_wrong"), pytest.raises(RequestError, match="does not take the token"):
        push(folder, "me/pruned")
    with asked(monkeypatch, TinyHub()):
        with pytest.raises(RequestError, match="may not write to theirs/pruned"):
            push(folder, "theirs/pruned")
        (folder / "README.md").write_text("---\nlicense: nonsense\n---\n")
        with pytest.raises(RequestError, match='"license" must be one of'):
            push(folder, "me/card")


def test_a_damaged_upload_is_noticed_and_a_hub_that_is_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors"):
        with asked(monkeypatch, TinyHub(spoil=name)), pytest.raises(RunError, match=f"holds {name} with other content"):
            push(folder, "me/pruned")
    with pytest.raises(RunError, match="the hub was not reached"):
        push(folder, "me/pruned")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="the hub was not reached"):
        push(folder, "me/pruned")


def test_wrong_requests_ask_no_hub(folder: Path, run) -> None:  # type: ignore[no-untyped-def]
    for name, reason in (("a/b/c", "is no name of a repository"), ("bad..name", "is no name of a repository")):
        status, _, error = run("push", folder, name)
        assert (status, reason in error) == (2, True)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in run("push", folder, "me/x")[2]
    (folder / "layercoop.json").unlink()
    assert "holds no layercoop.json" in run("push", folder, "me/x")[2]
    assert "is no folder" in run("push", folder / "nothing", "me/x")[2]

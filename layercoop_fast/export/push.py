"""Uploading a pruned checkpoint to the Hugging Face hub, through `huggingface_hub`; only when asked. Imports no torch.

The token is the one that `hf auth login` or the environment variable HF_TOKEN gives; it is neither read nor kept here.
What the hub holds afterwards is compared with the files, by size and digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import RECORD, reason

_PIECE = 2**20
_WEIGHTS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class Pushed:
    """An uploaded folder.

    Attributes:
        repo: its name on the hub, ORG/NAME.
        url: of its page.
        commit: digest of the commit.
        files: bytes of each file by name.
    """

    repo: str
    url: str
    commit: str
    files: dict[str, int]


def push(folder: Path, repo: str, *, private: bool = True, force: bool = False) -> Pushed:
    """Upload a folder that `prune` wrote as a model repository of the hub, in one commit.

    Args:
        folder: its files, but for hidden ones and links to somewhere else, are uploaded.
        repo: ORG/NAME, or NAME in the user's own account.
        private: make a private repository; one that is there stays as it is.
        force: commit to a repository that exists already. Weights at its top (`*.safetensors` and their indices) that
            the folder does not have are deleted in the same commit: a host could load them instead.

    Raises `RequestError` for a folder without a pruned model, a malformed name, an existing repository, a missing or
    wrong token; `RunError` where the hub is not reached, fails, or holds something else afterwards.
    """
    files = _files(folder)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="layercoop_fast")
    made = _asked(repo, lambda: api.create_repo(repo, private=private, repo_type="model", exist_ok=force))
    before = _asked(made.repo_id, lambda: list(api.list_repo_tree(made.repo_id))) if force else []
    top = [entry.path for entry in before if "/" not in entry.path]
    stale = [name for name in top if name.endswith(_WEIGHTS) and name not in files]

    def commit() -> Any:
        added = [CommitOperationAdd(name, str(folder / name)) for name in files]
        deleted = [CommitOperationDelete(name) for name in stale]
        return api.create_commit(made.repo_id, [*added, *deleted], commit_message="Upload a pruned model")

    done = _asked(made.repo_id, commit)
    there = _asked(made.repo_id, lambda: list(api.list_repo_tree(made.repo_id, recursive=True, revision=done.oid)))
    _check_uploaded(folder, files, {entry.path: entry for entry in there if hasattr(entry, "blob_id")})
    return Pushed(made.repo_id, str(made), done.oid, files)


def _files(folder: Path) -> dict[str, int]:
    """The files to upload, by their names within the folder, and their sizes."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder: give the folder that `prune` wrote")
    for name, what in ((RECORD, "record"), ("config.json", "config")):
        if not (folder / name).is_file():
            raise RequestError(f"{folder} holds no {name}, so it is no pruned model ({what} missing)")
    if not any(folder.glob("*.safetensors")):
        raise RequestError(f"{folder} holds no weights (*.safetensors)")
    root = folder.resolve()
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and path.resolve().is_relative_to(root) and not hidden:
            found[inside.as_posix()] = path.stat().st_size
    return found


def _asked(repo: str, request: Any) -> Any:
    """The answer of the hub to a request; its errors as one line each."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # Versions of huggingface_hub have different HTTP clients: the client's errors are what the hub's own derive from.
    clients = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    unreached: tuple[type[Exception], ...] = (OfflineModeIsEnabled, OSError, *clients)
    try:
        return request()
    except HFValidationError as error:
        raise RequestError(f"repo={repo} is no name of a repository: give ORG/NAME ({reason(error)})") from error
    except LocalTokenNotFoundError as error:
        raise RequestError("the hub asks for a token: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise RequestError("the hub does not take the token: run `hf auth login`, or set HF_TOKEN") from error
        if status in (403, 404):
            raise RequestError(f"the token may not write to {repo}: give one with the right to write") from error
        if status == 409:
            raise RequestError(
                f"{repo} exists already: name another one, or pass force=True to commit to it"
            ) from error
        raise RunError(f"the hub refused the upload to {repo}: {' '.join(str(error).split())[:300]}") from error
    except unreached as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise RunError(f"{error.filename} cannot be read: {reason(error)}") from error
        raise RunError(f"the hub was not reached: {reason(error)}") from error
    except RuntimeError as error:
        raise RunError(f"the upload to {repo} failed: {reason(error.__cause__ or error)}") from error
    except ValueError as error:
        said = " ".join(str(error).split())[:300]
        if "metadata in README.md" in said:
            raise RequestError(f"the hub does not take README.md: {said}") from error
        raise RunError(f"the upload to {repo} failed: {said}") from error


def _check_uploaded(folder: Path, files: dict[str, int], there: dict[str, Any]) -> None:
    """Raise `RunError` unless the hub holds every file with its size and digest."""
    for name, size in files.items():
        entry = there.get(name)
        if entry is None or entry.size != size:
            raise RunError(
                f"the hub holds {name} of {getattr(entry, 'size', 0)} bytes, and it has {size}: upload again"
            )
        lfs = getattr(entry, "lfs", None)
        digest = _digest(folder / name, size, of_blob=lfs is None)
        if digest != (entry.blob_id if lfs is None else lfs.sha256):
            raise RunError(f"the hub holds {name} with other content: upload again")


def _digest(path: Path, size: int, *, of_blob: bool) -> str:
    """A file's digest as the hub states it: git's of a blob, SHA-256 of a large file."""
    made = hashlib.sha1(f"blob {size}\0".encode()) if of_blob else hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            made.update(piece)
    return made.hexdigest()

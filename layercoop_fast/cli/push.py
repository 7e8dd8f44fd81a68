"""`layercoop-fast push`: a pruned checkpoint to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from layercoop_fast.cli.options import AsJson, print_json
from layercoop_fast.report.console import say


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that prune wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME on the hub, or NAME in your own account.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Whether only you can see a repository that is made for it.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option("--force", help="Commit to a repository that exists already, and delete weights it has besides."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a pruned checkpoint to the Hugging Face hub, as a private repository unless --public."""
    from layercoop_fast.export.push import push as upload

    done = upload(folder, repo, private=private, force=force)
    if as_json:
        print_json(asdict(done))
    else:
        say(f"{len(done.files)} files of {sum(done.files.values()):,} bytes, compared with what is there: {done.url}")

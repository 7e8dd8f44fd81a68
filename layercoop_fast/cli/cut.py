"""`layercoop-fast cut`: take blocks out of a GGUF file, without torch and without touching a weight."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from layercoop_fast.errors import RequestError
from layercoop_fast.report.console import say


def cut(
    model: Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="The file to cut; it is not changed.")],
    out: Annotated[Path, typer.Option(help="The .gguf to write.")],
    remove: Annotated[
        str | None,
        typer.Option(help="Blocks to remove, for example 3,7,13-18; of a llama also halves of blocks: 12.attn."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Or a folder that prune wrote: remove what it removed."),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="--verify: compare logits with the masked source too, through transformers. --no-verify: do not even "
            "read the file back.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Take blocks out of a GGUF file, of any quantisation, for llama.cpp."""
    from layercoop_fast.export.changed import lost_in_a_cut
    from layercoop_fast.export.gguf import cut_gguf
    from layercoop_fast.masks.text import parse_removed, removed_of

    if (remove is None) == (source is None):
        raise RequestError("say what is to go: either blocks (--remove 13-18) or what a search removed (--from DIR)")
    if source is not None:
        removed, n_layers = removed_of(source)
        if lost := lost_in_a_cut(source):
            warnings.warn(
                f"{' and '.join(lost)} changed weights of {source}: the file that is cut has those of the base; to "
                "keep the change, convert the folder with llama.cpp's convert_hf_to_gguf.py",
                stacklevel=1,
            )
    else:
        removed, n_layers = parse_removed(remove or ""), None
    done = cut_gguf(
        model, removed, out, n_layers=n_layers, force=force, verify=verify is not False, logits=verify is True
    )
    if as_json:
        sys.stdout.write(json.dumps({**asdict(done), "out": str(done.out)}) + "\n")
        return
    halves = ""
    if done.without_attention or done.without_mlp:
        halves = (
            f", {done.without_attention} of them without attention and {done.without_mlp} without MLP "
            f"(architecture {done.architecture})"
        )
    say(
        f"{done.blocks['full']} → {done.blocks['pruned']} blocks{halves}; "
        f"{done.params['full']:,} → {done.params['pruned']:,} parameters, "
        f"{done.file_bytes['full']:,} → {done.file_bytes['pruned']:,} bytes. Written to {done.out}; "
        f"{_proven(done.verified)}"
    )


def _proven(verified: dict[str, Any]) -> str:
    """What was compared, in words."""
    if not verified["done"]:
        return "not read back"
    read = f"read back: {verified['tensors']} tensors are the source's byte by byte"
    logits = verified["logits"]
    if logits is None:
        return read
    if not logits["done"]:
        return f"{read}; logits not compared: {logits['reason']}"
    return f"{read}; logits are the masked source's to {logits['largest_difference']:.3g}"

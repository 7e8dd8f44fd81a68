"""The model card of a pruned checkpoint: `README.md` with metadata, as the Hugging Face hub shows it.

The metadata are made and checked by `huggingface_hub.ModelCardData`. Figures are those of `layercoop.json`; paths of
this machine are not repeated. A card ends in a comment with a digest of what stands above it, so that a card which
nobody has changed is told from a README that a user wrote: only the former is replaced.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import replace
from pathlib import Path

from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD, check_target, reason, written_whole
from layercoop_fast.inputs.text import as_saved
from layercoop_fast.report.base_model import HUB_NAME, LICENSE, README, Base, fitting, metadata_of
from layercoop_fast.report.card_sections import (
    citation,
    cost,
    healing,
    hosts,
    loading,
    proof,
    quality,
    results,
    summary,
)
from layercoop_fast.report.html.record import Record, load_record
from layercoop_fast.shown import shown

CARD = "layercoop-card.md"
"""The name of the card beside a README that a user wrote."""

_SEAL = re.compile(r"\n<!-- model card of layercoop_fast, sha256 ([0-9a-f]{64}) -->\n\Z")


def model_card(record: Record, name: str, base: Base) -> str:
    """The text of the card of the pruned model `name`, from its `layercoop.json`.

    Raises `RequestError` where the record lacks what a card says.
    """
    from huggingface_hub import ModelCardData

    with as_saved(RECORD, "a model card cannot be made of it: it is damaged, or `prune` did not write it"):
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="image-text-to-text" if base.pictures else "text-generation",
            base_model=base.id,
            license=base.license,
            license_name=base.license_name,
            license_link=base.license_link,
            language=list(base.languages) or None,
            tags=[
                "layercoop_fast",
                "pruned",
                "depth-pruning",
                *([record["quantised"]] if "quantised" in record else []),
            ],
            model_name=name,
            eval_results=results(record) or None,
        )
        parts = [f"# {shown(name)}", summary(record, base), *quality(record), *healing(record), *cost(record)]
        parts += [loading(record, name), *hosts(record), proof(record), citation()]
    body = "\n\n".join(part for part in parts if part)
    text = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    return f"{text}\n<!-- model card of layercoop_fast, sha256 {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_own_card(text: str) -> bool:
    """Whether a README is a card as `model_card` made it, which nobody has changed since."""
    match = _SEAL.search(text)
    return match is not None and hashlib.sha256(text[: match.start()].encode()).hexdigest() == match[1]


def card_files(card: str, target: Path) -> dict[str, str | bytes]:
    """The files by name that put `card` into the folder that is to replace `target`.

    A `README.md` that a user wrote or changed there stays, and the card stands beside it; a warning says so.
    """
    there = target / README
    try:
        before = there.read_bytes() if there.is_file() else None
    except OSError as error:
        raise RequestError(f"{there} cannot be read: {reason(error)}") from error
    if before is None or is_own_card(before.decode("utf-8", "replace")):
        return {README: card}
    warnings.warn(f"{there} is not a card that this package wrote: it stays, and the new card is {CARD}", stacklevel=2)
    return {README: before, CARD: card}


def card_of(folder: Path, target: Path) -> dict[str, str | bytes]:
    """The files of the card of a folder that is to replace `target`; none where it holds no `layercoop.json`."""
    if not (folder / RECORD).is_file():
        return {}
    record = load_record(folder)
    return card_files(model_card(record, target.absolute().name, Base.of(str(record["model"]))), target)


def write_card(folder: Path, *, base_model: str | None = None, license: str | None = None) -> Path:
    """Write the card of a folder again, from its `layercoop.json`, and return the file.

    Args:
        folder: that `prune` wrote.
        base_model: hub name of the model that was pruned, where it was pruned from a folder.
        license: identifier of its license, where its own README is not at hand.

    Raises `RequestError` where the folder holds no record, or one of the two is malformed.
    """
    record = load_record(folder)
    if base_model is not None and not HUB_NAME.fullmatch(base_model):
        raise RequestError(f"base_model={base_model} is no name of the hub: give one like ORG/NAME")
    if license is not None and not LICENSE.fullmatch(license):
        raise RequestError(f"license={license} is no identifier of a license: give one like apache-2.0")
    base = Base.of(str(record["model"]))
    said = metadata_of(folder / README) if (folder / README).is_file() else {}
    base = replace(
        base,
        id=base_model or base.id or fitting(said.get("base_model"), HUB_NAME),
        license=license or base.license or fitting(said.get("license"), LICENSE),
    )
    name, content = list(card_files(model_card(record, folder.resolve().name, base), folder).items())[-1]
    check_target(folder / name, force=True)
    with written_whole(folder / name, force=True) as place:
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name

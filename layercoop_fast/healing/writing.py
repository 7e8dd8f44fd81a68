"""The folder of a healed checkpoint: weights, tokenizer, record, report and card, proven before it takes its place."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layercoop_fast.engine.loading import Checkpoint, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RunError
from layercoop_fast.export.checkpoint import export_checkpoint, is_folded
from layercoop_fast.export.proof import (
    ROUNDING,
    NoRoom,
    Reference,
    Written,
    masked_reference,
    not_verified,
    probe_ids,
)
from layercoop_fast.files import RECORD
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.reading import Reader
from layercoop_fast.healing.shared import convert
from layercoop_fast.healing.texts import HealingTexts
from layercoop_fast.healing.trained import merged
from layercoop_fast.healing.watching import Look, look
from layercoop_fast.inputs.text import as_saved
from layercoop_fast.masked.players import make_players
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.masks.types import Progress
from layercoop_fast.report.base_model import Base
from layercoop_fast.report.card import card_files, model_card
from layercoop_fast.report.html.page import report_page

_REPORT = "report.html"
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Settled:
    """A student as it will be written.

    Attributes:
        checkpoint: its model and tokenizer.
        before: what the pruned checkpoint measures, in the dtype that is written.
        now: what the model measures in that dtype.
        refused: why the weights of the loop are not those that are written; "" where they are.
    """

    checkpoint: Checkpoint
    before: Look
    now: Look
    refused: str = ""


def settled(cut: Checkpoint, request: HealRequest, texts: HealingTexts, before: Look, *, changed: bool) -> Settled:
    """The student as it will be written: adapters merged, and in the dtype that the checkpoint states.

    Where a kind of text is worse than before for that, it is the pruned checkpoint, opened again. Both are compared in
    the dtype that is written: where products had another one, the pruned checkpoint is measured again.

    Args:
        cut: the student, with the best weights of the loop.
        request: as `heal` was asked.
        texts: with the held-out windows.
        before: what the loop measured before any step.
        changed: whether the best weights are others than those from before.
    """
    if request.trained.kind == "lora":
        merged(cut.model)
    wanted = getattr(cut.model.config, "dtype", None)
    if not isinstance(wanted, torch.dtype):
        wanted = cut.model.dtype
    rounded = cut.model.dtype != wanted
    if rounded:
        convert(cut.model, wanted)
    now = look(Reader(cut.model), texts)
    if not rounded and not (changed and now.harms(before)):
        return Settled(cut, before if changed else now, now)
    device, trusted = str(cut.model.device), request.trust_remote_code
    again = open_checkpoint(cut.name, device=device, trust_remote_code=trusted)
    before = look(Reader(again.model), texts)
    harmed = now.harms(before)
    if changed and not harmed:
        return Settled(cut, before, now)
    why = f"with the weights rounded as they are written {harmed[0]} is worse" if changed else ""
    return Settled(again, before, before, why)


def write_healed(
    student: Settled,
    out: Path,
    record: dict[str, Any] | None,
    section: dict[str, Any],
    request: HealRequest,
    texts: HealingTexts,
    progress: Progress | None = None,
) -> None:
    """Write a folder, and complete its section of the record by what the folder itself measures.

    Args:
        student: as it is to be written.
        out: the folder.
        record: the content of the pruned checkpoint's `layercoop.json`, where there is one.
        section: of the record, completed here.
        request: as `heal` was asked.
        texts: with the held-out windows.
        progress: called with (stage, done, total).

    Raises `RunError` where the folder, opened again, is not what was measured; nothing is written then.
    """
    model, before, now = student.checkpoint.model, student.before, student.now
    skeleton = Skeleton(model)
    units = range(skeleton.n_layers)
    reference = masked_reference(make_players("layers", skeleton), units, probe_ids(skeleton), rounded=is_folded(model))

    def finish(folder: Path) -> dict[str, str | bytes]:
        try:
            proof, after = _proven(folder, reference, texts, now, str(model.device), request.trust_remote_code)
        except NoRoom as short:
            warnings.warn(f"the written checkpoint was not compared with the healed model: {short}", stacklevel=4)
            proof, after = not_verified(str(short)), now.check
        section["nll"] = {
            spec: {"before": _number(before.check[spec]), "after": _number(after[spec])} for spec in after
        }
        whole = _outdated(record, proof) if record is not None else {"schema": _SCHEMA, "model": section["teacher"]}
        whole |= {"healing": section, "verified": proof}
        files: dict[str, str | bytes] = {RECORD: json.dumps(whole, indent=1, allow_nan=False) + "\n"}
        if "n_players" in whole:  # of a record of `prune`, which report and card are about
            if request.report:
                files[_REPORT] = report_page(whole)
            files |= card_files(card_for(whole, out), out)
        return files

    if progress is not None:
        progress("writing the checkpoint", 0, 1)
    export_checkpoint(
        model,
        list(units),
        out,
        blocks_path=skeleton.blocks_path,
        tokenizer=student.checkpoint.tokenizer,
        force=request.force,
        finish=finish,
        verify=False,  # `finish` does, on the held-out windows too
    )


def card_for(record: dict[str, Any], out: Path) -> str:
    """The model card of the folder `out`. Raises `RequestError` where the record of `prune` lacks what a card says."""
    with as_saved(RECORD):
        base = Base.of_record(record)
    return model_card(record, out.absolute().name, base)


def _proven(
    folder: Path, reference: Reference, texts: HealingTexts, now: Look, device: str, trusted: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """The entry `verified` of the record, and the folder's own mean NLL by kind, by transformers alone."""
    opened = Written.open(folder, device=device, trust_remote_code=trusted)
    proof = reference.check(opened)
    within = ROUNDING.get(opened.model.dtype, ROUNDING[torch.bfloat16]).nll
    after = {}
    for kind in texts.kinds:
        rows = [float(token_nll(opened.logits(ids[None]), ids[None]).double().mean()) for ids in kind.check]
        after[kind.spec] = own = sum(rows) / len(rows)
        measured = now.check[kind.spec]
        if math.isfinite(measured) and not abs(own - measured) <= within * max(1.0, measured):
            raise RunError(
                f"the written checkpoint is not the healed model: its NLL of {kind.spec} is {own:.6g}, and "
                f"{measured:.6g} was measured; nothing was written"
            )
    return {**proof, "perplexity": "folder"}, after


def _outdated(record: dict[str, Any], proof: dict[str, Any]) -> dict[str, Any]:
    """The record of the pruned checkpoint without what does not hold for the healed one: kept as `unhealed`."""
    record = dict(record)
    for part in (record, record.get("heldout") or {}):
        for name in ("worth", "nll", "ppl"):
            if isinstance(part.get(name), dict) and "pruned" in part[name]:
                earlier = part[name].get("unhealed", part[name]["pruned"])
                part[name] = {**part[name], "pruned": None, "unhealed": earlier}
        if "window_nll" in part:
            part["window_nll"] = None
    if "generations" in record:
        record["generations"] = None
    return record


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

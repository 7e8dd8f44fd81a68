"""The folder of a healed checkpoint: weights, tokenizer, record and report, proven before it takes its place."""

from __future__ import annotations

import json
import math
import warnings
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
from layercoop_fast.healing.texts import HealingTexts
from layercoop_fast.healing.trained import merged
from layercoop_fast.healing.watching import Look, look
from layercoop_fast.masked.players import make_players
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.masks.types import Progress
from layercoop_fast.report.html.page import report_page

_REPORT = "report.html"
_SCHEMA = 1


def settled(cut: Checkpoint, request: HealRequest, texts: HealingTexts, before: Look) -> tuple[Checkpoint, Look, str]:
    """The student as it will be written, what it measures, and why it is the one from before; "" where it is healed.

    Adapters are merged, and the weights rounded to the dtype of the checkpoint. Where a kind of text is worse than
    before for that, the pruned checkpoint is opened again.
    """
    if request.trained.kind == "lora":
        merged(cut.model)
    wanted = getattr(cut.model.config, "dtype", None)
    if isinstance(wanted, torch.dtype) and cut.model.dtype != wanted:
        for parameter in cut.model.parameters():  # and no buffers: rotary frequencies are fp32 in every checkpoint
            parameter.data = parameter.data.to(wanted)
    now = look(Reader(cut.model), texts)
    if not (harmed := now.harms(before)):
        return cut, now, ""
    device, trusted = str(cut.model.device), request.trust_remote_code
    again = open_checkpoint(cut.name, device=device, trust_remote_code=trusted)
    return again, look(Reader(again.model), texts), f"with the weights rounded as they are written {harmed[0]} is worse"


def write_healed(
    healed: Checkpoint,
    out: Path,
    record: dict[str, Any] | None,
    section: dict[str, Any],
    request: HealRequest,
    texts: HealingTexts,
    looks: tuple[Look, Look],
    progress: Progress | None = None,
) -> None:
    """Write a folder, and complete its section of the record by what the folder itself measures.

    Args:
        healed: the model as it is to be written.
        out: the folder.
        record: the content of the pruned checkpoint's `layercoop.json`, where there is one.
        section: of the record, completed here.
        request: as `heal` was asked.
        texts: with the held-out windows.
        looks: at the model before healing, and as it is.
        progress: called with (stage, done, total).

    Raises `RunError` where the folder, opened again, is not what was measured; nothing is written then.
    """
    model, skeleton = healed.model, Skeleton(healed.model)
    units = range(skeleton.n_layers)
    reference = masked_reference(make_players("layers", skeleton), units, probe_ids(skeleton), rounded=is_folded(model))
    before, now = looks

    def finish(folder: Path) -> dict[str, str]:
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
        files = {RECORD: json.dumps(whole, indent=1, allow_nan=False) + "\n"}
        if request.report and "n_players" in whole:
            files[_REPORT] = report_page(whole)
        return files

    if progress is not None:
        progress("writing the checkpoint", 0, 1)
    export_checkpoint(
        model,
        list(units),
        out,
        blocks_path=skeleton.blocks_path,
        tokenizer=healed.tokenizer,
        force=request.force,
        finish=finish,
        verify=False,  # `finish` does, on the held-out windows too
    )


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

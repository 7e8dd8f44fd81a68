"""The last stage of `prune`: the folder with the checkpoint, its record, its report and its model card."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from layercoop_fast.engine.quantised import drop_weights
from layercoop_fast.errors import RunError
from layercoop_fast.export.checkpoint import export_checkpoint, is_folded
from layercoop_fast.export.hosts import host_problems
from layercoop_fast.export.players import zeroed_halves
from layercoop_fast.export.proof import PROBE_TOKENS, NoRoom, Reference, Written, masked_reference, not_verified
from layercoop_fast.files import RECORD
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.inputs.text import read_json
from layercoop_fast.masks.types import Floats
from layercoop_fast.pruning.checkpoint_costs import measure_costs
from layercoop_fast.pruning.generations import Prompts
from layercoop_fast.pruning.opening import Problem
from layercoop_fast.pruning.record import record_of
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.pruning.stages import Found
from layercoop_fast.pruning.timer import StageTimer
from layercoop_fast.report.base_model import Base
from layercoop_fast.report.card import card_files, model_card
from layercoop_fast.report.html.page import report_page
from layercoop_fast.search.base import finite_or_none, perplexity

# Tokens of each window that a report shows.
EXCERPT_TOKENS = 16


def written(problem: Problem, found: Found, request: PruneRequest, out: Path, command: str | None) -> dict[str, Any]:
    """Stage 6: write the folder whole and return its record.

    Raises `RunError` where what was written is not the masked model; nothing is left then.
    """
    return _Folder(problem, found, request, command).write(out)


@dataclass(frozen=True, eq=False)
class _Folder:
    """The folder that is written, with what the models write, what they cost, the record and the report."""

    problem: Problem
    found: Found
    request: PruneRequest
    command: str | None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def game(self) -> ModelGame:
        return self.found.game

    @property
    def timer(self) -> StageTimer:
        return self.problem.timer

    def write(self, out: Path) -> dict[str, Any]:
        self._fill()  # while the weights are there to be counted
        reference = self._reference() if self.request.verify else None
        measure_cost = self.request.measure_cost and not self.request.offload

        def finish(folder: Path) -> dict[str, bytes | str]:
            self._ask_hosts(folder)
            excerpts = self._excerpts()
            full = self._samples(self.game.checkpoint.model)
            if full is not None or reference is not None or measure_cost:
                self._release()
            wanted = reference is not None or full is not None
            copy = self._reopened(folder) if wanted else None
            if reference is not None and copy is not None:
                try:
                    with self.timer("verify", "comparing what was written"):
                        self._prove(reference, copy)
                except NoRoom as short:
                    self._say_unproven(short)
            pruned = None if copy is None or full is None else self._samples(copy.model)
            del copy
            costs = self._costs(folder) if measure_cost else None
            self.record.update(
                cost=costs, excerpts=excerpts, generations=self._paired(full, pruned), seconds=self.timer.seconds
            )
            page = {"report.html": report_page(self.record)} if self.request.report else {}
            card = model_card(self.record, out.absolute().name, Base.of(self.problem.model))
            record = json.dumps(self.record, indent=1, allow_nan=False) + "\n"
            return {RECORD: record, **page, **card_files(card, out)}

        game, mask, repair = self.game, self.found.choice.mask, self.found.repair
        self.timer.tell("writing the checkpoint", 0)
        export_checkpoint(
            game.checkpoint.model,
            [int(layer) for layer in np.flatnonzero(game.masked.players.layer_mask(mask))],
            out,
            zeroed=zeroed_halves(game.masked.players, mask),
            replaced=None if repair is None else repair.tensors(),
            blocks_path=game.masked.skeleton.blocks_path,
            tokenizer=game.checkpoint.tokenizer,
            force=self.request.force,
            finish=finish,
            streamed=game.masked.skeleton.streamed,
            verify=False,  # `finish` does, when the original's weights are released
        )
        self.timer.tell("writing the checkpoint", 1)
        return self.record

    def _ask_hosts(self, folder: Path) -> None:
        """Put into the record what other hosts would refuse or misread in the config that was written."""
        problems = host_problems(read_json(folder / "config.json"), self.game.checkpoint.model.config.to_dict())
        self.record["hosts"] = [asdict(one) for one in problems]

    def _reference(self) -> Reference:
        """The masked pass on the first tokens of the calibration text, halves left out and a repair in place."""
        game = self.game
        units = np.flatnonzero(game.masked.players.unit_masks(self.found.choice.mask[None])[0])
        with self.timer("verify"), nullcontext() if self.found.repair is None else self.found.repair.applied():
            return masked_reference(
                game.masked.players,
                [int(unit) for unit in units],
                game.masked.windows.ids[:1, :PROBE_TOKENS],
                rounded=is_folded(game.checkpoint.model),
            )

    def _release(self) -> None:
        """Release the original's weights: two copies of a large model would not fit."""
        drop_weights(self.game.checkpoint.model)
        if self.game.masked.skeleton.streamed is not None:
            self.game.masked.skeleton.streamed.free()
        for one in (self.problem.game, self.game, self.problem.heldout):
            if one is not None:
                one.masked.windows.free()
        torch.cuda.empty_cache()  # does nothing where no GPU was used

    def _reopened(self, folder: Path) -> Written | None:
        """The folder opened again, to be compared and for samples; None where memory is short.

        Without a proof to be made, also None where it cannot be opened.
        """
        on_cpu = self.game.masked.skeleton.device.type == "cpu"  # with workers, whatever these measure on
        try:
            return Written.open(
                folder,
                device="cpu" if on_cpu else self.request.device,
                trust_remote_code=self.request.trust_remote_code,
                offload=self.game.masked.skeleton.streamed is not None,
            )
        except RunError as refused:
            if not self.request.verify:
                self._leave_samples_out(refused)
            elif isinstance(refused, NoRoom):
                self._say_unproven(refused)
            else:
                raise
            return None

    def _say_unproven(self, why: NoRoom) -> None:
        warnings.warn(f"the written checkpoint was not compared with the masked pass: {why}", stacklevel=3)
        self.record["verified"] = not_verified(str(why))

    def _leave_samples_out(self, why: RunError) -> None:
        warnings.warn(f"no samples are in the report: {why}", stacklevel=3)
        self.record["generations_left_out"] = str(why)

    def _prove(self, reference: Reference, written: Written) -> None:
        """Compare the folder with the masked pass, and put its own perplexities into the record."""
        proof = reference.check(written)
        texts = [(self.game, self.record), (self.problem.heldout, self.record.get("heldout"))]
        for game, record in texts:
            # Items with options are scored in trees of tokens, which are no plain text.
            if game is None or record is None or not game.n_windows:
                continue
            window_nll = written.window_nll(game.masked.windows)
            masked = np.array(record["window_nll"]["pruned"], dtype=np.float64)
            reference.check_nll(float(window_nll.mean()), float(masked.mean()))
            self._put(game, record, window_nll)
            proof["perplexity"] = "folder"
        self.record["verified"] = proof

    def _put(self, game: ModelGame, record: dict[str, Any], window_nll: Floats) -> None:
        """Replace what the masked pass measured by what the folder itself measured (float64 [W])."""
        full = np.array(record["window_nll"]["full"], dtype=np.float64)
        with np.errstate(all="ignore"):
            worth, nll = game.utility.judge(
                window_nll[None], np.full_like(window_nll, np.nan)[None], full, game.fingerprints["calibration"]
            )
        record["nll"]["pruned"] = finite_or_none(nll[0])
        record["ppl"]["pruned"] = perplexity(float(nll[0]))
        record["window_nll"]["pruned"] = [finite_or_none(value) for value in window_nll]
        if not game.utility.needs_teacher and math.isfinite(worth[0]):
            record["worth"]["pruned"] = float(worth[0])

    def _excerpts(self) -> list[str]:
        """The first tokens of each window of text; none where the folder keeps no text."""
        prompts, game = self.problem.prompts, self.game
        if prompts is None or not game.n_windows:
            return []
        return Prompts(game.masked.windows.ids[:, :EXCERPT_TOKENS], prompts.tokenizer).texts()

    def _samples(self, model: PreTrainedModel) -> list[str] | None:
        """What a model writes after the prompts; None where there are none, or it cannot generate here."""
        if self.problem.prompts is None:
            return None
        try:
            with self.timer("samples", "writing samples"):
                return self.problem.prompts.continued(model)
        except RunError as refused:  # what was searched for is kept all the same
            self._leave_samples_out(refused)
            return None

    def _paired(self, full: list[str] | None, pruned: list[str] | None) -> list[dict[str, str]] | None:
        """What both models wrote after each prompt; None where one of them wrote nothing."""
        if self.problem.prompts is None or full is None or pruned is None:
            return None
        columns = zip(self.problem.prompts.texts(), full, pruned, strict=True)
        return [dict(zip(("prompt", "full", "pruned"), column, strict=True)) for column in columns]

    def _costs(self, folder: Path) -> dict[str, Any] | None:
        """Memory and speed of both models, each loaded by a process of its own; None where that fails."""
        names = ("dtype", "device", "trust_remote_code")
        how: dict[str, Any] = {name: getattr(self.request, name) for name in names}
        with self.timer("measure", "measuring memory and speed"):
            try:
                full, pruned = measure_costs([self.problem.model, folder], **how)
            except RunError as failed:  # what was searched for is kept all the same
                warnings.warn(f"{failed}; the record says nothing of it", stacklevel=2)
                return None
        return {"full": asdict(full), "pruned": asdict(pruned)}

    def _fill(self) -> None:
        """Put into the record what is known before anything is written."""
        game, problem, found = self.game, self.problem, self.found
        self.record.update(
            record_of(game, found.choice, found.quality or {}, found.unseen, self.request.seed),
            base_model=Base.of(problem.model).id,  # asked while a folder is sure to be there
            budget=problem.goal.record(found.choice.mask, game.masked.players),
            constraints=self.request.record(),
            nested=found.family,
            repair=None if found.repair is None else found.repair.record,
            excerpts=[],
            generations=None,
            generations_left_out=None,
            verified=not_verified("not asked for"),
            hosts=[],
            command=self.command,
        )

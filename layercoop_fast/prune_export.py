"""The last stage of `prune`: the folder with the checkpoint, its record and its report."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.quantised import drop_weights
from layercoop_fast.errors import RunError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.players import zeroed_halves
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.prune_record import record_of
from layercoop_fast.prune_stages import Judged, Opened, Watch
from layercoop_fast.repair.fit import Repaired
from layercoop_fast.report.cost import measure_costs
from layercoop_fast.report.generations import Prompts
from layercoop_fast.report.html.page import report_page
from layercoop_fast.search.base import Choice

# Tokens of a window that stand for it in a report.
EXCERPT_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Export:
    """Stage 6: the folder, with what the models write, what they cost, the record and the report."""

    opened: Opened
    game: ModelGame
    choice: Choice
    repaired: Repaired | None
    judged: Judged
    watch: Watch
    command: str | None
    seed: int
    how_opened: dict[str, Any]
    report: bool
    record: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: str, out: Path, *, measure_cost: bool, force: bool) -> dict[str, Any]:
        """Write the folder whole and return its record."""

        self._fill()  # while the weights are there to be counted

        def finish(folder: Path) -> dict[str, str]:
            written, excerpts = self._samples(folder)
            costs = self._costs(model, folder) if measure_cost else None
            self.record.update(cost=costs, excerpts=excerpts, generations=written, seconds=self.watch.seconds)
            page = {"report.html": report_page(self.record)} if self.report else {}
            return {"layercoop.json": json.dumps(self.record, indent=1, allow_nan=False) + "\n", **page}

        game = self.game
        self.watch.tell("writing the checkpoint", 0)
        export_checkpoint(
            game.checkpoint.model,
            [int(layer) for layer in np.flatnonzero(game.players.layer_mask(self.choice.mask))],
            out,
            zeroed=zeroed_halves(game.players, self.choice.mask),
            replaced=None if self.repaired is None else self.repaired.tensors(),
            blocks_path=game.skeleton.blocks_path,
            tokenizer=game.checkpoint.tokenizer,
            force=force,
            finish=finish,
            streamed=game.skeleton.streamed,
        )
        self.watch.tell("writing the checkpoint", 1)
        return self.record

    def _samples(self, folder: Path) -> tuple[list[dict[str, str]] | None, list[str]]:
        """What both models write after the prompts, and the first tokens of each window of text."""
        prompts, game = self.opened.prompts, self.game
        if prompts is None:
            return None, []
        excerpts = []
        if game.has_windows:
            excerpts = Prompts(game.windows.ids[:, :EXCERPT_TOKENS], prompts.tokenizer).texts()
        try:
            with self.watch("samples", "writing samples"):
                full = prompts.continued(game.checkpoint.model)
                drop_weights(game.checkpoint.model)
                pruned = prompts.continued(open_checkpoint(str(folder), **self.how_opened).model)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            # Some models cannot generate here, or not in this memory: no reason to lose what was searched for.
            return None, excerpts
        columns = zip(prompts.texts(), full, pruned, strict=True)
        return [dict(zip(("prompt", "full", "pruned"), column, strict=True)) for column in columns], excerpts

    def _costs(self, model: str, folder: Path) -> dict[str, Any] | None:
        """Memory and speed of both models, each loaded anew by a process of its own; None where that fails."""
        # Two copies of a large model would not fit.
        drop_weights(self.game.checkpoint.model)
        for played in (self.opened.game, self.game, self.opened.heldout):
            if played is not None:
                played.windows.free()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
        with self.watch("measure", "measuring memory and speed"):
            try:
                full, pruned = measure_costs([model, folder], **self.how_opened)
            except RunError as failed:  # no reason to lose what was searched for
                warnings.warn(f"{failed}; the record says nothing of it", stacklevel=2)
                return None
        return {"full": asdict(full), "pruned": asdict(pruned)}

    def _fill(self) -> None:
        """Put into the record what is known before anything is written; what is measured then takes its place there."""
        game, opened, found = self.game, self.opened, self.judged
        self.record.update(
            record_of(game, self.choice, found.quality, found.unseen, self.seed),
            budget=opened.spending.record(self.choice.mask, game.players),
            constraints=opened.limits.record(),
            nested=found.family,
            repair=None if self.repaired is None else self.repaired.record,
            excerpts=[],
            generations=None,
            command=self.command,
        )

"""From a checkpoint to a smaller one, with a record of what was done and what it costs: six stages in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.inputs.options import takes
from layercoop_fast.masks.types import Progress
from layercoop_fast.pruning.opening import check_places, check_request, opened
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.pruning.rerun import rerun_command
from layercoop_fast.pruning.stages import judged, repaired, search, settled
from layercoop_fast.pruning.timer import StageTimer
from layercoop_fast.pruning.writing import written
from layercoop_fast.report.html.page import report_fragment
from layercoop_fast.search.base import Choice


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune` did.

    Attributes:
        out: the folder that was written.
        choice: what the search decided.
        record: the content of `layercoop.json`.
    """

    out: Path
    choice: Choice
    record: dict[str, Any]

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return report_fragment(self.record)


@takes(PruneRequest)
def prune(model: str, out: str | Path, *, on_progress: Progress | None = None, **keywords: Any) -> Pruned:
    """Remove layers from a checkpoint and write what is left as a plain checkpoint.

    The folder `out` holds a model that `AutoModelForCausalLM.from_pretrained(out)` loads, its tokenizer, and
    `layercoop.json` (docs/contracts.md). It appears whole, by one rename, or not at all.

    Args:
        model: checkpoint folder, or hub name.
        out: folder to write; it must not exist unless `force`.
        on_progress: called with (stage, done, total).
        keywords: the fields of `PruneRequest` (`pruning/request.py`): exactly one of `remove`, `drop`, `speedup` and
            `fit`; the others have defaults. Its options of the game are those of `ModelGame.from_pretrained`. Neither
            `store` nor `workers` is used for the held-out text; workers are ended whatever happens.

    A layer of which one half goes is kept, with that half's output projection written as zeros.

    Raises `RequestError` for a wrong request, before anything is computed where that can be seen, and `RunError` for a
    failure on the way, also where the folder is not the masked model; nothing is left half-written.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> from layercoop_fast import prune
        >>> pruned = prune(
        ...     "my-model", "pruned", calibration="self", windows=2, tokens=16, remove=1, method="sleb",
        ...     repair=False, measure_cost=False, samples=0,
        ... )
        >>> AutoModelForCausalLM.from_pretrained("pruned").config.num_hidden_layers, len(pruned.record["removed"])
        (3, 1)
    """
    request = PruneRequest(**keywords)
    command = rerun_command(model, str(out), request)
    out = Path(out)
    check_places(out, model, request)
    check_request(request)
    with opened(model, request, StageTimer(on_progress)) as problem:
        found = search(problem, request)
        found = settled(problem, found, request)
        found = repaired(problem, found, request)
        found = judged(problem, found)
        problem.game.close()  # workers make room for the models that are measured
        record = written(problem, found, request, out, command)
    return Pruned(out, found.choice, record)

"""From a pruned checkpoint to a healed one: distillation from the full model, written whole with its record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.engine.loading import check_device
from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD, check_spared, check_target
from layercoop_fast.healing.loop import Course, Loop, OnLook, Plan
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.preparing import prepared
from layercoop_fast.healing.state import state_file
from layercoop_fast.healing.writing import settled, write_healed
from layercoop_fast.inputs.options import takes
from layercoop_fast.inputs.text import read_json
from layercoop_fast.masks.types import Progress


@dataclass(frozen=True, eq=False)
class Healed:
    """What `heal` did.

    Attributes:
        out: the folder that was written.
        record: the section `healing` of its `layercoop.json`.
        wrote: whether this process wrote the folder; of several that share the work, one does.
    """

    out: Path
    record: dict[str, Any]
    wrote: bool = True


@takes(HealRequest)
def heal(
    model: str,
    teacher: str,
    out: str | Path,
    *,
    on_progress: Progress | None = None,
    on_look: OnLook | None = None,
    **keywords: Any,
) -> Healed:
    """Distil a pruned checkpoint from the full model and write the result as a plain checkpoint.

    The loss is KL(teacher ‖ student) of the next token at every position. Held-out windows of every kind of text are
    looked at on the way. What is written is the state with the lowest mean NLL of those in which no kind is worse than
    before; where there is none, the weights stay as they were and the record says so. The folder `out` appears whole,
    after it was opened again and compared with what was measured. Until then the state of the run is in
    `OUT.healing.safetensors` beside it, written every 45 seconds, or less often where writing it takes long.

    Args:
        model: folder of the pruned checkpoint, as `prune` or `export_checkpoint` writes it.
        teacher: folder or hub name of the full model.
        out: folder to write; it must not exist unless `force`. It may be `model` itself.
        on_progress: called with (stage, done, total).
        on_look: called with each point of the curve: tokens, seconds, loss, and NLL by kind.
        keywords: the fields of `HealRequest` (`healing/options.py`); all have defaults.

    Raises `RequestError` for a wrong request, before anything is trained, and `RunError` for a failure on the way; the
    latest state stays then, and `resume=True` goes on from it.

    Examples:
        >>> from layercoop_fast import heal, prune
        >>> options = {"calibration": "self", "windows": 2, "tokens": 16, "method": "ppl", "measure_cost": False}
        >>> pruned = prune("my-model", "cut", remove=1, repair=False, samples=0, **options)
        >>> healed = heal("cut", "my-model", "healed", text=["builtin"], window=16, tokens=512)
        >>> healed.record["tokens"], sorted(healed.record["nll"]["builtin"])
        (512, ['after', 'before'])
    """
    request = HealRequest(**keywords)
    request.check()
    out = Path(out)
    _check_places(teacher, out, request)
    ready = prepared(model, teacher, state_file(out), request, on_progress)
    plan, texts, request = ready.plan, ready.plan.texts, ready.plan.request
    if plan.processes.first and not request.resume:
        plan.state.unlink(missing_ok=True)  # only `force` comes here with one
    course = Loop(plan, on_progress, on_look).run()
    if course.stopped is not None:
        warnings.warn(course.stopped, stacklevel=3)
    section = _section(teacher, plan, course)
    if plan.processes.first:
        done = settled(ready.cut, request, texts, course.looks(0), changed=course.best > 0)
        if done.refused:
            section |= {"kept": False, "reason": done.refused}
        write_healed(done, out, ready.record, section, request, texts, on_progress)
        plan.state.unlink(missing_ok=True)
    plan.processes.end()
    return Healed(out, section if plan.processes.first else read_json(out / RECORD)["healing"], plan.processes.first)


def _check_places(teacher: str, out: Path, request: HealRequest) -> None:
    """Raise `RequestError` where the folder cannot be written, or a stopped run's state is in the way or missing."""
    check_device(request.device)
    check_target(out, folder=True, force=request.force)
    if Path(teacher).exists():
        check_spared(out, "teacher", teacher, "write to another folder")
    if request.cache_teacher is not None:
        check_spared(out, "folder of cache_teacher=", request.cache_teacher, "name one elsewhere")
    state = state_file(out)
    if request.resume and not state.is_file():
        raise RequestError(f"there is no stopped run to go on with: {state} does not exist; leave out resume=")
    if state.exists() and not (request.resume or request.force):
        raise RequestError(
            f"a run that was stopped left its state in {state}: go on with it (resume=True), or begin again "
            "(force=True)"
        )


def _section(teacher: str, plan: Plan, course: Course) -> dict[str, Any]:
    """The section `healing` of `layercoop.json`, all but what is found when the folder is written."""
    return {
        "teacher": teacher,
        "kept": course.best > 0,
        "reason": None
        if course.best > 0
        else "in no state that was looked at every kind of text was as good as before",
        "stopped": course.stopped,
        **{name: value for name, value in plan.run.items() if name not in ("student", "teacher", "texts", "tokens")},
        "parameters": sum(parameter.numel() for parameter in plan.trained.values()),
        "texts": [kind.spec for kind in plan.texts.kinds],
        "watched": list(plan.texts.watched),
        "left_out": list(plan.texts.left_out.values()),
        "tokens": course.tokens,
        "seconds": round(course.seconds, 1),
        "curve": course.curve,
        "best": course.best,
    }

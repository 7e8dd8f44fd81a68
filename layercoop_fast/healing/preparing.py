"""Everything that a run of healing needs: both models checked against each other, texts, and what is trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from layercoop_fast.engine.loading import DTYPES, Checkpoint, fingerprint, open_checkpoint
from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD
from layercoop_fast.healing.blocks import student_blocks
from layercoop_fast.healing.loop import Plan
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.processes import Processes
from layercoop_fast.healing.reading import Reader, teacher_reader
from layercoop_fast.healing.shared import convert, share_tensors
from layercoop_fast.healing.state import read_run, same_run
from layercoop_fast.healing.teacher import CachedTeacher, LiveTeacher
from layercoop_fast.healing.texts import HealingTexts, check_specs, default_specs, load_texts
from layercoop_fast.healing.trained import RATES, select
from layercoop_fast.healing.writing import card_for
from layercoop_fast.kernels.precision import is_slow
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masks.types import Progress
from layercoop_fast.report.html.record import load_record
from layercoop_fast.texts.own_text import SELF

# Bytes that a block keeps for the backward pass, for each row and number of its widths, in 2-byte numbers.
_NUMBERS_OF_HIDDEN, _NUMBERS_OF_INNER = 24, 8
_SHARE_OF_MEMORY = 0.6


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a run needs, opened.

    Attributes:
        plan: of the loop.
        cut: the pruned checkpoint, whose model is the plan's student.
        record: the content of its `layercoop.json`, where there is one.
    """

    plan: Plan
    cut: Checkpoint
    record: dict[str, Any] | None


def prepared(
    model: str, teacher: str, state: Path, request: HealRequest, on_progress: Progress | None = None
) -> Prepared:
    """Open the models and the texts, choose what is trained, and share the rest. Raises `RequestError` as `heal`."""
    record = load_record(Path(model)) if (Path(model) / RECORD).is_file() else None
    if record is not None and "n_players" in record:
        card_for(record, Path(model))  # what it lacks is said now, not after the training
    specs = _specs(record, request)
    begun = read_run(state) if request.resume else None
    if begun is not None:
        request = _as_begun(request, begun)
    processes = Processes(cpu=request.device == "cpu")
    full, cut = _opened(model, teacher, record, request, processes)
    student = fingerprint(cut.model)
    texts = _texts(specs, full, request, processes, on_progress)
    plan = _plan(full, Skeleton(cut.model), texts, request, processes, student, state)
    if begun is not None:
        same_run(state, begun, plan.run)
    return Prepared(plan, cut, record)


def _specs(record: dict[str, Any] | None, request: HealRequest) -> list[str]:
    """The SPECs to train on. Raises `RequestError` for those that cannot be, and for `watch` where it names others."""
    specs = default_specs(record) if request.text is None else list(request.text)
    if request.self_text and SELF not in specs:
        specs.append(SELF)
    check_specs(specs, request.watch or ())
    return specs


def _as_begun(request: HealRequest, begun: dict[str, Any]) -> HealRequest:
    """The request with what a stopped run found for itself, which may depend on free memory and on the processor."""
    found: dict[str, Any] = {}
    if request.checkpointing is None and isinstance(begun.get("checkpointing"), bool):
        found["checkpointing"] = begun["checkpointing"]
    if request.dtype == "auto" and begun.get("dtype") in ("float32", "bfloat16"):
        found["dtype"] = begun["dtype"]
    return replace(request, **found)


def _opened(
    model: str, teacher: str, record: dict[str, Any] | None, request: HealRequest, processes: Processes
) -> tuple[Checkpoint, Checkpoint]:
    """Teacher and pruned model in the dtype of the products, checked against each other.

    The pruned model's config goes on stating the checkpoint's own dtype, in which the healed one is written.
    """
    device = processes.device or request.device
    how: dict[str, Any] = {"device": device, "trust_remote_code": request.trust_remote_code}
    cut = open_checkpoint(model, **how)
    if is_quantised(cut.model):
        raise RequestError(f"{model} is quantised, and its weights cannot be trained: heal it before it is quantised")
    own, wanted = cut.model.dtype, DTYPES[request.dtype]
    if not isinstance(wanted, torch.dtype):
        slow = device == "cpu" and bool(processes.of_first(float(is_slow(own))))
        wanted = torch.float32 if slow or own == torch.float16 else own
    convert(cut.model, wanted)
    full = open_checkpoint(teacher, **how, dtype=cut.model.dtype)
    _check_pair(full, cut, model, teacher, record)
    return full, cut


def _check_pair(full: Checkpoint, cut: Checkpoint, model: str, teacher: str, record: dict[str, Any] | None) -> None:
    """Raise `RequestError` unless the one model can be the other without some of its layers."""
    ours, theirs = cut.model.config, full.model.config
    if ours.model_type != theirs.model_type:
        raise RequestError(
            f"{teacher} is of another family ({theirs.model_type}) than {model} ({ours.model_type}): the teacher is "
            "the model that was pruned"
        )
    ours, theirs = ours.get_text_config(decoder=True), theirs.get_text_config(decoder=True)
    sizes = [int(one.model.get_input_embeddings().weight.shape[0]) for one in (full, cut)]
    alike = sizes[0] == sizes[1]
    if alike and full.tokenizer is not None and cut.tokenizer is not None:
        alike = full.tokenizer.get_vocab() == cut.tokenizer.get_vocab()
    if not alike:
        raise RequestError(
            f"{teacher} has another vocabulary ({sizes[0]:,} tokens) than {model} ({sizes[1]:,}): the teacher is the "
            "model that was pruned"
        )
    layers = int(theirs.num_hidden_layers), int(ours.num_hidden_layers)
    if layers[1] > layers[0] or (layers[0] == layers[1] and record is None):
        raise RequestError(
            f"{model} has {layers[1]} layers and {teacher} {layers[0]}, and no {RECORD} says that anything was "
            "removed: give the folder of a pruned checkpoint"
        )


def _texts(
    specs: list[str], full: Checkpoint, request: HealRequest, processes: Processes, progress: Progress | None
) -> HealingTexts:
    """The texts of the SPECs; a warning for each that is left out."""
    texts = load_texts(
        specs,
        full.tokenizer,
        Skeleton(full.model),
        window=request.window,
        watch=request.watch or (),
        required=request.text is not None,
        seed=request.seed,
        progress=progress,
    )
    for why in texts.left_out.values() if processes.first else ():
        warnings.warn(f"healing leaves out a text: {why}", stacklevel=5)
    return texts


def _plan(
    full: Checkpoint,
    skeleton: Skeleton,
    texts: HealingTexts,
    request: HealRequest,
    processes: Processes,
    student: str,
    state: Path,
) -> Plan:
    """Choose what is trained, share the rest with the teacher, and say what the run is."""
    trained = request.trained
    rate = RATES[trained.kind] if request.learning_rate is None else request.learning_rate
    full.model.requires_grad_(False)
    parameters = select(skeleton, trained, request.seed)
    share_tensors(skeleton.model, full.model)
    run: dict[str, Any] = {
        "student": student,
        "teacher": fingerprint(full.model),
        "texts": texts.fingerprint,
        "train": request.train,
        "minutes": None if request.seconds is None else request.seconds / 60,
        "tokens": request.tokens,
        "learning_rate": rate,
        "batch": request.batch,
        "window": request.window,
        "watch_every": request.watch_every,
        "teacher_top": None if request.cache_teacher is None else request.teacher_top,
        "seed": request.seed,
        "dtype": str(skeleton.dtype).removeprefix("torch."),
        "processes": processes.size,
    }
    recomputes = run["checkpointing"] = _recomputes(skeleton, request, processes)
    blocks, parameters = student_blocks(skeleton, parameters, request.window, recomputes=recomputes)
    run["joint_blocks"] = len(blocks.made)
    processes.share(request.batch)
    reader = teacher_reader(Skeleton(full.model), request.window)
    folder = request.cache_teacher
    return Plan(
        student=Reader(skeleton.model),
        blocks=blocks,
        trained=parameters,
        teacher=LiveTeacher(reader)
        if folder is None
        else CachedTeacher(reader, texts, folder, request.teacher_top, run["teacher"]),
        texts=texts,
        request=request,
        rate=rate,
        run=run,
        state=state,
        processes=processes,
    )


def _recomputes(skeleton: Skeleton, request: HealRequest, processes: Processes) -> bool:
    """Whether blocks compute their activations again in the backward pass: where asked, or where they do not fit."""
    if request.checkpointing is not None:
        return request.checkpointing
    config = skeleton.model.config.get_text_config(decoder=True)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    inner = getattr(config, "intermediate_size", None)
    numbers = _NUMBERS_OF_HIDDEN * hidden + _NUMBERS_OF_INNER * (inner if isinstance(inner, int) else 4 * hidden)
    rows = request.batch * request.window // processes.size
    wanted = skeleton.dtype.itemsize * rows * numbers * skeleton.n_layers
    # Values, moments and the best weights come on top.
    trained = sum(one.numel() for one in skeleton.model.parameters() if one.requires_grad)
    free = free_memory(skeleton.device) - trained * (16 + skeleton.dtype.itemsize)
    return bool(processes.of_first(float(wanted > _SHARE_OF_MEMORY * max(0, free))))

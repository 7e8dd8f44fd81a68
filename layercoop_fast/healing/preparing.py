"""Everything that a run of healing needs: both models checked against each other, texts, and what is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layercoop_fast.engine.loading import Checkpoint, fingerprint, open_checkpoint
from layercoop_fast.engine.precision import is_slow
from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD
from layercoop_fast.healing.blocks import student_blocks
from layercoop_fast.healing.loop import Plan
from layercoop_fast.healing.options import HealRequest
from layercoop_fast.healing.processes import Processes
from layercoop_fast.healing.reading import Reader, teacher_reader
from layercoop_fast.healing.shared import share_tensors
from layercoop_fast.healing.teacher import CachedTeacher, LiveTeacher
from layercoop_fast.healing.texts import HealingTexts, default_specs, load_texts
from layercoop_fast.healing.trained import RATES, select
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masks.types import Progress
from layercoop_fast.report.html.record import load_record

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
    processes = Processes(cpu=request.device == "cpu")
    full, cut = _opened(model, teacher, record, request, processes.device or request.device)
    student = fingerprint(cut.model)
    texts = _texts(record, full, request, on_progress)
    return Prepared(_plan(full, Skeleton(cut.model), texts, request, processes, student, state), cut, record)


def _opened(
    model: str, teacher: str, record: dict[str, Any] | None, request: HealRequest, device: str
) -> tuple[Checkpoint, Checkpoint]:
    """Teacher and pruned model in the dtype of the products, checked against each other."""
    how: dict[str, Any] = {"device": device, "trust_remote_code": request.trust_remote_code}
    cut = open_checkpoint(model, **how, dtype=request.dtype)
    if is_quantised(cut.model):
        raise RequestError(f"{model} is quantised, and its weights cannot be trained: heal it before it is quantised")
    own = cut.model.dtype
    if own == torch.float16 or (request.dtype == "auto" and device == "cpu" and is_slow(own)):
        cut.model.float()
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
            f"{teacher} has another vocabulary ({sizes[0]:,} words) than {model} ({sizes[1]:,}): the teacher is the "
            "model that was pruned"
        )
    layers = int(theirs.num_hidden_layers), int(ours.num_hidden_layers)
    if layers[1] > layers[0] or (layers[0] == layers[1] and record is None):
        raise RequestError(
            f"{model} has {layers[1]} layers and {teacher} {layers[0]}, and no {RECORD} says that anything was "
            "removed: give the folder of a pruned checkpoint"
        )


def _texts(
    record: dict[str, Any] | None, full: Checkpoint, request: HealRequest, progress: Progress | None
) -> HealingTexts:
    specs = default_specs(record) if request.text is None else list(request.text)
    if request.self_text and "self" not in specs:
        specs.append("self")
    return load_texts(
        specs,
        full.tokenizer,
        Skeleton(full.model),
        window=request.window,
        watch=request.watch or (),
        required=request.text is not None,
        seed=request.seed,
        progress=progress,
    )


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
    digest = hashlib.sha256()
    for kind in texts.kinds:
        digest.update(f"{kind.spec} {tuple(kind.train.shape)}".encode() + kind.train.numpy().tobytes())
    full.model.requires_grad_(False)
    parameters = select(skeleton, trained, request.seed)
    share_tensors(skeleton.model, full.model)
    run: dict[str, Any] = {
        "student": student,
        "teacher": fingerprint(full.model),
        "texts": digest.hexdigest(),
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
        teacher=LiveTeacher(reader, texts)
        if folder is None
        else CachedTeacher(reader, texts, folder, request.teacher_top, run["teacher"]),
        teacher_model=full.model,
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
    return bool(wanted > _SHARE_OF_MEMORY * max(0, free))

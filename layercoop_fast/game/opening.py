"""From the options of a game to what it is made of: checkpoint, text, workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercoop_fast.engine.loading import Checkpoint, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.options import GameOptions
from layercoop_fast.game.store import check_store
from layercoop_fast.game.utility import get_utility
from layercoop_fast.kernels.precision import warn_if_slow
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.calibration import Calibration
from layercoop_fast.texts.items import Items, load_items
from layercoop_fast.texts.mixture import Texts, load_texts, texts_of
from layercoop_fast.workers.dispatch import Workers
from layercoop_fast.workers.opening import describe_checkpoint, open_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Opened:
    """What a game is made of.

    Attributes:
        checkpoint: the opened model.
        skeleton: of the model.
        text: what it is measured on.
        workers: what measures instead of this process, where something does.
    """

    checkpoint: Checkpoint
    skeleton: Skeleton
    text: Calibration | Items
    workers: Workers | None


@contextmanager
def opened(path: str, calibration: Texts, options: GameOptions, progress: Progress | None = None) -> Iterator[Opened]:
    """A checkpoint, its text and its workers, which end where the block fails.

    Raises `RequestError` in one line for whatever is wrong with the request.
    """
    if getattr(get_utility(options.utility), "objective", "mean") == "worst" and len(texts_of(calibration)) == 1:
        raise RequestError("the worst of several texts needs more than one: give another calibration=")
    if options.store is not None:
        check_store(Path(options.store))
    how: dict[str, Any] = {name: getattr(options, name) for name in ("dtype", "trust_remote_code", "blocks")}
    with ExitStack() as undo:
        workers, device = None, options.device
        if options.workers is not None:
            if options.offload:
                raise RequestError("offload=True reads blocks for one process: leave it out, or workers=")
            described = describe_checkpoint(path, device=device, **how)
            workers = open_workers(options.workers, described, device=device, tolerant=options.tolerant)
            undo.callback(workers.close)
            device = "cpu"
        elif options.tolerant:
            raise RequestError("tolerant=True accepts workers on machines that differ: it belongs to workers=")
        checkpoint = open_checkpoint(path, device=device, offload=options.offload, **how)
        skeleton = Skeleton(checkpoint.model, options.blocks, checkpoint.streamed)
        if options.dtype == "auto" and options.device == "cpu" and not str(options.workers).startswith("ray"):
            warn_if_slow(skeleton.dtype)
        text = load_text(calibration, checkpoint.tokenizer, skeleton, options, progress)
        yield Opened(checkpoint, skeleton, text, workers)
        undo.pop_all()


def load_text(
    calibration: Texts,
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    options: GameOptions,
    progress: Progress | None = None,
) -> Calibration | Items:
    """What the utility of `options` is measured on: items of a SPEC (`load_items`), or windows of texts."""
    if get_utility(options.utility).of_items:
        texts = texts_of(calibration)
        if len(texts) > 1:
            raise RequestError(f"items with options come from one SPEC, not {len(texts)}: give one calibration=")
        if options.chat:
            raise RequestError("chat=True is for text: items with options are measured as they are written")
        return load_items(
            texts[0][0],
            tokenizer,
            skeleton,
            items=options.windows,
            tokens=options.tokens,
            shots=options.shots,
            seed=options.seed,
            share=options.share_context,
        )
    if options.shots:
        name = get_utility(options.utility).name
        raise RequestError(f"shots= are examples before items with options, and the utility {name} is one of text")
    return load_texts(
        calibration,
        tokenizer,
        skeleton,
        windows=options.windows,
        tokens=options.tokens,
        seed=options.seed,
        chat=options.chat,
        progress=progress,
    )

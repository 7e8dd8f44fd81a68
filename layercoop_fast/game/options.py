"""What a game is opened with: text, utility, players and machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from layercoop_fast.inputs.options import MACHINE, REMOVE, SEARCH, TEXT, TOKENS, WINDOWS, shell

if TYPE_CHECKING:
    import torch

    from layercoop_fast.game.item_utility import ChoiceUtility
    from layercoop_fast.game.utility import Utility
    from layercoop_fast.masked.players import Label
    from layercoop_fast.texts.mixture import Texts


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The text that worths are measured on: a SPEC, or several with weights (`texts/mixture.py`)."""

    calibration: Texts = field(
        default="builtin",
        metadata=shell(
            "A text: FILE.txt, FILE.jsonl, hf:NAME/CONFIG/SPLIT (CONFIG and SPLIT may be left out), builtin (the "
            "default), builtin-heldout, builtin-docstrings, builtin-code, or self (written by the model). Give the "
            "option several times for several texts, each with :WEIGHT if wanted.",
            panel=TEXT,
            metavar="SPEC[:WEIGHT]",
            read="texts",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class GameOptions:
    """The keywords of `ModelGame.from_pretrained`, which says what each means for Python; the help is for shells.

    Objects of the library's own (a `Utility`, groups of labels, a `torch.dtype`) stand where the command line has text.
    """

    players: str | Sequence[Sequence[Label]] = field(
        default="layers",
        metadata=shell(
            "What one bit of a mask removes: layers, sublayers (attention and MLP apart), or a .json file of groups.",
            panel=REMOVE,
            read="text",
        ),
    )
    windows: int = field(
        default=WINDOWS, metadata=shell("Windows to cut from each text, or items to cut from a text.", panel=TEXT)
    )
    tokens: int = field(
        default=TOKENS, metadata=shell("Tokens of a window, or of an item that is cut from a text.", panel=TEXT)
    )
    shots: int = field(
        default=0, metadata=shell("Items shown as examples before every other item; they are not scored.", panel=TEXT)
    )
    share_context: bool = field(
        default=True,
        metadata=shell(
            "Compute the context that the options of an item share once, or again for every option.", panel=TEXT
        ),
    )
    chat: bool = field(
        default=False, metadata=shell("Put the text into turns through the model's chat template.", panel=TEXT)
    )
    score_every: int = field(
        default=1,
        metadata=shell(
            "Score every N-th position of a window; the others are context only. Faster, with a larger standard error.",
            panel=TEXT,
            least=1,
        ),
    )
    utility: str | Utility | ChoiceUtility = field(
        default="ppl_ratio",
        metadata=shell(
            "Worth of a mask. On text: ppl_ratio, nll, kl or blend:SHARE (the share of NLL; the rest is KL). On items "
            "with options: accuracy, accuracy_norm, margin or margin_norm; the items come from a FILE.jsonl or are cut "
            "from a text.",
            panel=SEARCH,
            read="text",
        ),
    )
    seed: int = field(default=0, metadata=shell("Seed of all random numbers.", panel=SEARCH, least=0))
    store: str | Path | None = field(
        default=None,
        metadata=shell("Keep measured masks in this file, and read known ones from it.", panel=SEARCH, read="path"),
    )
    dtype: str | torch.dtype = field(
        default="auto",
        metadata=shell("float32, bfloat16, float16, or auto: the checkpoint's own.", panel=MACHINE, read="text"),
    )
    device: str = field(
        default="cpu", metadata=shell("cpu, cuda, cuda:N, or auto: one model over all GPUs.", panel=MACHINE)
    )
    memory: int | None = field(
        default=None,
        metadata=shell(
            "Memory for stored states, for example 4GiB. Default: a quarter of what is free.",
            panel=MACHINE,
            read="size",
        ),
    )
    workers: int | str | None = field(
        default=None,
        metadata=shell(
            "Measure on N local processes, or on a Ray cluster: ray or ray:HOST:PORT.",
            panel=MACHINE,
            metavar="N|ray",
            read="text",
        ),
    )
    tolerant: bool = field(
        default=False,
        metadata=shell("Accept workers on machines that differ; the fingerprints then say so.", panel=MACHINE),
    )
    offload: bool = field(
        default=False,
        metadata=shell(
            "Read blocks from the checkpoint's files when they are used, two in memory at a time: for models larger "
            "than memory.",
            panel=MACHINE,
        ),
    )
    blocks: str | None = field(
        default=None,
        metadata=shell("Dotted path of the list of blocks, for models where it is not found by itself.", panel=MACHINE),
    )
    block_path: str = field(
        default="auto",
        metadata=shell("auto: fast blocks where they fit, on the CPU; hf: the model's own only.", panel=MACHINE),
    )
    trust_remote_code: bool = field(
        default=False,
        metadata=shell(
            "Run Python code that comes with the checkpoint.",
            panel=MACHINE,
        ),
    )

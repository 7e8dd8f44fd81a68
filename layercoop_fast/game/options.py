"""What a game is opened with: text, utility, players and machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layercoop_fast.inputs.options import MACHINE, REMOVE, SEARCH, TEXT, TOKENS, WINDOWS, option

if TYPE_CHECKING:
    import torch

    from layercoop_fast.game.item_utility import ChoiceUtility
    from layercoop_fast.game.utility import Utility
    from layercoop_fast.masked.players import Label
    from layercoop_fast.texts.mixture import Texts


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The text that worths are measured on: a SPEC, or several with weights (`texts/mixture.py`)."""

    calibration: Texts = option(
        "builtin",
        TEXT,
        "A text: FILE.txt, FILE.jsonl, hf:NAME/CONFIG/SPLIT (CONFIG and SPLIT may be left out), builtin (the "
        "default), builtin-heldout, builtin-docstrings, builtin-code, self (written by the model), "
        "self:PROMPTS.jsonl (its answers) or ppl:wikitext2, ppl:c4, ppl:ptb. Give the option several times for "
        "several texts, each with :WEIGHT if wanted.",
        metavar="SPEC[:WEIGHT]",
        read="texts",
    )


@dataclass(frozen=True, kw_only=True)
class GameOptions:
    """The keywords of `ModelGame.from_pretrained`, which says what each means for Python; the help is for shells.

    Objects of the library's own (a `Utility`, groups of labels, a `torch.dtype`) stand where the command line has text.
    """

    players: str | Sequence[Sequence[Label]] = option(
        "layers",
        REMOVE,
        "What one bit of a mask removes: layers, sublayers (attention and MLP apart), or a .json file of groups.",
        read="text",
    )
    windows: int = option(WINDOWS, TEXT, "Windows to cut from each text, or items to cut from a text.")
    tokens: int = option(TOKENS, TEXT, "Tokens of a window, or of an item that is cut from a text.")
    shots: int = option(0, TEXT, "Items shown as examples before every other item; they are not scored.")
    share_context: bool = option(
        True, TEXT, "Compute the context that the options of an item share once, or again for every option."
    )
    chat: bool = option(False, TEXT, "Put the text into turns through the model's chat template.")
    score_every: int = option(
        1,
        TEXT,
        "Score every N-th position of a window; the others are context only. Faster, with a larger standard error.",
        least=1,
    )
    utility: str | Utility | ChoiceUtility = option(
        "ppl_ratio",
        SEARCH,
        "Worth of a mask. On text: ppl_ratio, nll, kl or blend:SHARE (the share of NLL; the rest is KL). On items "
        "with options: accuracy, accuracy_norm, margin or margin_norm; the items come from a FILE.jsonl or are cut "
        "from a text.",
        read="text",
    )
    seed: int = option(0, SEARCH, "Seed of all random numbers.", least=0)
    store: str | Path | None = option(
        None, SEARCH, "Keep measured masks in this file, and read known ones from it.", read="path"
    )
    dtype: str | torch.dtype = option(
        "auto", MACHINE, "float32, bfloat16, float16, or auto: the checkpoint's own.", read="text"
    )
    device: str = option("cpu", MACHINE, "cpu, cuda, cuda:N, or auto: one model over all GPUs.")
    memory: int | None = option(
        None, MACHINE, "Memory for stored states, for example 4GiB. Default: a quarter of what is free.", read="size"
    )
    workers: int | str | None = option(
        None,
        MACHINE,
        "Measure on N local processes, or on a Ray cluster: ray or ray:HOST:PORT.",
        metavar="N|ray",
        read="text",
    )
    tolerant: bool = option(False, MACHINE, "Accept workers on machines that differ; the fingerprints then say so.")
    offload: bool = option(
        False,
        MACHINE,
        "Read blocks from the checkpoint's files when they are used, two in memory at a time: for models larger "
        "than memory.",
    )
    blocks: str | None = option(
        None, MACHINE, "Dotted path of the list of blocks, for models where it is not found by itself."
    )
    block_path: str = option("auto", MACHINE, "auto: fast blocks where they fit, on the CPU; hf: the model's own only.")
    trust_remote_code: bool = option(False, MACHINE, "Run Python code that comes with the checkpoint.")

"""The teacher's distribution for a batch: from its states, or from the most likely tokens that are kept on disk.

Kept tokens lie in files of one stretch of 64 windows of one kind, named after everything they depend on: the teacher,
the text's tokens and how many are kept of each position. A file is written whole when the stretch is first read, and
read ever after. Windows are shuffled before they are numbered, so it serves runs with the same teacher, texts in the
same order, window and seed, whatever these train. There is no index, so nothing can disagree with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.files import written_whole
from layercoop_fast.healing.reading import Reader
from layercoop_fast.healing.texts import HealingTexts, Place
from layercoop_fast.inputs.libraries import library_reads
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.kernels.linear_divergence import Head, TeacherStates, TopTokens

# Windows of a file.
STRETCH = 64
# Windows and rows that are computed at once.
_BATCH = 8
_ROWS = 32


class LiveTeacher:
    """Runs the teacher for every batch.

    Args:
        reader: of the teacher.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        weight = reader.projection.weight.detach()
        bias = reader.projection.bias
        head = reader.head
        self._head = Head(weight, None if bias is None else bias.detach(), head.scale, head.soft_cap)

    def targets(self, places: Sequence[Place], ids: Tensor) -> TeacherStates:
        """The teacher for windows `ids` (int64 [B, T]) that lie at `places`: B · T rows."""
        with torch.no_grad():
            return TeacherStates(self._reader.states(ids), self._head)


class CachedTeacher:
    """Reads the most likely tokens, and computes and keeps those that are not there yet.

    Args:
        reader: of the teacher.
        texts: that are read.
        folder: of the files; made where it is missing.
        top: tokens of each position.
        teacher: what identifies the teacher, in the names of the files.

    Raises `RequestError` where the folder is a file, or the vocabulary has fewer tokens.
    """

    def __init__(self, reader: Reader, texts: HealingTexts, folder: Path, top: int, teacher: str) -> None:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"cache_teacher={folder} is a file: name a folder")
        vocabulary = len(reader.projection.weight)
        if top > vocabulary:
            raise RequestError(f"teacher_top={top} is more than the {vocabulary} tokens of the vocabulary")
        self._reader = reader
        self._texts = texts
        self._folder = folder
        self._top = top
        self._teacher = teacher
        self._held: dict[int, tuple[int, dict[str, Tensor]]] = {}
        self.computed = 0
        """Tokens that the teacher was run for."""

    def targets(self, places: Sequence[Place], ids: Tensor) -> TopTokens:
        """The teacher for windows `ids` (int64 [B, T]) that lie at `places`: B · T rows."""
        rows: dict[str, list[Tensor]] = {"words": [], "log_probs": [], "rest": []}
        for place in places:
            stretch = self._stretch(place.kind, place.window // STRETCH)
            for name, parts in rows.items():
                parts.append(stretch[name][place.window % STRETCH])
        joined = {name: torch.cat(parts).to(ids.device) for name, parts in rows.items()}
        return TopTokens(joined["words"].long(), joined["log_probs"].float(), joined["rest"])

    def _stretch(self, kind: int, number: int) -> dict[str, Tensor]:
        """Tokens and log_probs [w, T, K] and rest [w, T] of one stretch of a kind's windows; the last one is held."""
        held = self._held.get(kind)
        if held is None or held[0] != number:
            ids = self._texts.kinds[kind].train[number * STRETCH : (number + 1) * STRETCH]
            file = self._folder / f"teacher-{self._name(ids)}.safetensors"
            held = (number, self._read(file, ids) if file.exists() else self._compute(file, ids))
            self._held[kind] = held
        return held[1]

    def _name(self, ids: Tensor) -> str:
        about = f"{self._teacher} {self._top} {tuple(ids.shape)} ".encode()
        return hashlib.sha256(about + ids.numpy().astype("<i8").tobytes()).hexdigest()[:32]

    def _compute(self, file: Path, ids: Tensor) -> dict[str, Tensor]:
        parts = [self._most_probable(ids[at : at + _BATCH]) for at in range(0, len(ids), _BATCH)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.computed += ids.numel()
        with written_whole(file, force=True) as place:
            save_file(found, place)
        return found

    @torch.no_grad()
    def _most_probable(self, ids: Tensor) -> dict[str, Tensor]:
        device = self._reader.projection.weight.device
        states, head = self._reader.states(ids.to(device)), self._reader.head
        tokens, log_probs, rest = [], [], []
        for at in range(0, len(states), _ROWS):
            z = head.ended(head.logits(states[at : at + _ROWS]))
            found, places = z.topk(self._top)
            log_probs.append((found - z.logsumexp(-1, keepdim=True)).half())
            tokens.append(places.int())
            # What is kept must be a distribution: the rest is what the rounded named tokens leave.
            rest.append((1 - log_probs[-1].double().exp().sum(-1)).clamp_min(0).float())
        shape = tuple(ids.shape)
        return {
            "words": torch.cat(tokens).view(*shape, -1).cpu(),
            "log_probs": torch.cat(log_probs).view(*shape, -1).cpu(),
            "rest": torch.cat(rest).view(shape).cpu(),
        }

    def _read(self, file: Path, ids: Tensor) -> dict[str, Tensor]:
        shape = tuple(ids.shape)
        expected = {"words": ("I32", (*shape, self._top)), "log_probs": ("F16", (*shape, self._top))}
        expected["rest"] = ("F32", shape)
        header = read_header(file)
        if {name: (info.dtype, info.shape) for name, info in header.tensors.items()} != expected:
            raise RequestError(f"{file} does not hold what its name says: remove it, and it is computed again")
        with library_reads(str(file)), safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in expected}
        tokens = found["words"]
        if int(tokens.min()) < 0 or int(tokens.max()) >= len(self._reader.projection.weight):
            raise RequestError(f"{file} names tokens that the vocabulary does not have: remove it")
        return found

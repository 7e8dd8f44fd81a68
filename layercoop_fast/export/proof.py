"""Proof that a written checkpoint is the masked model: it is opened again by plain transformers and compared.

    reference = masked_reference(players, units, ids)      # while the original's weights are in memory
    ...                                                    # the folder is written, the original may be freed
    written = Written.open(folder, device="cpu")
    record = reference.check(written)                      # raises `RunError` where the two differ

The reference is the masked pass: the kept blocks of the original model, with the weights of a repair where there is
one. It is compared with the logits of the folder's own forward pass, which uses nothing of this package. Where the
original is streamed block by block, the folder is streamed too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layercoop_fast.engine.loading import check_device, open_checkpoint
from layercoop_fast.engine.quantised import is_quantised
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.streamed import StreamedBlocks
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.files import reason
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masked.players import Players
from layercoop_fast.masked.scoring import token_nll
from layercoop_fast.masked.windows import Windows
from layercoop_fast.masks.types import Floats

T = TypeVar("T")

PROBE_TOKENS = 48


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference of a written model from the masked pass.

    Attributes:
        logits: difference of two logits as a share of the largest logit; 0 means bit for bit.
        nll: difference of the mean NLL of the game's text, in nats; the game's fast blocks round differently.
    """

    logits: float
    nll: float


# The effect of rounding where the order of sums may differ, by dtype of the residual stream.
ROUNDING = {
    torch.float64: Tolerance(2e-5, 1e-3),
    torch.float32: Tolerance(2e-5, 1e-3),
    torch.float16: Tolerance(4e-3, 2e-2),
    torch.bfloat16: Tolerance(3e-2, 5e-2),
}


class NoRoom(RunError):
    """The written model does not fit into the free memory, so that it cannot be compared."""


def tolerance(model: PreTrainedModel, *, rounded: bool = False) -> Tolerance:
    """The tolerance for the checkpoint of a mask of `model` (docs/models.md has the table).

    On the CPU it is bit for bit, in any dtype and quantisation, since the same kernels read the same weights in the
    same shapes. Exceptions have the tolerance of rounding in the dtype: experts, the order of whose sums depends on the
    layout of memory; weights that were `rounded` when a factor was folded into them (GPT-2's inverse layer scale); and
    a model whose rotary frequencies were converted with its weights (`model.bfloat16()`), which `from_pretrained`
    computes in fp32. On a GPU the tolerance is that of rounding too, since its libraries choose kernels by free memory
    and alignment.
    """
    within = ROUNDING.get(model.dtype, ROUNDING[torch.bfloat16])
    if is_quantised(model):  # rounding and detection of outliers may differ between batches and single windows
        within = replace(within, nll=ROUNDING[torch.bfloat16].nll)
    exact = model.device.type == "cpu" and not (rounded or has_experts(model) or _buffers_converted(model))
    return replace(within, logits=0.0) if exact else within


def has_experts(model: nn.Module) -> bool:
    """Whether a model has experts, to which tokens are routed."""
    names = {type(module).__name__.lower() for module in model.modules()}
    return any(word in name for name in names for word in ("expert", "router", "moe"))


def _buffers_converted(model: nn.Module) -> bool:
    """Whether rotary frequencies, which are not in checkpoints, have a narrower dtype than `from_pretrained` gives."""
    return any(
        buffer.dtype in (torch.float16, torch.bfloat16)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if "inv_freq" in name and name in module._non_persistent_buffers_set
    )


def probe_ids(skeleton: Skeleton) -> Tensor:
    """A few dozen token ids to compare logits on, where there is no text: int64 [1, T]."""
    count = min(PROBE_TOKENS, skeleton.max_tokens or PROBE_TOKENS)
    return torch.arange(count, device=skeleton.device)[None] % skeleton.vocab_size


class Written:
    """A written model, opened again, with its blocks in memory or streamed from its files.

    Attributes:
        model: as opened.
    """

    def __init__(self, model: PreTrainedModel, streamed: StreamedBlocks | None = None) -> None:
        self.model = model
        self._skeleton = None if streamed is None else Skeleton(model, streamed=streamed)

    @classmethod
    def open(
        cls, folder: Path, *, device: str = "cpu", trust_remote_code: bool = False, offload: bool = False
    ) -> Written:
        """Open a checkpoint folder that is complete for `from_pretrained`.

        `device` and `trust_remote_code` are those of the original; with `offload` blocks are read from the files when
        they are used. Raises `NoRoom` where it does not fit into memory, `RunError` where it cannot be opened.
        """
        if not offload:
            _check_room(folder, device)
        try:
            opened = open_checkpoint(str(folder), device=device, trust_remote_code=trust_remote_code, offload=offload)
        except (RequestError, MemoryError, RuntimeError) as error:
            if _is_short_of_memory(error):
                raise NoRoom(f"not enough memory to open it again ({reason(error)})") from error
            raise RunError(f"the written checkpoint cannot be opened: {error}; nothing was written") from error
        return cls(opened.model, opened.streamed)

    @property
    def streamed(self) -> bool:
        """Whether its blocks are read from the files when they are used."""
        return self._skeleton is not None

    def logits(self, ids: Tensor) -> Tensor:
        """Its logits [B, T, V] on the CPU for tokens int64 [B, T].

        Raises `RunError` where its forward pass fails, `NoRoom` where it does so for lack of memory.
        """
        return self._each([ids], lambda logits, _: logits)[0]

    def window_nll(self, windows: Windows) -> Floats:
        """Mean NLL of each window of plain text by the model's own forward pass, float64 [W], window by window."""
        scored = windows.scored.cpu()

        def scored_nll(logits: Tensor, ids: Tensor) -> Tensor:
            return token_nll(logits, ids)[:, scored].double()

        found = self._each([ids[None] for ids in windows.ids.cpu()], scored_nll)
        return np.array([float(windows.means(losses, window)[0]) for window, losses in enumerate(found)])

    def _each(self, batches: Sequence[Tensor], take: Callable[[Tensor, Tensor], T]) -> list[T]:
        """The results of `take(logits, ids)` for each batch: logits [B, T, V], ids int64 [B, T]."""
        try:
            with torch.inference_mode():
                if self._skeleton is not None:
                    return [take(logits.cpu(), ids) for logits, ids in _streamed(self._skeleton, batches)]
                return [
                    take(self.model(input_ids=ids.to(self.model.device), use_cache=False).logits.cpu(), ids)
                    for ids in batches
                ]
        except Exception as error:  # a model that does not run may raise any exception
            if _is_short_of_memory(error):
                raise NoRoom(f"not enough memory to run it again ({reason(error)})") from error
            raise RunError(
                f"the written checkpoint does not run: {type(error).__name__}: {reason(error)}; nothing was written"
            ) from error


def _is_short_of_memory(error: BaseException) -> bool:
    """Whether an error or its cause says that memory ran out."""
    return any(
        isinstance(one, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(one)
        for one in (error, error.__cause__)
    )


def _streamed(skeleton: Skeleton, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits [B, T, V] of each batch, and the batch; every block is read from the files once for all batches."""
    contexts = [skeleton.context(ids.to(skeleton.device)) for ids in batches]
    states = [context.embedding for context in contexts]
    skeleton.expect(range(skeleton.n_layers))
    for layer in range(skeleton.n_layers):
        states = [context.run(layer, hidden) for context, hidden in zip(contexts, states, strict=True)]
    for context, hidden, ids in zip(contexts, states, batches, strict=True):
        yield context.logits(hidden), ids


@dataclass(frozen=True, eq=False)
class Reference:
    """The output that a written model must have.

    Attributes:
        ids: tokens, int64 [1, T].
        logits: of the masked pass, [1, T, V] on the CPU.
        tolerance: largest allowed difference.
    """

    ids: Tensor
    logits: Tensor
    tolerance: Tolerance

    def check(self, written: Written) -> dict[str, Any]:
        """Compare the logits; return the entry `verified` of `layercoop.json`.

        Raises `RunError` with the figures where they differ by more than the tolerance.
        """
        got, wanted = written.logits(self.ids), self.logits
        if got.shape != wanted.shape:
            raise RunError(
                f"the written checkpoint is not the masked model: its logits are {list(got.shape)}, those of the "
                f"masked pass {list(wanted.shape)}; nothing was written"
            )
        difference, largest = _difference(got, wanted)
        limit = self.tolerance.logits * largest
        if not difference <= limit:
            bound = "bit for bit" if limit == 0 else f"to {limit:.3g}"
            raise RunError(
                f"the written checkpoint is not the masked model: on {self.ids.numel()} tokens logits differ by up to "
                f"{difference:.3g}, where the largest is {largest:.3g} and they must agree {bound}; nothing was written"
            )
        return {
            "done": True,
            "compared": "logits, block by block" if written.streamed else "logits",
            "tokens": self.ids.numel(),
            "largest_difference": difference,
            "largest_logit": largest,
            "tolerance": self.tolerance.logits,
            "perplexity": "masked pass",
            "reason": None,
        }

    def check_nll(self, own: float, masked: float) -> None:
        """Raise `RunError` where the folder's mean NLL `own` differs from that of the masked pass, in nats.

        Above 1 nat the tolerance is relative, since rounding changes a large NLL by more.
        """
        within = self.tolerance.nll * max(1.0, masked)
        if math.isfinite(masked) and not abs(own - masked) <= within:
            raise RunError(
                f"the written checkpoint is not the masked model: its NLL of the calibration text is {own:.6g}, that "
                f"of the masked pass {masked:.6g}, and they must agree to {within:.3g}; nothing was written"
            )


def not_verified(why: str) -> dict[str, Any]:
    """The entry `verified` of `layercoop.json` for a checkpoint that was not compared."""
    return {
        "done": False,
        "compared": None,
        "tokens": 0,
        "largest_difference": None,
        "largest_logit": None,
        "tolerance": None,
        "perplexity": "masked pass",
        "reason": why,
    }


@torch.inference_mode()
def masked_reference(
    players: Players,
    units: Iterable[int],
    ids: Tensor,
    *,
    rounded: bool = False,
    inside: Callable[[int], AbstractContextManager[None]] | None = None,
) -> Reference:
    """The masked pass over these units, ascending, on tokens int64 [1, T].

    `inside(unit)`, where given, is a context manager that each unit runs in, for instance with other weights.
    """
    context = players.skeleton.context(ids)
    hidden = context.embedding
    units = list(units)
    players.skeleton.expect(dict.fromkeys(players.layer(unit) for unit in units))
    for unit in units:
        with nullcontext() if inside is None else inside(unit):
            hidden = players.run(context, unit, hidden)
    logits = context.logits(hidden).to("cpu", copy=True)
    return Reference(ids.cpu(), logits, tolerance(players.skeleton.model, rounded=rounded))


def _difference(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The largest difference of two logits and the largest finite logit; equal infinities and NaNs do not differ."""
    difference = largest = 0.0
    for one, other in zip(got[0], wanted[0], strict=True):  # position by position, to save memory
        one, other = one.double(), other.double()
        same = (one == other) | (one.isnan() & other.isnan())
        between = torch.where(same, torch.zeros_like(one), (one - other).abs())
        between = between.nan_to_num(nan=float("inf"))
        difference = max(difference, float(between.max()))
        largest = max(largest, float(torch.where(other.isfinite(), other.abs(), 0.0).max()))
    return difference, largest


def _check_room(folder: Path, device: str) -> None:
    """Raise `NoRoom` where the weights of a folder are larger than the free memory."""
    target = check_device("cuda" if device == "auto" else device)
    size, free = sum(file.stat().st_size for file in folder.glob("*.safetensors")), free_memory(target)
    if device != "auto" and size > free:
        raise NoRoom(f"not enough memory to open it again: it takes {size:,} bytes, and {free:,} are free")

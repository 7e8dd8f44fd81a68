"""A model that runs under any layer mask: one copy of the weights, and keys and values only for kept blocks.

model = LayerSkipModel.from_pretrained("my-model", dtype="fp32")
answer = model.generate("Once upon a time", mask=mask, max_new_tokens=64)
for step in model.stream(ids, mask=mask):
    print(step.text, end="")
answers = model.generate([ids] * 8, mask=eight_masks)       # one call per token for all of them
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.masks.halves import Halves, MaskLike, read_mask
from layercoop_fast.runtime.batching import PREFILL_TOKENS, Batcher
from layercoop_fast.runtime.damage import check_mask
from layercoop_fast.runtime.opening import Opened, open_runtime
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.requests import Generation, Request, Running, Step, read_stops
from layercoop_fast.runtime.sizes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.runtime.draft import Draft
    from layercoop_fast.runtime.executor import Executor

Prompt: TypeAlias = str | Sequence[int] | Tensor
"""A text (for models with a tokenizer), or tokens: numbers, or an int tensor [T] or [1, T]."""


class LayerSkipModel:
    """A model that generates under layer masks; made by `from_pretrained`.

    Any number of threads may call it. Their requests are computed together, with the same answers as one by one.

    Attributes:
        executor: computes; `executor.name` says how.
        tokenizer: None where the checkpoint has none.
        eos: tokens that end a text.
        held: uint8 [L], the halves of blocks whose weights are in memory (`masks/halves.py`).
        why_general: why transformers' own blocks run, where a faster executor was requested or looked for; else None.
        batcher: the current requests, with the keys and values kept for later ones.

    Examples:
        >>> from layercoop_fast import LayerSkipModel
        >>> model = LayerSkipModel.from_pretrained("my-model")
        >>> answer = model.generate([5, 6, 7], mask=[True, True, False, True], max_new_tokens=4, ignore_eos=True)
        >>> len(answer.tokens)
        4
    """

    def __init__(self, opened: Opened, *, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.executor: Executor = opened.executor
        self.tokenizer: PreTrainedTokenizerBase | None = opened.tokenizer
        self.eos = opened.eos
        self.held = opened.held
        self.why_general = opened.why_general
        self._damage = opened.damage
        self._sizes = opened.sizes
        if self.tokenizer is not None:
            self.tokenizer("")  # its first call drops a truncation that its file may ask for: do it in one thread
        self.batcher = Batcher(self.executor, self.eos, self.tokenizer, prefill_tokens=prefill_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str = "auto",
        mask: MaskLike | str | Path | None = None,
        *,
        kv_memory: int | None = None,
        kv_dtype: str = "auto",
        executor: str = "auto",
        device: str = "cpu",
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> LayerSkipModel:
        """Open a checkpoint: an original, or one that `prune` wrote.

        Args:
            path: the folder.
            dtype: of the weights: "fp32", "bf16", "int8", "int4" (the last two for llama-shaped models); "auto" keeps
                the checkpoint's own.
            mask: the blocks to keep in memory: bool [L], bool [2L] for attention and MLP of each block, or a folder
                that `prune` wrote (its `layercoop.json` says what to remove). Later masks can only remove more. None
                keeps all.
            kv_memory: bytes for keys and values; by default a quarter of the free memory, at most 4 GiB.
            kv_dtype: dtype of keys and values in the native executor: "fp32", "bf16", "fp16", "int8" (a scale for each
                token and head), or "auto": that of the weights, and fp16 for quantised weights.
            executor: "native" (C++ on the CPU, llama-shaped models), "transformers" (its blocks, any family), or
                "auto", which is native where possible and warns once where it is not.
            device: "cpu", "cuda", "cuda:N". Llama-shaped models run on GPUs with this package's kernels (the extra
                `triton`), which int8 and int4 require.
            prefill_tokens: prompt tokens that are computed between two tokens of the answers of other requests.

        Raises `RequestError`.
        """
        opened = open_runtime(
            path,
            dtype=dtype,
            mask=mask,
            kv_memory=kv_memory,
            kv_dtype=kv_dtype,
            executor=executor,
            device=device,
        )
        return cls(opened, prefill_tokens=prefill_tokens)

    @property
    def n_layers(self) -> int:
        """Number of blocks L of the checkpoint."""
        return self.executor.n_layers

    def mask(self, mask: MaskLike | None = None) -> Halves:
        """A checked mask in the executors' form, uint8 [L]; raises `RequestError` for one that cannot run here."""
        halves = read_mask(mask, self.n_layers, self.held)
        check_mask(halves, self._damage)
        return halves

    def generate(
        self,
        ids: Prompt | Sequence[Prompt],
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | Sequence[Sampling] | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        draft: Draft | MaskLike | None = None,
    ) -> Generation | list[Generation]:
        """Continue a prompt, or several at once.

        Args:
            ids: a prompt (see `Prompt`: text, or T tokens as int [T] or [1, T]), or a list of prompts.
            mask: bool [L] or [2L], or for a list of prompts a list of masks; None runs all blocks in memory. A list of
                masks with one prompt runs the prompt under each of them.
            max_new_tokens: most tokens of an answer.
            sampling: how tokens are chosen, greedily by default; for a list of prompts also a list.
            stop: strings that end an answer.
            ignore_eos: continue after a token that ends texts.
            draft: generate faster, with the same result: the mask of drafts, as `runtime/draft.py` finds it or as a
                mask.

        Returns one `Generation`, or for a list of prompts or masks a list of them. Raises `RequestError` for an invalid
        request; then none of the requests is computed.
        """
        prompts, masks, many = self._pairs(ids, mask)
        if sampling is None or isinstance(sampling, Sampling):
            ways = [sampling or Sampling()] * len(prompts)
        else:
            ways = list(sampling)
        if len(ways) != len(prompts):
            raise RequestError(f"{len(ways)} samplings for {len(prompts)} requests: give one, or one for each")
        stops = read_stops(stop, self.tokenizer)
        call = object()
        requests = [
            Request(prompt, halves, max_new_tokens, way, stops, ignore_eos, index, self._draft(draft, halves), call)
            for index, (prompt, halves, way) in enumerate(zip(prompts, masks, ways, strict=True))
        ]
        runnings = [self.batcher.prepare(request) for request in requests]
        try:
            self.batcher.start(runnings)
            self.batcher.wait(runnings)
        except BaseException:
            self.batcher.cancel(*runnings)
            raise
        answers = [running.result() for running in runnings]
        return answers if many else answers[0]

    def stream(
        self,
        ids: Prompt,
        mask: MaskLike | None = None,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        draft: Draft | MaskLike | None = None,
    ) -> Generator[Step, None, None]:
        """Continue a prompt (T tokens as int [T], or text) and yield each token; arguments and errors as of `generate`.

        The request is checked when this is called, and begins when the iterator is first advanced. Closing or dropping
        the iterator ends the request.
        """
        halves = self.mask(mask)
        request = Request(
            self.tokens(ids),
            halves,
            max_new_tokens,
            sampling or Sampling(),
            read_stops(stop, self.tokenizer),
            ignore_eos,
            draft=self._draft(draft, halves),
        )
        return self._steps(self.batcher.prepare(request))

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The token numbers of a prompt: text, or T tokens as int [T] or [1, T].

        Raises `RequestError` for text without a tokenizer, and for anything that is not a prompt.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("this checkpoint has no tokenizer: give the prompt as tokens")
            return tuple(self.tokenizer(prompt)["input_ids"])
        if isinstance(prompt, (Tensor, np.ndarray)):
            if prompt.ndim == 2 and len(prompt) == 1:
                prompt = prompt[0]
            if prompt.ndim != 1:
                raise RequestError(f"a prompt is a row of tokens [T], not {list(prompt.shape)}")
            prompt = prompt.tolist()
        whole = isinstance(prompt, Sequence) and all(isinstance(token, (int, np.integer)) for token in prompt)
        if not whole or any(isinstance(token, bool) for token in prompt):
            raise RequestError("a prompt is a text or a row of integers")
        return tuple(map(int, prompt))

    def size(self, mask: Halves) -> Size:
        """What a mask (uint8 [L]) keeps: parameters, and bytes of weights as they are held.

        Raises `RunError` for a model that `from_pretrained` did not open.
        """
        if self._sizes is None:
            raise RunError("the parameters of this model were not counted: open it with from_pretrained")
        return self._sizes.under(mask, self.held, self.executor.weight_bytes, self.executor.half_bytes)

    def memory(self) -> dict[str, int]:
        """Bytes: `weights`, keys and values in use (`kv`) and at most (`kv_budget`), the whole process (`resident`)."""
        pool = self.executor.pool
        return {
            "weights": self.executor.weight_bytes,
            "kv": pool.used_bytes,
            "kv_budget": pool.budget,
            "resident": _resident_bytes(),
        }

    def drafting(self) -> dict[str, float | int | None]:
        """Counts of drafts so far: `rounds`, tokens `drafted` and `accepted`, the `acceptance` of those judged."""
        counts = self.batcher.drafting()
        judged = counts.pop("judged")
        return {**counts, "acceptance": counts["accepted"] / judged if judged else None}

    def forget(self) -> None:
        """Free the keys and values that are kept for later requests."""
        self.batcher.forget()

    def _draft(self, draft: Draft | MaskLike | None, mask: Halves) -> Halves | None:
        """The draft's mask within that of a request, uint8 [L]; None where it keeps all of its blocks, or none."""
        if draft is None:
            return None
        if not self.executor.rewindable:
            raise RequestError("this model carries a recurrent state, which cannot be wound back: it has no drafts")
        from layercoop_fast.runtime.draft import Draft

        return self.draft_within(self.mask(draft.mask if isinstance(draft, Draft) else draft), mask)

    def draft_within(self, draft: Halves, mask: Halves) -> Halves | None:
        """A draft's mask within that of a request, uint8 [L] each; None where it keeps all of its blocks, or none."""
        halves: Halves = draft & mask
        return halves if halves.any() and (halves != mask).any() else None

    def _pairs(
        self, ids: Prompt | Sequence[Prompt], mask: MaskLike | Sequence[MaskLike | None] | None
    ) -> tuple[list[tuple[int, ...]], list[Halves], bool]:
        """Prompts with their masks, and whether a list of either was given."""
        single = isinstance(ids, (str, Tensor, np.ndarray)) or all(isinstance(each, (int, np.integer)) for each in ids)
        prompts = [self.tokens(ids)] if single else [self.tokens(each) for each in ids]  # type: ignore[arg-type]
        several = isinstance(mask, (list, tuple)) and not all(isinstance(each, (bool, int, np.bool_)) for each in mask)
        masks = [self.mask(each) for each in mask] if several else [self.mask(mask)]  # type: ignore
        many = not single or several
        if single:
            prompts *= len(masks)
        elif not several:
            masks *= len(prompts)
        if len(masks) != len(prompts):
            raise RequestError(f"{len(masks)} masks for {len(prompts)} prompts: give one, or one for each")
        return prompts, masks, many

    def _steps(self, running: Running) -> Generator[Step, None, None]:
        at = 0
        try:
            self.batcher.start([running])
            while not running.ended or at < len(running.steps):  # in this order: see `Running`
                if at == len(running.steps):
                    self.batcher.wait([running], at)
                yield running.steps[at]
                at += 1
            if running.error is not None:
                raise running.error
        finally:
            if not running.ended:
                self.batcher.cancel(running)


def _resident_bytes() -> int:
    """Bytes of the process in memory now; where the system does not say, the most it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

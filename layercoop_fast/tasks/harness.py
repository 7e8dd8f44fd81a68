"""A model of the LM Evaluation Harness that answers requests under many masks in one run.

This module imports the harness (the extra `score`): it is imported where a score is asked for, and nowhere before.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoTokenizer

from layercoop_fast.engine.loading import Checkpoint, open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.masks.halves import MaskLike, read_mask
from layercoop_fast.masks.text import mask_of
from layercoop_fast.masks.types import Progress
from layercoop_fast.tasks.answers import Answers
from layercoop_fast.tasks.likelihoods import Likelihoods, Work
from layercoop_fast.tasks.options import EngineOptions
from layercoop_fast.tasks.requests import encode, longest_text, prompt_of, scored
from layercoop_fast.texts.token_tree import Scored

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class MaskedLM(TemplateLM):  # type: ignore[misc] # the harness has no types
    """A model of the harness that answers every request under several masks at once.

    Requests of a kind are computed for all masks when the harness first asks; `turn` says whose answers it gets.

    Args:
        path: the checkpoint's folder.
        masks: what goes, by name, as `masks.text.mask_of` reads it.
        options: how the model runs.
        max_length: tokens that the model takes; None: as its config says.
        add_bos_token: put the begin-of-text token before texts, or never; None: as the tokenizer does.
        prefix_token_id: the token that texts without a context begin with; None: begin of text, else end of text.
        progress: told of requests that are done.

    Attributes:
        masks: uint8 [L] each, by name.
        turn: number of the mask whose answers are returned.
        work: done for likelihoods so far.

    Raises `RequestError` for masks and checkpoints that do not go together, or hold no tokenizer.
    """

    def __init__(
        self,
        path: str,
        masks: Mapping[str, str | MaskLike],
        options: EngineOptions,
        *,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.options = options
        self.progress = progress
        self.turn = 0
        self.work = Work()
        self._bos = add_bos_token
        checkpoint = self._open()
        if checkpoint.tokenizer is None:
            raise RequestError(f"{path} holds no tokenizer, and tasks are text: add it to the folder")
        self.tokenizer = checkpoint.tokenizer
        if add_bos_token is not None:  # tokenizers learn it when they are opened
            self.tokenizer = AutoTokenizer.from_pretrained(
                path, add_bos_token=add_bos_token, trust_remote_code=options.trust_remote_code
            )
        skeleton = Skeleton(checkpoint.model)
        n_layers = skeleton.n_layers
        self.masks = {
            name: mask_of(mask, n_layers, f"mask {name}".strip())
            if isinstance(mask, str)
            else read_mask(mask, n_layers)
            for name, mask in masks.items()
        }
        self.max_length = max_length or longest_text(checkpoint.model.config, self.tokenizer)
        starts = (prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        prefix = next((token for token in starts if token is not None), None)
        if prefix is None:
            raise RequestError(f"{path} has neither a begin-of-text nor an end-of-text token: give prefix_token_id=")
        self._prefix = int(prefix)
        self._likelihoods: Likelihoods | None = self._measuring(skeleton)
        self._answers: Answers | None = None
        self._known: dict[str, list[list[Any]]] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts; that which begins them where there is none."""
        end = self.tokenizer.eos_token_id
        return self._prefix if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token that texts without a context begin with."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text."""
        return encode(string, self.tokenizer, self._prefix, special=add_special_tokens, bos=self._bos)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the tokenizer's template; without its system turn where it takes none.

        Raises `RequestError` without a template, and for a conversation that the template rejects.
        """
        from jinja2.exceptions import TemplateError

        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError("the model's tokenizer has no chat template: score texts as they are, without chat=")

        def applied(turns: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        # A ValueError: the tokenizer has several templates with names, and none that is meant without one.
        wrong = (TemplateError, ValueError)
        try:
            return applied(chat_history)
        except wrong:
            others = [turn for turn in chat_history if turn["role"] != "system"]
        try:
            return applied(others)
        except wrong as error:
            raise RequestError(f"the chat template rejects a task's conversation: {reason(error)}") from error

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is what the model writes itself."""
        if "loglikelihood" not in self._known:
            super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return self._told("loglikelihood", requests)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        wanted = [scored(context, continuation, self.max_length) for _, context, continuation in requests]
        self._known["loglikelihood"] = self._measured(wanted)
        return []

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each document, in windows as long as the model takes."""
        if "loglikelihood_rolling" not in self._known:
            documents = [[scored(*pair, self.max_length) for pair in self._windows(one.args[0])] for one in requests]
            measured = self._measured([window for windows in documents for window in windows])
            self._known["loglikelihood_rolling"] = [_sums(row, list(map(len, documents))) for row in measured]
        return self._told("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The answers to prompts, up to the texts that end them."""
        if "generate_until" not in self._known:
            prompts = [
                prompt_of(text, arguments, self.tokenizer, self.max_length, bos=self._bos)
                for text, arguments in (one.args for one in requests)
            ]
            self._known["generate_until"] = self._opened_answers().write(prompts, self.progress)
        return self._told("generate_until", requests)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self._prefix, max_seq_len=self.max_length, context_len=1
        )
        return [make_disjoint_window(window) for window in windows]

    def _measured(self, wanted: Sequence[Scored]) -> list[list[tuple[float, bool]]]:
        found = self._opened_likelihoods().measure(wanted, self.progress)
        return [
            list(zip(logprobs, greedy, strict=True))
            for logprobs, greedy in zip(found.logprobs.tolist(), found.greedy.tolist(), strict=True)
        ]

    def _told(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        """The answers of the mask whose turn it is; the harness may keep them as they come."""
        found = self._known[kind][self.turn]
        if len(self.masks) == 1:
            del self._known[kind]  # the next call may be about other requests
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found

    def _open(self) -> Checkpoint:
        how = self.options
        return open_checkpoint(self.path, dtype=how.dtype, device=how.device, trust_remote_code=how.trust_remote_code)

    def _measuring(self, skeleton: Skeleton) -> Likelihoods:
        how = self.options
        masks = list(self.masks.values())
        found = Likelihoods(skeleton, masks, memory=how.memory, block_path=how.block_path)
        found.work = self.work
        return found

    def _opened_likelihoods(self) -> Likelihoods:
        """Measures likelihoods; one copy of the weights is in memory at a time."""
        if self._likelihoods is None:
            self._answers = None
            gc.collect()  # parts of a model refer to each other
            self._likelihoods = self._measuring(Skeleton(self._open().model))
        return self._likelihoods

    def _opened_answers(self) -> Answers:
        """Generates; one copy of the weights is in memory at a time."""
        if self._answers is None:
            self._likelihoods = None
            gc.collect()
            self._answers = Answers(
                self.path, list(self.masks.values()), dtype=self.options.dtype, device=self.options.device
            )
        return self._answers


def _sums(windows: Sequence[tuple[float, bool]], counts: Sequence[int]) -> list[float]:
    """Log-probabilities of documents from those of their windows, in order, so many each."""
    found, first = [], 0
    for count in counts:
        found.append(sum(logprob for logprob, _ in windows[first : first + count]))
        first += count
    return found

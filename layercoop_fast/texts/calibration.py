"""Calibration text: from a SPEC to equal token windows.

A SPEC names a text:

    novels.txt, items.jsonl            a UTF-8 text file; a JSON-lines file with a "text" field in each line
    hf:NAME[/CONFIG][/SPLIT]           a data set through `datasets` (extra `[datasets]`), its "text" column
    builtin, builtin-heldout           text the standard library ships (two halves that share no topic)
    builtin-docstrings, builtin-code   docstrings of its modules, and source code of others
    ppl:wikitext2, ppl:c4, ppl:ptb     what papers state perplexities on, in their windows (`texts/protocols.py`)
    self                               text the model writes itself, sampled from its begin-of-text token
    self:PROMPTS.jsonl                 the model's own answers to prompts; they alone are scored (`texts/own_text.py`)

Windows are cut without overlap and spread evenly over the whole text, so that no seed decides what is measured. Where a
tokenizer puts a begin-of-text token before a text, every window begins with one, as the model is used to. Several texts
with weights are put together in `texts/mixture.py`; `texts/chat.py` puts windows through a chat template.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.bounds import MAX_TOKENS
from layercoop_fast.inputs.options import TOKENS, WINDOWS
from layercoop_fast.inputs.text import read_text as read_utf8
from layercoop_fast.masks.types import Progress
from layercoop_fast.texts.chat import chat_windows, stretch_of
from layercoop_fast.texts.domains import Domains, Ints
from layercoop_fast.texts.own_text import SELF, check_prompts, is_own, sample_answers, sample_from_model
from layercoop_fast.texts.pictures import Pictures
from layercoop_fast.texts.protocols import WINDOW, is_protocol, protocol_text, protocol_windows
from layercoop_fast.texts.rows import dataset_rows, json_rows
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.engine.skeleton import Skeleton

_MODULE_CHARACTERS = 6000  # of a module of the standard library: no one of them fills a text
_ITEMS_HINT = " (items with options go with the utilities accuracy, accuracy_norm, margin and margin_norm)"


@dataclass(frozen=True)
class Calibration:
    """Equal windows of tokens.

    Attributes:
        ids: int64 [W, T].
        spec: the SPEC they came from, or several with " + " between them.
        domains: which text each window is of, where there are several.
        chat: whether they went through the model's chat template.
        pictures: what a vision-language model sees before each window's text (`image_text`).
        spans: int64 [W, 2], of each window the first token that is scored and the one behind the last, where only
            answers are scored; None: all tokens that have one before them.

    Examples:
        >>> import torch
        >>> from layercoop_fast import Calibration
        >>> calibration = Calibration(torch.arange(32).view(2, 16), "two windows of my own")
        >>> calibration.ids.shape
        torch.Size([2, 16])
    """

    kind: ClassVar[str] = "text"
    has_windows: ClassVar[bool] = True
    shots: ClassVar[int] = 0
    share: ClassVar[bool] = True
    packs: ClassVar[None] = None
    numerics: ClassVar[dict[str, str]] = {}

    ids: Tensor
    spec: str
    domains: Domains | None = None
    chat: bool = False
    pictures: Pictures | None = None
    spans: Tensor | None = None

    @property
    def fingerprint(self) -> str | dict[str, Any]:
        """SHA-256 over the tokens and their shape: equal for equal windows, wherever they came from.

        For several texts, a mapping that also says which window is of which text, and the weights.
        """
        ids = self.ids.cpu().numpy().astype("<i8")
        hashed = hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes())
        if self.pictures is not None:
            for name, value in sorted(self.pictures.inputs.items()):
                hashed.update(f"{name} {tuple(value.shape)} {self.pictures.first}".encode())
                hashed.update(value.detach().double().cpu().numpy().tobytes())
        if self.spans is not None:
            hashed.update(b"spans" + self.spans.cpu().numpy().astype("<i8").tobytes())
        digest = hashed.hexdigest()
        return digest if self.domains is None else {"text": digest, **self.domains.as_json()}

    @property
    def description(self) -> dict[str, Any]:
        """For `layercoop.json`."""
        found: dict[str, Any] = {
            "spec": self.spec,
            "windows": int(self.ids.shape[0]),
            "tokens": int(self.ids.shape[1]),
        }
        if self.pictures is not None:
            found["pictures"] = {name: list(value.shape) for name, value in self.pictures.inputs.items()}
        if self.chat:
            found["chat"] = True
        if self.domains is not None:
            counts = np.bincount(self.domains.of_window, minlength=len(self.domains.weights)).tolist()
            rows = zip(self.domains.names, self.domains.weights.tolist(), counts, strict=True)
            found["domains"] = [{"spec": spec, "weight": weight, "windows": count} for spec, weight, count in rows]
        return found

    @property
    def windows_of(self) -> dict[str, int]:
        """How many windows are of each text, by SPEC."""
        if self.domains is None:
            return {self.spec: len(self.ids)}
        counts = np.bincount(self.domains.of_window, minlength=len(self.domains.names)).tolist()
        return dict(zip(self.domains.names, counts, strict=True))

    def scored(self, n_positions: int) -> Ints:
        """Scored tokens of each window, int64 [W]: `n_positions` each, or those of its answer."""
        if self.spans is not None:
            return np.asarray((self.spans[:, 1] - self.spans[:, 0]).cpu().numpy(), np.int64)
        return np.full(len(self.ids), n_positions, dtype=np.int64)

    def part(self, first: int, last: int) -> Calibration:
        """Windows `first` to `last` − 1 alone. Raises `RequestError` for windows that do not exist."""
        n_windows = len(self.ids)
        if not 0 <= first < last <= n_windows:
            raise RequestError(f"there are no windows {first} to {last - 1}: this text has {n_windows}")
        domains = None if self.domains is None else self.domains.part(first, last)
        pictures = self.pictures
        if pictures is not None:
            pictures = replace(pictures, inputs=pictures.part(first, last, n_windows))
        spans = None if self.spans is None else self.spans[first:last]
        return replace(self, ids=self.ids[first:last], domains=domains, pictures=pictures, spans=spans)

    def message(self) -> dict[str, Any]:
        """The texts of the windows and what is scored in them; the windows themselves are sent as an array."""
        return {
            "domains": None if self.domains is None else self.domains.as_json(),
            "items": None,
            "spans": None if self.spans is None else self.spans.tolist(),
        }

    def stretches(self, spec: str, body: int) -> tuple[int, int]:
        """One for each window of that text, of `body` tokens, or of those that a conversation is made of."""
        return self.windows_of.get(spec, 0), stretch_of(int(self.ids.shape[1])) if self.chat else body


def image_text(
    ids: Tensor, inputs: Mapping[str, Tensor], prefix: int, skeleton: Skeleton, spec: str = "pictures"
) -> Calibration:
    """Windows that begin with a picture: image-text calibration of a vision-language model.

    Args:
        ids: int64 [W, T], each row the tokens of the picture (and what comes before it), then text.
        inputs: what the model's forward takes besides them, as its processor makes it for the W pictures in order: the
            same number of rows for each.
        prefix: tokens of a window up to the end of the picture; only the text behind them is scored.
        skeleton: of the model.
        spec: a name for records.

    Raises `RequestError` where rows and windows do not match or no text is left.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> from layercoop_fast import Skeleton, image_text
        >>> skeleton = Skeleton(AutoModelForCausalLM.from_pretrained("my-model"))  # in use a vision-language model
        >>> ids = torch.arange(32).view(2, 16)  # in each window 5 tokens of the picture, then 11 of text
        >>> calibration = image_text(ids, {"pixel_values": torch.zeros(2, 3, 8, 8)}, prefix=5, skeleton=skeleton)
        >>> calibration.ids.shape
        torch.Size([2, 16])
    """
    n_windows, tokens = ids.shape
    for name, value in inputs.items():
        if value.shape[0] % n_windows:
            raise RequestError(f"{name} has {value.shape[0]} rows for {n_windows} windows: as many for each are needed")
    if not 1 <= prefix < tokens:
        raise RequestError(f"the pictures take {prefix} of {tokens} tokens of a window: from 1 to {tokens - 1} can")
    moved = {name: value.to(skeleton.device) for name, value in inputs.items()}
    return Calibration(ids.to(skeleton.device), spec, pictures=Pictures(moved, prefix - 1))


def load_calibration(
    spec: str,
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    *,
    windows: int = WINDOWS,
    tokens: int = TOKENS,
    seed: int = 0,
    chat: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Make `windows` windows of `tokens` tokens from a SPEC; `self` tells its progress in tokens a window.

    With `chat` each is a conversation in the model's chat template (`texts/chat.py`). A perplexity protocol has windows
    of its own, whatever `windows` and `tokens` say.

    Raises `RequestError` in one line: what is wrong with the SPEC, the file or the text, and what would be right.
    """
    if is_protocol(spec):
        if chat:
            raise RequestError(f"{spec} is measured as it is: leave chat=True out")
        tokens, windows = WINDOW, 1
    if windows < 1 or tokens < 2:
        raise RequestError(
            f"{windows} windows of {tokens} tokens: at least 1 window of 2 tokens is needed to score one"
        )
    if windows * tokens > MAX_TOKENS:
        raise RequestError(f"{windows} windows of {tokens} tokens are more than {MAX_TOKENS:,} tokens: ask for fewer")
    if skeleton.max_tokens is not None and tokens > skeleton.max_tokens:
        raise RequestError(f"windows of {tokens} tokens are too long: the model has {skeleton.max_tokens} positions")
    spans = None
    if is_own(spec):
        if chat and spec == SELF:
            raise RequestError("chat=True puts a text into turns, and 'self' is none: give a text, or leave it out")
        if skeleton.streamed is not None:
            raise RequestError(
                f"{spec!r} would read all weights once a token with offload=True: give a text, or 'builtin'"
            )
        if spec == SELF:
            ids = sample_from_model(skeleton, tokenizer, windows, tokens, seed, progress)
        else:
            ids, spans = sample_answers(
                spec, skeleton, require_tokenizer(tokenizer), windows, tokens, seed, chat=chat, progress=progress
            )
    elif is_protocol(spec):
        ids = protocol_windows(spec, require_tokenizer(tokenizer))
    else:
        ids = cut_windows(read_text(spec), require_tokenizer(tokenizer), windows, tokens, spec, chat=chat)
    if int(ids.max()) >= skeleton.vocab_size:
        raise RequestError(
            f"the tokenizer gives token {int(ids.max())}, the model's vocabulary has {skeleton.vocab_size}: "
            "they do not belong together"
        )
    return Calibration(
        ids.to(skeleton.device), spec, chat=chat, spans=None if spans is None else spans.to(skeleton.device)
    )


def read_text(spec: str) -> str:
    """The text that a SPEC names (any that the model does not write itself)."""
    if spec in ("builtin", "builtin-heldout"):
        return _standard_library_text(heldout=spec == "builtin-heldout")
    if spec in ("builtin-docstrings", "builtin-code"):
        return _standard_library_modules(docstrings=spec == "builtin-docstrings")
    if spec.startswith("hf:"):
        return "\n\n".join(dataset_rows(spec.removeprefix("hf:")))
    if is_protocol(spec):
        return protocol_text(spec)
    path = Path(spec)
    if path.suffix not in (".txt", ".jsonl"):
        raise RequestError(
            f"calibration {spec!r} is not understood: give a .txt or .jsonl file, hf:NAME[/CONFIG][/SPLIT], "
            "builtin, builtin-heldout, builtin-docstrings, builtin-code, ppl:wikitext2, ppl:c4, ppl:ptb, "
            "self or self:PROMPTS.jsonl"
        )
    text = read_utf8(path)
    if path.suffix == ".jsonl":
        # JSON may hold other ends of lines inside its strings.
        text = "\n\n".join(json_rows(text.split("\n"), spec, hint=_ITEMS_HINT))
    if not text.strip():
        raise RequestError(f"{spec} holds no text")
    return text


def check_readable(spec: str) -> None:
    """Raise `RequestError` for a text, or for prompts of the model's own text, that cannot be read."""
    if is_own(spec):
        check_prompts(spec)
    else:
        read_text(spec)


def require_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer, where there is one; `RequestError` otherwise."""
    if tokenizer is None:
        raise RequestError("the model's folder holds no tokenizer, so text cannot be cut into tokens; use 'self'")
    return tokenizer


def cut_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    windows: int,
    tokens: int,
    spec: str = "the text",
    *,
    chat: bool = False,
) -> Tensor:
    """Cut `windows` windows of `tokens` tokens, evenly spread over the text: int64 [windows, tokens].

    With `chat` each is put through the chat template, which brings a begin-of-text token where it wants one.
    """
    stream = np.asarray(tokens_of(text, tokenizer), dtype=np.int64)
    start = [] if chat else begin_tokens(tokenizer)
    body = stretch_of(tokens) if chat else tokens - len(start)
    if body < 1 or len(stream) < windows * body:
        raise RequestError(
            f"{spec} has {len(stream)} tokens; {windows} windows of {tokens}{' with chat=True' if chat else ''} need "
            f"{windows * max(body, 1)}: "
            "give a longer text, or ask for fewer or shorter windows"
        )
    first = window_starts(len(stream), body, windows)
    bodies = stream[first[:, None] + np.arange(body)]
    if chat:
        return chat_windows(bodies, tokens, tokenizer, spec)
    return torch.from_numpy(np.hstack([np.tile(np.asarray(start, dtype=np.int64), (windows, 1)), bodies]))


def window_starts(stream: int, body: int, windows: int) -> NDArray[np.int64]:
    """First tokens, int64 [windows], of windows of `body` tokens evenly spread over `stream` tokens."""
    return np.linspace(0, stream - body, windows).astype(np.int64) if windows > 1 else np.zeros(1, np.int64)


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: [] or [begin-of-text]."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return [int(ids[0])] if ids and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def _standard_library_text(*, heldout: bool) -> str:
    """Python's language reference as `pydoc` ships it: every second topic, each paragraph once.

    Topics quote each other; a paragraph of the first half is left out of the held-out one.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    first, second = (
        [paragraph for name in half for paragraph in re.split(r"\n\n+", topics[name].strip("\n"))]
        for half in (names[::2], names[1::2])
    )
    if not heldout:
        return "\n\n".join(dict.fromkeys(first))
    seen = set(first)
    return "\n\n".join(paragraph for paragraph in dict.fromkeys(second) if paragraph not in seen)


def _standard_library_modules(*, docstrings: bool) -> str:
    """The beginnings of the standard library's own modules: the docstrings of every second one, or the others' code."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(folder.glob("*.py"))[1 - docstrings :: 2]:
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings that are none of ours
                nodes = list(ast.walk(ast.parse(source))) if docstrings else []
        except (OSError, ValueError, SyntaxError):
            continue
        if docstrings:
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
            source = "\n\n".join(text for text in found if text)
        texts.append(source[:_MODULE_CHARACTERS])
    if not texts:
        raise RequestError(f"the standard library has no sources in {folder}: give another text")
    return "\n\n".join(texts)

"""Items with options, for utilities of items: read from a file, or cut from any text.

With a utility of items (`game/item_utility.py`) a SPEC (`texts/calibration.py`) means

    items.jsonl     one item a line: {"context": ..., "options": [...], "label": 0}. "question" and "choices" are other
                    names for the first two, "answer" and "answerKey" for the last; a label is the number of the true
                    option, from 0, or its letter, or its name where the options have names:
                    {"question": ..., "choices": {"text": [...], "label": ["A", ...]}, "answerKey": "B"}
    anything else   a text, cut into items: a stretch of it as context, its true continuation, and three stretches of
                    the same length from elsewhere. Of `tokens` tokens an item, a quarter are the continuation's.

An option is scored as the LM Evaluation Harness does it: behind the context and a blank, tokenised together with the
context, blanks at the context's end counted to the option. The first items may serve as examples instead of being
scored: `shots` of them, each with its true option and an empty line behind it, come before every other item.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.text import read_json_lines
from layercoop_fast.texts.calibration import (
    Calibration,
    begin_tokens,
    read_text,
    require_tokenizer,
    window_starts,
)
from layercoop_fast.texts.domains import Domains, Ints
from layercoop_fast.texts.layout import Layout
from layercoop_fast.texts.own_text import is_own
from layercoop_fast.texts.rows import check_characters
from layercoop_fast.texts.token_tree import Packs, Scored, pack_trees, pack_whole
from layercoop_fast.texts.tokens import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from layercoop_fast.engine.skeleton import Skeleton

_OPTIONS = 4
_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Item:
    """A context, the options that may follow it, and the number of the true one, from 0."""

    context: str
    options: tuple[str, ...]
    label: int


@dataclass(frozen=True, eq=False)
class Items:
    """Items as tokens; takes the place of a `Calibration` in a `ModelGame`.

    Attributes:
        groups: of each item its options' sequences, context and option, with the place where the option begins.
        layout: which token belongs to which option and item.
        spec: where they came from.
        shots: examples before each.
        share: whether contexts are computed once for all that follows them; otherwise every sequence runs whole.
        device: of the tokens.
        stretch: tokens of text that each item and example was cut as; 0 for items that were given.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from layercoop_fast import ModelGame
        >>> item = {"context": "2 + 2 =", "options": ["4", "5"], "label": 0}
        >>> _ = Path("items.jsonl").write_text(json.dumps(item))
        >>> game = ModelGame.from_pretrained("my-model", calibration="items.jsonl", utility="accuracy")
        >>> items = game.calibration
        >>> len(items.groups), len(items.groups[0])  # items, and options of the first
        (1, 2)
    """

    kind: ClassVar[str] = "items with options"
    has_windows: ClassVar[bool] = False
    chat: ClassVar[bool] = False
    domains: ClassVar[None] = None
    pictures: ClassVar[None] = None
    spans: ClassVar[None] = None

    groups: tuple[tuple[Scored, ...], ...]
    layout: Layout
    spec: str
    shots: int = 0
    share: bool = True
    device: str | torch.device = "cpu"
    stretch: int = 0

    @cached_property
    def packs(self) -> Packs:
        """The sequences as windows."""
        return (pack_trees if self.share else pack_whole)(self.groups).to(self.device)

    @property
    def ids(self) -> Tensor:
        """The windows' tokens, int64 [W, T]."""
        return self.packs.ids

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """SHA-256 over all sequences as "items", and the layout: equal for equal items, wherever they came from."""
        text = json.dumps([[sequence.start, *sequence.tokens] for group in self.groups for sequence in group])
        return {"items": hashlib.sha256(text.encode()).hexdigest(), **self.layout.as_json()}

    def as_json(self) -> dict[str, Any]:
        """All of it, ready for JSON; `of` reads it."""
        groups = [[[sequence.start, *sequence.tokens] for sequence in group] for group in self.groups]
        about = {"spec": self.spec, "shots": self.shots, "share": self.share}
        return {"groups": groups, "layout": self.layout.as_json(), **about}

    @classmethod
    def of(cls, found: Mapping[str, Any], device: str | torch.device) -> Items:
        """What `as_json` has written, on a device."""
        groups = tuple(tuple(Scored(tuple(tokens), start) for start, *tokens in group) for group in found["groups"])
        layout = Layout.of(found["layout"])
        if layout is None:
            raise RequestError("these are not items with options: nothing says which token belongs to which")
        return cls(groups, layout, found["spec"], found["shots"], found["share"], device)

    @property
    def description(self) -> dict[str, Any]:
        """For `layercoop.json`."""
        return {"spec": self.spec, "items": len(self.groups), "shots": self.shots}

    @property
    def numerics(self) -> dict[str, str]:
        """Whether contexts are computed once for all that follows them, or for each option again."""
        return {"context": "shared" if self.share else "whole"}

    def scored(self, n_positions: int) -> Ints:
        """One for each of the N scored tokens, int64 [N]."""
        return np.ones(len(self.packs.of_token), dtype=np.int64)

    def part(self, first: int, last: int) -> Items:
        """Raises `RequestError`: items share windows."""
        raise RequestError(f"parts need windows of text, and the calibration of this game is {self.kind}")

    def message(self) -> dict[str, Any]:
        """All of it: the windows follow from the items."""
        return {"domains": None, "items": self.as_json(), "spans": None}

    @property
    def windows_of(self) -> dict[str, int]:
        """None: items share windows."""
        return {}

    def stretches(self, spec: str, body: int) -> tuple[int, int]:
        """One for each item and example that was cut from that text."""
        return len(self.groups) + self.shots if self.spec == spec and self.stretch else 0, self.stretch


def load_items(
    spec: str,
    tokenizer: PreTrainedTokenizerBase | None,
    skeleton: Skeleton,
    *,
    items: int,
    tokens: int,
    shots: int = 0,
    seed: int = 0,
    share: bool = True,
) -> Items:
    """Items of a SPEC as tokens.

    Args:
        items: how many items to cut from a text; a file of items gives all it has.
        tokens: of such an item.
        shots: examples, taken from the file's first items, or cut next to the others.
        seed: of the wrong options and the place of the true one in items that are cut.

    Raises `RequestError` in one line: what is wrong with the file, an item or the request, and what would be right.
    """
    tokenizer = require_tokenizer(tokenizer)
    if shots < 0:
        raise RequestError(f"shots={shots}: it must be 0 or more")
    if is_own(spec):
        raise RequestError(f"items cannot be cut from {spec!r}: give a file of items, a text file or builtin")
    if Path(spec).suffix == ".jsonl":
        choices = tokenise(read_items(spec), tokenizer, spec=spec, shots=shots)
    else:
        choices = cut_items(read_text(spec), tokenizer, items, tokens, spec=spec, shots=shots, seed=seed)
    return fitting(choices, skeleton, share=share)


def fitting(choices: Items, skeleton: Skeleton, *, share: bool = True) -> Items:
    """The items for this model. Raises `RequestError` where one is too long for it, or has tokens that it lacks."""
    for number, group in enumerate(choices.groups):
        longest = max(len(sequence.tokens) - 1 for sequence in group)
        if skeleton.max_tokens is not None and longest > skeleton.max_tokens:
            raise RequestError(
                f"{choices.spec} item {number + choices.shots + 1} is {longest} tokens long, with its "
                f"{choices.shots} examples and longest option; the model has {skeleton.max_tokens} positions"
            )
        most = max(max(sequence.tokens) for sequence in group)
        if most >= skeleton.vocab_size:
            raise RequestError(
                f"the tokenizer gives token {most}, the model's vocabulary has {skeleton.vocab_size}: "
                "they do not belong together"
            )
    return replace(choices, share=share, device=skeleton.device)


def read_items(spec: str) -> list[Item]:
    """The items of a .jsonl file. Raises `RequestError` that names the line and what is wrong with it."""
    return [item for _, item in read_json_lines(spec, _item, "items")]


def _item(fields: object) -> Item:
    """An item from a line of JSON. Raises `RequestError` that says what is wrong with it."""
    if not isinstance(fields, dict):
        raise RequestError("an item is a JSON object with context, options and label")
    context = _field(fields, "context", "question")
    options = _field(fields, "options", "choices")
    label = _field(fields, "label", "answer", "answerKey")
    if not isinstance(context, str):
        raise RequestError("its context is not a string")
    names = None
    if isinstance(options, dict):
        names, options = options.get("label"), options.get("text")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise RequestError("its options are not a list of strings")
    if len(options) < 2:
        raise RequestError(f"it has {len(options)} options: at least 2 are needed")
    if isinstance(label, str) and names is None and label.isdecimal() and label.isascii():
        label = int(label) if len(label) < 10 else label  # Python turns no digits without end into numbers
    elif isinstance(label, str):
        names = names if isinstance(names, list) else [chr(ord("A") + at) for at in range(len(options))]
        if label not in names:
            raise RequestError(f"its label {reprlib.repr(label)} is none of its options' names {reprlib.repr(names)}")
        label = names.index(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(options):
        raise RequestError(f"its label {reprlib.repr(label)} is not a number from 0 to {len(options) - 1}")
    for at, option in enumerate(options):
        if not option.strip():
            raise RequestError(f"its option {at} is empty: there is nothing to score")
    check_characters(context, *options)
    return Item(context, tuple(options), label)


def _field(fields: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in fields:
            return fields[name]
    raise RequestError(f"it has no {' or '.join(map(repr, names))}")


def tokenise(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, *, spec: str = "the items", shots: int = 0
) -> Items:
    """Items as tokens, the first `shots` of them as examples before the others.

    Raises `RequestError` for an option without tokens, for nothing in front of one, and for too few items.
    """
    if shots >= len(items):
        raise RequestError(f"{spec} has {len(items)} items: {shots} shots leave none to score")
    examples = "".join(f"{item.context} {item.options[item.label]}{_SEPARATOR}" for item in items[:shots])
    scored = items[shots:]
    start = begin_tokens(tokenizer)
    groups = []
    for number, item in enumerate(scored, shots + 1):
        context = examples + item.context
        stripped = context.rstrip()
        tail = context[
            len(stripped) :
        ]  # blanks before an option belong to it: many tokenizers join them to its first token
        texts = [stripped, *(f"{stripped}{tail} {option}" for option in item.options)]
        first, *wholes = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        before = (*start, *first)
        if not before:
            raise RequestError(
                f"{spec} item {number}: nothing comes before its options, so they cannot be scored: give it a "
                "context, or examples with shots= (this tokenizer puts no token before a text)"
            )
        group = [Scored((*before, *whole[len(first) :]), len(before)) for whole in wholes]
        for option, sequence in zip(item.options, group, strict=True):
            if len(sequence.tokens) == len(before):
                raise RequestError(f"{spec} item {number}: its option {option!r} has no tokens")
        groups.append(tuple(group))
    characters = [len(option) for item in scored for option in item.options]
    return Items(tuple(groups), _layout(groups, [item.label for item in scored], characters), spec, shots)


def cut_items(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    items: int,
    tokens: int,
    *,
    spec: str = "the text",
    shots: int = 0,
    seed: int = 0,
) -> Items:
    """Items of four options cut from a text, evenly spread over it, `shots` of them as examples before the others.

    A context is followed by its true continuation or by one of three stretches as long from elsewhere in the text, that
    do not touch the item.
    """
    if items < 1 or tokens < 4:
        raise RequestError(
            f"{items} items of {tokens} tokens: at least 1 of 4 tokens, a quarter continuation, is needed"
        )
    stream = np.asarray(tokens_of(text, tokenizer), dtype=np.int64)
    ending = tokens // 4
    count = items + shots
    if len(stream) < (count + 1) * tokens:
        raise RequestError(
            f"{spec} has {len(stream)} tokens; {count} items of {tokens} need {(count + 1) * tokens}: give a longer "
            "text, or ask for fewer or shorter items"
        )
    generator = np.random.default_rng(seed)
    firsts = window_starts(len(stream), tokens, count)
    labels = generator.integers(0, _OPTIONS, count)
    separator = tokens_of(_SEPARATOR, tokenizer)
    prefix = list(begin_tokens(tokenizer))
    # Examples are spread over the text as well; each goes before all that is scored.
    examples = set(np.linspace(0, count - 1, shots).astype(int).tolist())
    for number in sorted(examples):
        prefix += [*stream[firsts[number] : firsts[number] + tokens].tolist(), *separator]
    groups, characters = [], []
    for number, (first, label) in enumerate(zip(firsts.tolist(), labels.tolist(), strict=True)):
        if number in examples:
            continue
        elsewhere = np.arange(len(stream) - ending + 1)
        elsewhere = elsewhere[(elsewhere + ending <= first) | (elsewhere >= first + tokens)]
        begins = generator.choice(elsewhere, _OPTIONS - 1, replace=False).tolist()
        begins.insert(label, first + tokens - ending)
        context = (*prefix, *stream[first : first + tokens - ending].tolist())
        options = [stream[begin : begin + ending].tolist() for begin in begins]
        groups.append(tuple(Scored((*context, *option), len(context)) for option in options))
        characters += [max(1, len(tokenizer.decode(option).strip())) for option in options]
    scored = [label for number, label in enumerate(labels.tolist()) if number not in examples]
    return Items(tuple(groups), _layout(groups, scored, characters), spec, shots, stretch=tokens)


def _layout(groups: Sequence[Sequence[Scored]], labels: Sequence[int], characters: Sequence[int]) -> Layout:
    lengths = [len(sequence.tokens) - sequence.start for group in groups for sequence in group]
    options = [len(group) for group in groups]
    return Layout(*(np.array(numbers, np.int64) for numbers in (options, labels, lengths, characters)))


def text_of(message: Mapping[str, Any], ids: NDArray[np.int64], device: str | torch.device) -> Calibration | Items:
    """The text that a `message` describes, on a device; windows of text have the tokens `ids`, int64 [W, T]."""
    if message["items"] is not None:
        return Items.of(message["items"], device)
    spans = None if message["spans"] is None else torch.tensor(message["spans"], device=device)
    domains = Domains.of(message["domains"])
    return Calibration(torch.from_numpy(ids).to(device), "from the driver", domains, spans=spans)

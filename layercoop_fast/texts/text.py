"""What windows of text (`Calibration`) and items with options (`Items`) have in common: all that games ask of them."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.texts.domains import Domains, Ints
from layercoop_fast.texts.pictures import Pictures
from layercoop_fast.texts.token_tree import Packs


class Text(Protocol):
    """What a model is measured on: W windows of T tokens.

    Attributes:
        kind: "text" or "items with options", for messages.
        has_windows: whether scores belong to windows, of which some can be measured without the others. Items share
            windows, and their scores belong to tokens.
    """

    kind: ClassVar[str]
    has_windows: ClassVar[bool]

    @property
    def ids(self) -> Tensor:
        """Tokens of the windows, int64 [W, T]."""

    @property
    def spec(self) -> str:
        """The SPEC it came from, or several with " + " between them."""

    @property
    def chat(self) -> bool:
        """Whether the text went through the model's chat template."""

    @property
    def shots(self) -> int:
        """Examples before each item; 0 for text."""

    @property
    def share(self) -> bool:
        """Whether the context of an item's options is computed once."""

    @property
    def domains(self) -> Domains | None:
        """Which text each window is of, where there are several texts."""

    @property
    def pictures(self) -> Pictures | None:
        """What a vision-language model sees before the text of each window."""

    @property
    def spans(self) -> Tensor | None:
        """The tokens of each window that are scored, int64 [W, 2], from the first to before the second; None: all."""
        ...

    @property
    def packs(self) -> Packs | None:
        """Items as windows, with the tokens that are scored; None for text."""

    @property
    def fingerprint(self) -> str | dict[str, Any]:
        """Equal for equal tokens, wherever they came from."""

    @property
    def description(self) -> dict[str, Any]:
        """What `layercoop.json` says of it."""

    @property
    def numerics(self) -> dict[str, str]:
        """What it adds to the numerics of a game: how contexts are computed, for items."""

    def scored(self, n_positions: int) -> Ints:
        """Scored tokens behind each number of a mask: int64 [W] for text, whose windows each score `n_positions`.

        For items int64 [N] of ones, one for each scored token.
        """

    def part(self, first: int, last: int) -> Text:
        """Windows `first` to `last` − 1 alone. `RequestError` for items, and for windows that do not exist."""

    def message(self) -> dict[str, Any]:
        """What workers need besides the token ids to make the same text again, ready for JSON."""

    @property
    def windows_of(self) -> dict[str, int]:
        """How many windows are of each text, by SPEC; none for items."""

    def stretches(self, spec: str, body: int) -> tuple[int, int]:
        """How many stretches of the text that `spec` names were cut for it, and the tokens of each.

        Args:
            spec: a SPEC; no stretch was cut from a text with another one.
            body: tokens of a window without what the tokenizer puts before a text.
        """


def require_windows(text: Text, what: str) -> None:
    """Raise `RequestError` for items with options, which share windows; `what` is what needs windows of its own."""
    if not text.has_windows:
        raise RequestError(f"{what} need windows of text, and the calibration of this game is {text.kind}")

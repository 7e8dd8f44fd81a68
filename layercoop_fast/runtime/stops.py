"""Text from tokens as they come: never half a character, and nothing of a stop string.

A token may hold a part of a character only, and how it reads may depend on the token before it (a space that is dropped
at the beginning of a text). So a few tokens are decoded together again and again, and what is new at the end is handed
out once it can no longer change. A stop string may begin in one token and end in another: text that may be the
beginning of one is held back until that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"  # what decoders write for bytes that are no whole character
_CHARACTER_BYTES = 4  # the most that UTF-8 has
_CONTEXT = 6  # tokens of the prompt that the first new ones are decoded with


def check_stops(stops: str | Iterable[str]) -> tuple[str, ...]:
    """Stop strings as a tuple; one string is one of them. `RequestError` for what cannot be one."""
    found = (stops,) if isinstance(stops, str) else tuple(stops)
    for stop in found:
        if not isinstance(stop, str) or not stop:
            raise RequestError(f"a stop string must be a text of at least one character, not {stop!r}")
    return found


class Detokenizer:
    """Decodes tokens one after another.

    Args:
        tokenizer: of the model; special tokens are left out of the text.
        prompt: the tokens before, of which the last few decide how the first new one reads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = self._last(prompt)  # decoded together, from the last but one border on
        text = self._decode(self._tokens)
        self._done = len(text.rstrip(_UNKNOWN))  # characters handed out
        # Tokens before the border end with a whole character, and their text is handed out.
        self._border = len(self._tokens) if self._done == len(text) else 0
        self._waiting = 0  # tokens since the last whole character

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        self._tokens.append(int(token))
        self._waiting += 1
        text = self._decode(self._tokens)
        certain = len(text.rstrip(_UNKNOWN))
        if self._waiting > _CHARACTER_BYTES:
            # Longer than any character: these bytes will never be one. Only the last few still may.
            certain = max(certain, len(text) - (_CHARACTER_BYTES - 1))
        new = text[self._done : certain]
        self._done = max(self._done, certain)
        if certain == len(text):
            self._tokens = self._tokens[self._border :]
            self._border, self._waiting = len(self._tokens), 0
            self._done = len(self._decode(self._tokens))
        return new

    def close(self) -> str:
        """What was held back as an unfinished character."""
        return self._decode(self._tokens)[self._done :]

    def _last(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, from where a character begins."""
        tokens: list[int] = []
        for count in range(_CONTEXT, _CONTEXT + _CHARACTER_BYTES):
            tokens = [int(token) for token in prompt[-count:]]
            if not self._decode(tokens).startswith(_UNKNOWN):
                break
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Ends a text before the first of some strings.

    Attributes:
        stopped: the string found, None so far.
    """

    def __init__(self, stops: str | Iterable[str]) -> None:
        self._stops = check_stops(stops)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text up to a stop string, as far as it is certain; nothing after one was found."""
        if self.stopped is not None:
            return ""
        self._held += text
        found = [(place, -len(stop), stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            place, _, self.stopped = min(found)
            done, self._held = self._held[:place], ""
            return done
        return self._take(len(self._held) - self._possible())

    def close(self) -> str:
        """What was held back as the beginning of a stop string that did not come."""
        return self._take(len(self._held))

    def _possible(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0
        )

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


class TextStream:
    """Both together: tokens in, text out, up to a stop string. The text of an answer is the sum of what comes out.

    Args:
        tokenizer: of the model.
        prompt: tokens before the answer.
        stops: strings that end the answer; they are no part of it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = (), stops: str | Iterable[str] = ()
    ) -> None:
        self._tokens = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, None so far."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        return self._stops.push(self._tokens.push(token))

    def close(self) -> str:
        """The rest, at the end of an answer: what might have become a character or a stop string and did not."""
        return self._stops.push(self._tokens.close()) + self._stops.close()

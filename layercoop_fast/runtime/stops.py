"""Text from a stream of tokens: only whole characters, and nothing of a stop string.

A token may hold only a part of a character, and its text may depend on the previous token (a space is dropped at the
beginning of a text). So the last few tokens are decoded together at each step, and new text is returned once it can no
longer change. A stop string may extend over several tokens: text that may be the beginning of one is held back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING

from layercoop_fast.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_CHARACTER = "\ufffd"  # decoders return it for bytes that are not a whole character
_CHARACTER_BYTES = 4  # the most that UTF-8 has
_CONTEXT = 6  # tokens of the prompt that are decoded together with the first new ones
# Characters of tokens that were decoded alone, by tokenizer: every whole character asks for such a number.
_ALONE: MutableMapping[PreTrainedTokenizerBase, dict[int, int]] = weakref.WeakKeyDictionary()


def check_stops(stops: str | Iterable[str]) -> tuple[str, ...]:
    """Stop strings as a tuple; a single string is one of them. `RequestError` for anything else."""
    found = (stops,) if isinstance(stops, str) else tuple(stops)
    for stop in found:
        if not isinstance(stop, str) or not stop:
            raise RequestError(f"a stop string must be a text of at least one character, not {stop!r}")
    return found


class Detokenizer:
    """Decodes tokens one after another.

    Args:
        tokenizer: of the model; special tokens are left out of the text.
        prompt: the tokens before, on whose last few the text of the first new one may depend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._alone = _ALONE.setdefault(tokenizer, {})
        self._tokens = self._last(prompt)  # decoded together
        text = self._decode(self._tokens)
        self._done = len(text.rstrip(NO_CHARACTER))  # characters of their text that were returned
        # Tokens before the border end with a whole character, and their text was returned.
        self._border = len(self._tokens) if self._done == len(text) else 0
        self._waiting = 0  # tokens since the last whole character

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        self._tokens.append(int(token))
        self._waiting += 1
        text = self._decode(self._tokens)
        certain = len(text.rstrip(NO_CHARACTER))
        if self._waiting > _CHARACTER_BYTES:
            # Longer than any character: only the last few bytes may still become one.
            certain = max(certain, len(text) - (_CHARACTER_BYTES - 1))
        new = text[self._done : certain]
        self._done = max(self._done, certain)
        if certain == len(text):
            self._tokens = self._tokens[self._border :]
            self._border, self._waiting = len(self._tokens), 0
            self._done = self._length()
        return new

    def close(self) -> str:
        """The text that was held back as an incomplete character."""
        return self._decode(self._tokens)[self._done :]

    def _length(self) -> int:
        """Characters of the tokens that are decoded together."""
        if len(self._tokens) != 1:
            return len(self._decode(self._tokens))
        (token,) = self._tokens
        if token not in self._alone:
            self._alone[token] = len(self._decode(self._tokens))
        return self._alone[token]

    def _last(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, from the beginning of a character on."""
        tokens: list[int] = []
        for count in range(_CONTEXT, _CONTEXT + _CHARACTER_BYTES):
            tokens = [int(token) for token in prompt[-count:]]
            if not self._decode(tokens).startswith(NO_CHARACTER):
                break
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Ends a text before the first of some strings.

    Attributes:
        stopped: the string that was found, or None.
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
        """The text that was held back as the possible beginning of a stop string."""
        return self._take(len(self._held))

    def _possible(self) -> int:
        """Number of characters at the end that may be the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0
        )

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


class TextStream:
    """From tokens to text, up to a stop string; the returned pieces make up the text of an answer.

    Args:
        tokenizer: of the model.
        prompt: tokens before the answer.
        stops: strings that end the answer and are not part of it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = (), stops: str | Iterable[str] = ()
    ) -> None:
        self._tokens = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        return self._stops.push(self._tokens.push(token))

    def close(self) -> str:
        """The rest at the end of an answer: text that was held back."""
        return self._stops.push(self._tokens.close()) + self._stops.close()

"""Text from outside (file names, text from stores, model names, tokens), made safe to print on a terminal."""

from __future__ import annotations

import unicodedata

# Control characters, lone surrogates (bytes of a file name that are not UTF-8), separators of lines and paragraphs.
_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Characters without a width of their own that change the direction of the text around them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(text: str, keep: str = "") -> str:
    r"""`text` with every control character escaped as Python writes it: `\x1b`, `\n`, `\u202e`.

    Args:
        text: anything.
        keep: control characters that stay as they are, "\n\t" for text of several lines.

    Text that is escaped already is returned unchanged.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(character) if _is_hidden(character) and character not in keep else character for character in text
    )


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _CATEGORIES or character in _BIDI


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

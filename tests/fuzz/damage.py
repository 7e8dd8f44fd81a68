"""Damage to well-formed content: of bytes of any format, and of the values of a JSON document."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# Numbers at which sizes and counts overflow, in whatever they are kept.
NUMBERS: list[Any] = [
    *(0, 1, 2, -1, 7, 255, 4097, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
    *(10**30, 10**400, 0.5, -0.0, 1e15, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "a", "0", "-1", "3.attn", "0.attn.mlp", "0-999999", "0-65535", "٣", "²", "1_0", "1e5", "nan", "None"),
    *(
        "\x1b[31mred\x1b[0m",
        "\x9b2J",
        "line\nline",
        "\r",
        "\0",
        "\u202eabc",
        "\u2028",
        "\ud800",
        "é" * 40,
        "x" * 100_000,
    ),
    *("9" * 5000, "../../etc/passwd", "/dev/zero", "[" * 2000, "{}", "[[0, 1]]", '{"a": 1}', "sublayers", "groups"),
]
ODD: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [None], {"": None}, [[[[[[]]]]]]]


def deep(levels: int) -> Any:
    """Lists in each other."""
    made: Any = []
    for _ in range(levels):
        made = [made]
    return made


def damaged_bytes(content: bytes, rng: Random) -> bytes:
    """Content with some of its bytes changed, left out, repeated or cut off."""
    made = bytearray(content)
    if rng.random() < 0.03:
        return content  # as it is: what is sound must be taken
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not made:
            break
        at = rng.randrange(len(made))
        # What says how large everything is stands in the beginning, and in archives at the end.
        near = rng.random()
        if near < 0.4:
            at = rng.randrange(min(len(made), 256))
        elif near < 0.55:
            at = len(made) - 1 - rng.randrange(min(len(made), 128))
        size = rng.choice((1, 1, 2, 4, 8, 16, 64))
        how = rng.randrange(8)
        if how == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            made[at] = rng.randrange(256)
        elif how == 2:
            made[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
        elif how == 3:
            number = rng.choice([one for one in NUMBERS if isinstance(one, int) and 0 <= one < 2**64])
            width = rng.choice((2, 4, 8))
            made[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "little", "big")))
        elif how == 4:
            del made[at : at + size]
        elif how == 5:
            made[at:at] = made[at : at + size]
        elif how == 6:
            del made[at:]
        else:
            made[at : at + size] = rng.choice((b"\0", b"\xff", b"\x1b", b"\n", b"9")) * size
    return bytes(made)


def damaged_value(value: Any, rng: Random) -> Any:
    """A JSON value with some of its parts replaced, left out, repeated, renamed or put into others."""
    made = copy.deepcopy(value)
    many = rng.choice((2, 3000))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = [one for one in _parts(made) if isinstance(one, (dict, list)) and one]
        if not holders or rng.random() < 0.02:
            return rng.choice(ODD)
        holder = rng.choice(holders)
        key: Any = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        how = rng.randrange(10)
        if how < 5:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 5:
            del holder[key]
        elif how == 6:
            holder[key] = [holder[key]] * many
            many = 1  # once: what is repeated of what is repeated would be larger than any memory
        elif how == 7 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif how == 8:
            holder[key] = deep(rng.choice((2, 20, 300)))
        else:
            other = rng.choice(holders)
            holder[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
    return made


def damaged_json(value: Any, rng: Random) -> bytes:
    """A JSON document, damaged as a value, as text, or one made to be expensive."""
    how = rng.random()
    if how < 0.03:
        return rng.choice(
            (
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"",
                b"\xef\xbb\xbf{}",
                b"\xff\xfe{\0}\0",
                b"1" * 100_000,
                b"nul",
                b"{}}",
            )
        )
    content = json.dumps(damaged_value(value, rng) if how < 0.75 else value).encode()
    return damaged_bytes(content, rng) if how > 0.65 else content


def _parts(value: Any) -> list[Any]:
    """A value and all values in it."""
    found, at = [value], 0
    while at < len(found) < 20_000:
        one = found[at]
        found += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        at += 1
    return found

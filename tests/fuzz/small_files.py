"""Small files by hand, with anything in the places that say how large they are: GGUF, npy, npz, safetensors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from random import Random
from typing import Any

from damage import NUMBERS, TEXTS

_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
COUNTS = [one for one in NUMBERS if isinstance(one, int) and 0 <= one < 2**64]
WIDTHS = {0: 4, 1: 2, 8: 34 / 32, 2: 18 / 32}


def gguf_bytes(rng: Random) -> bytes:
    """A small llama, most of the time with one or a few wrong numbers in it."""
    odd = rng.choice((0.0, 0.005, 0.02, 0.1))

    def count(number: int) -> int:
        return rng.choice(COUNTS) if rng.random() < odd else number

    def extent(number: int) -> int:
        """A number that decides how much is built: wrong more often than others."""
        return rng.choice(COUNTS) if rng.random() < 0.04 else count(number)

    blocks, hidden = rng.choice((1, 3, 4, 6)), 32
    alignment = rng.choice((1, 32, 64)) if rng.random() < 0.95 else rng.choice(COUNTS)
    architecture = rng.choice((*["llama"] * 6, "gemma3", "qwen3", "deci", "deepseek2", "x\x1b[31m"))
    values: list[tuple[str, int, Any]] = [
        ("general.architecture", 8, architecture),
        ("general.alignment", 4, alignment),
        (f"{architecture}.block_count", rng.choice((4, 4, 4, 10, 5)), extent(blocks)),
        (f"{architecture}.embedding_length", 4, extent(hidden)),
        (f"{architecture}.attention.head_count", 4, count(4)),
        (f"{architecture}.feed_forward_length", 4, count(64)),
        ("tokenizer.ggml.tokens", 9, (8, ["<s>", "wörd", rng.choice(TEXTS)[:50]])),
    ]
    if rng.random() < 0.3:
        key = rng.choice(("attention.head_count_kv", "attention.head_count", "feed_forward_length", "rope.freqs"))
        element = rng.choice((4, 5, 6, 7, 10, 12))
        values = [one for one in values if not one[0].endswith(key)]
        values.append((f"{architecture}.{key}", 9, (element, [2] * rng.choice((blocks, blocks, 1, 5000)))))
    if rng.random() < 0.2:
        keys = ("leading_dense_block_count", "attention.sliding_window_pattern", "nextn_predict_layers", "split.count")
        values.append((f"{architecture}.{rng.choice(keys)}", rng.choice((4, 10, 11)), rng.choice(COUNTS)))
    names = ["token_embd.weight", "output_norm.weight"]
    for block in range(blocks):
        names += [f"blk.{block}.{kind}.weight" for kind in ("attn_norm", "attn_q", "attn_output", "ffn_norm", "ffn_up")]
    if rng.random() < odd * 3:
        names.append(rng.choice(("blk.99.attn_q.weight", "blk.٣.ffn_up.weight", "blk.01.x", "blk.", *TEXTS[:25])))
    place, described, data = 0, [], b""
    for name in names:
        kind = count(rng.choice(tuple(WIDTHS)))
        dims = [count(32)] * (1 if "norm" in name else 2)
        size = int(32 ** len(dims) * WIDTHS.get(kind, 4))
        described.append((name, dims, kind, count(place)))
        step = alignment if 1 <= alignment <= 4096 else 32
        padded = -(-size // step) * step
        data += bytes(padded)
        place += padded
    head = b"GGUF" + struct.pack("<IQQ", rng.choice((3, 3, 2)), count(len(described)), count(len(values)))
    for key, kind, value in values:
        head += _string(key, rng, odd) + struct.pack("<I", count(kind) % 2**32) + _value(kind, value, rng, odd)
    for name, dims, kind, offset in described:
        head += (
            _string(name, rng, odd) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", one) for one in dims)
        )
        head += struct.pack("<IQ", kind % 2**32, offset)
    step = alignment if 1 <= alignment <= 4096 else 32
    return head + bytes(-len(head) % step) + data


def _string(text: str, rng: Random, odd: float) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", rng.choice(COUNTS) if rng.random() < odd / 10 else len(content)) + content


def _value(kind: int, value: Any, rng: Random, odd: float) -> bytes:
    if kind == 8:
        return _string(value, rng, odd)
    if kind == 9:
        element, members = value
        size = rng.choice(COUNTS) if rng.random() < odd else len(members)
        return struct.pack("<IQ", element, size) + b"".join(_value(element, one, rng, odd) for one in members)
    width = struct.calcsize(f"<{_LETTERS[kind]}")
    if kind in (6, 12):
        return struct.pack(f"<{_LETTERS[kind]}", rng.choice((float(value % 2**60), float("nan"), float("inf"))))
    return (value % 2 ** (8 * width)).to_bytes(width, "little")


_DESCRIPTIONS = (
    *(
        "|b1",
        "<f8",
        "<i8",
        "|u1",
        ">f8",
        "<f4",
        "<U3",
        "|O",
        "|S4",
        "|V8",
        "<c16",
        "<M8[ns]",
        "<U99999999",
        "<U0",
        "b1",
    ),
    *("f8,f8", "[('a', '<f8')]", "<f8' ,'x': '", "\\x41", "é", "<f99999", ""),
)
_SHAPES = (
    *("()", "(1,)", "(2, 3)", "(3, 2, )", "(0,)", "(0, 99999999999)", "(-1,)", "(2**40,)", "(1e3,)", "(True,)", "2"),
    *("(99999999999999999999,)", "(4294967296, 4294967296)", "(1,) * 3", "(1, 1, 1, 1, 1, 1, 1)", "(2, 3", "((2, 3),)"),
    *("(2L, 3L)", "(0x10,)", "(1_0,)", "[2, 3]", "(None,)", "(9223372036854775807, 0)", "(6, 1)"),
)
_HEADERS = (
    *("", "{", "}", "{}", "[" * 900, "{" * 900, "(" * 5000, "{'descr':\n  1}", "'''", "\x00", "1", "lambda: 0", "\\"),
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), 'descr': '|O'}", "  if:\n x", "__import__('os')"),
    *("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), 'more': 1}", "{**{}}", "9" * 5000),
)


def npy_bytes(rng: Random, content: bytes) -> bytes:
    """A .npy file around these elements, with a header that may say anything."""
    order = rng.choice(("False", "True", "0", "None") if rng.random() < 0.2 else ("False", "True"))
    kind = rng.choice(_DESCRIPTIONS if rng.random() < 0.4 else ("|b1", "|u1", "<f8"))
    shape = rng.choice(_SHAPES if rng.random() < 0.5 else ("(2, 3)", "(6,)", "(3, 2)"))
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.15:
        text = rng.choice(_HEADERS)
    if rng.random() < 0.5:
        text = text.ljust(117) + "\n"
    encoded = text.encode("utf-8", "replace")
    version, width = rng.choice(((1, 2), (1, 2), (1, 2), (2, 4), (3, 4), (9, 2)))
    size = rng.choice(COUNTS) if rng.random() < 0.05 else len(encoded)
    return b"\x93NUMPY" + bytes((version, 0)) + (size % 2 ** (8 * width)).to_bytes(width, "little") + encoded + content


def npz_bytes(members: dict[str, bytes], rng: Random) -> bytes:
    """An archive, perhaps with a member twice, of another compression, or with sizes that are not so."""
    made = io.BytesIO()
    kinds = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED) * 4 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    kind = rng.choice(kinds)
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    content = bytearray(made.getvalue())
    if rng.random() < 0.3:  # a field of an entry of the directory: sizes, method, flags, places
        at = content.rfind(b"PK\x01\x02") if rng.random() < 0.5 else content.find(b"PK\x01\x02")
        field = at + rng.choice((6, 8, 10, 16, 20, 24, 28, 30, 42))
        content[field : field + 4] = (rng.choice(COUNTS) % 2**32).to_bytes(4, "little")
    return bytes(content)


def bomb(n_bytes: int) -> bytes:
    """An archive whose masks are so many zero bytes, of a header that says so."""
    text = f"{{'descr': '|b1', 'fortran_order': False, 'shape': ({n_bytes // 4}, 4), }}".encode().ljust(117) + b"\n"
    head = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("masks", "worths", "nll", "window_nll", "window_tokens", "fingerprints"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(head)
                for _ in range(n_bytes // 2**20 if name == "masks" else 0):
                    member.write(bytes(2**20))
    return made.getvalue()


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes, size: int | None = None) -> bytes:
    """A safetensors file with this header, of which it says that it has `size` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if size is None else size
    return struct.pack("<Q", length % 2**64) + text + data


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]

"""Text and JSON files that are not trusted: their values, or one line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.bounds import MAX_JSON_BYTES, MAX_TEXT_BYTES

Read = TypeVar("Read")

_PIECE = 2**20
# What code raises when values from a file have unexpected types or sizes.
_UNEXPECTED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_text(path: Path, *, hint: str = "", limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file of at most `limit` bytes, without a byte-order mark.

    Raises `RequestError` that names the file; where it cannot be read, the message ends with `hint`, how to correct it.
    """
    try:
        content = bytearray()
        with path.open("rb") as file:
            # In pieces: one read of `limit` bytes would allocate that much memory, and a pipe has no known size.
            while len(content) <= limit and (piece := file.read(_PIECE)):
                content += piece
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise RequestError(f"{path} cannot be read: {reason(error)}{hint and f'; {hint}'}") from error
    except MemoryError as error:
        raise RequestError(f"{path} does not fit into memory") from error
    if len(content) > limit:
        raise RequestError(f"{path} is larger than {limit:,} bytes, the most that is read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error


def read_json(path: Path, *, hint: str = "", limit: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file of at most `limit` bytes, of any type.

    Raises `RequestError` that names the file and ends with `hint`, how to correct it, where one is given.
    """
    return parse_json(read_text(path, hint=hint, limit=limit), str(path), hint=hint)


def parse_json(text: str, where: str, *, hint: str = "") -> Any:
    """The value of a JSON text. Raises `RequestError` that names `where` the text stands, and ends with `hint`."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise RequestError(f"{where} is not JSON (it has too many levels){hint and f': {hint}'}") from error
    except MemoryError as error:
        raise RequestError(f"{where} does not fit into memory") from error
    except ValueError as error:  # numbers of thousands of digits are a plain ValueError
        raise RequestError(f"{where} is not JSON ({reason(error)}){hint and f': {hint}'}") from error


def read_json_lines(name: str, take: Callable[[Any], Read], what: str) -> list[tuple[int, Read]]:
    """What the lines of a JSON Lines file say, with their numbers from 1 on; empty lines are skipped.

    Args:
        name: path of the file, as messages give it.
        take: makes one of the value of a line; its `RequestError` says what is wrong with it.
        what: the file is to hold, in the plural.

    Raises `RequestError` that names the line and what is wrong with it, or where there is none.
    """
    found = []
    for number, line in enumerate(read_text(Path(name)).split("\n"), 1):
        if line.strip():
            where = f"{name} line {number}"
            value = parse_json(line, where)
            try:
                found.append((number, take(value)))
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from error
    if not found:
        raise RequestError(f"{name} holds no {what}")
    return found


def is_flat(value: Any, levels: int = 16) -> bool:
    """Whether lists and objects of a JSON value are nested at most `levels` deep, so that recursion over it is safe."""
    level = [value]
    for _ in range(levels):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [one for part in parts for one in part]
        if not level:
            return True
    return False


@contextmanager
def as_saved(what: object, hint: str = "it is damaged, or was not saved by this version") -> Iterator[None]:
    """Turn errors that values of unexpected type or size cause inside into a `RequestError` about `what`.

    The block should only take values out of a file: errors of other code would be reported as those of the file.
    """
    try:
        yield
    except LayercoopError:
        raise
    except _UNEXPECTED as error:
        said = f"{type(error).__name__}: {reason(error)}" if str(error) else type(error).__name__
        raise RequestError(f"{what}: {hint} ({said[:300]})") from error

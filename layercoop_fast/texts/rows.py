"""Rows of text from JSON lines and from data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.text import parse_json

_SPLITS = ("train", "validation", "valid", "test", "dev")


def check_characters(*texts: str) -> None:
    """Raise `RequestError` for half of a surrogate pair, which JSON can write but no tokenizer can read."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])
            raise RequestError(f"it has half of a character, {half}: write both halves, or leave it out") from error


def json_rows(lines: Iterable[str], spec: str, fields: Sequence[str] = ("text",), *, hint: str = "") -> list[str]:
    """The texts of JSON lines, of the first of `fields` that a line has.

    Raises `RequestError` that names the line of `spec` that has none, with `hint`, what else the file could be.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        named = " or ".join(f'"{field}"' for field in fields)
        try:
            row = parse_json(line, "it")
            field = next(field for field in fields if field in row)
            part = row[field]
        except (ValueError, StopIteration, TypeError) as error:
            raise RequestError(f"{spec} line {number} is not a JSON object with a {named} field{hint}") from error
        if not isinstance(part, str):
            raise RequestError(f'{spec} line {number}: "{field}" is {type(part).__name__}, not a string')
        try:
            check_characters(part)
        except RequestError as error:
            raise RequestError(f"{spec} line {number}: {error}") from error
        rows.append(part)
    return rows


def dataset_rows(name: str, fields: Sequence[str] = ("text",), *, most: int | None = None) -> list[str]:
    """Rows of `NAME[/CONFIG][/SPLIT]` through `datasets`, of the first of `fields` that is a column.

    Args:
        name: NAME may hold a slash itself (an organisation, a folder): the longest that exists is taken.
        fields: names of columns.
        most: rows at most, the first ones.

    Raises `RequestError` without the extra, for a data set that cannot be loaded, and for one without the column.
    """
    try:
        import datasets
    except ImportError as error:
        raise RequestError(
            "calibration from a data set needs the extra: pip install layercoop-fast[datasets]"
        ) from error
    if not name.strip("/"):
        raise RequestError("hf: names no data set: write hf:NAME, hf:NAME/CONFIG or hf:NAME/CONFIG/SPLIT")
    parts = name.split("/")
    split = parts.pop() if parts[-1].split("[")[0] in _SPLITS else "train"
    failure: Exception | None = None
    for taken in range(len(parts), max(0, len(parts) - 2), -1):
        config = "/".join(parts[taken:]) or None
        try:
            data = datasets.load_dataset("/".join(parts[:taken]), config, split=split)
        except (ValueError, OSError) as error:
            failure = failure or error
            continue
        column = next((field for field in fields if field in data.column_names), None)
        if column is None:
            named = " or ".join(f'"{field}"' for field in fields)
            raise RequestError(f"hf:{name} has no {named} column; its columns are {', '.join(data.column_names)}")
        return list((data if most is None else data.select(range(min(most, len(data)))))[column])
    raise RequestError(f"hf:{name} cannot be loaded: {reason(failure) if failure else 'no name given'}")

"""Errors that other libraries raise on a damaged file, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layercoop_fast.errors import LayercoopError, RequestError


@contextmanager
def library_reads(name: str, what: str = "") -> Iterator[None]:
    """Turn any exception that a library raises inside into a `RequestError` about `name` (and `what` of it).

    Parsers of checkpoints and tokenizers raise any class: `Exception` itself, and where their Rust code panics, a class
    that does not derive from `Exception`. The block should hold calls of a library alone, so that an error of this
    package is not reported as one of a file.
    """
    try:
        yield
    except LayercoopError:
        raise
    except MemoryError as error:
        raise RequestError(f"{what}{name} cannot be opened: it needs more memory than there is") from error
    except BaseException as error:
        # Ctrl-C and exits of the process do not derive from `Exception` either: they are passed on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RequestError(f"{what}{name} cannot be opened: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

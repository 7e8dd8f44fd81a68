"""What other libraries raise over a damaged file, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layercoop_fast.errors import LayercoopError, RequestError


@contextmanager
def library_reads(name: str, what: str = "") -> Iterator[None]:
    """Whatever a library raises inside becomes a `RequestError` about `name` (and `what` of it).

    Parsers of checkpoints and tokenizers raise anything: `Exception` itself, and where their Rust code panics a class
    that is no `Exception`. For calls of a library alone, so that no error of our own is taken for one of a file.
    """
    try:
        yield
    except LayercoopError:
        raise
    except MemoryError as error:
        raise RequestError(f"{what}{name} cannot be opened: it needs more memory than there is") from error
    except BaseException as error:
        # Ctrl-C and other ends of a process are no `Exception` either, and go on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RequestError(f"{what}{name} cannot be opened: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

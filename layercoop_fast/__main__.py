"""`layercoop-fast`, also `python -m layercoop_fast`."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn

import typer

from layercoop_fast.cli import app
from layercoop_fast.errors import LayercoopError
from layercoop_fast.files import reason
from layercoop_fast.shown import shown

# typer raises click's exceptions, from click itself or from a copy of its own, by version; both descend from this one.
_UsageError: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_INTERRUPTED = 130
_STOPPED = "stopped. What was written before is whole and kept; what was being written is not there"


def main() -> None:
    """Run the command line. Exit status: 0 done, 2 the request was wrong, 1 a failure; errors are one line."""
    plain, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        status = app(standalone_mode=False)
    except LayercoopError as error:
        _leave(str(error), error.status)
    except _UsageError as error:
        _leave(getattr(error, "format_message", error.__str__)(), 2)
    except (KeyboardInterrupt, typer.Abort):
        _leave(_STOPPED, 1)
    except MemoryError:
        _leave("out of memory: pass a smaller --memory, fewer --windows, or a narrower --dtype", 1)
    except OSError as error:
        _leave(f"{error.filename or 'the system'}: {reason(error)}", 1)
    finally:
        warnings.formatwarning = plain
    if status == _INTERRUPTED:  # newer typers turn Ctrl-C into this status instead of raising
        _leave(_STOPPED, 1)
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as errors are: where in the code it was raised says nothing to a user."""
    return f"layercoop-fast: {shown(' '.join(str(message).split()))}\n"


def _leave(message: str, status: int) -> NoReturn:
    if line := " ".join(message.split()):  # without arguments there is only the help, printed already
        sys.stderr.write(f"layercoop-fast: {shown(line)}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()

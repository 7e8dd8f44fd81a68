"""`layercoop-fast`, also `python -m layercoop_fast`."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import NoReturn

from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.files import reason
from layercoop_fast.shown import shown
from layercoop_fast.system.stopping import Terminated, status_of, stopped_by_signals

TRACEBACK = "LAYERCOOP_TRACEBACK"
"""Environment variable: where it is set, errors are printed with their traceback."""
_INTERRUPTED = 130
_STOPPED = "stopped. Files that were finished are kept; a file that was being written is not there"
# Environment variables that the extension reads when it is loaded; it refuses wrong values with an `ImportError`.
_OF_THE_EXTENSION = ("LAYERCOOP_THREADS: ", "LAYERCOOP_ISA: ", "LAYERCOOP_DOTS: ", "LAYERCOOP_MATRICES: ")


def main() -> None:
    """Run the command line. Exit status: 0 done, 2 the request was wrong, 1 a failure; errors are one line."""
    plain, warnings.formatwarning = warnings.formatwarning, _one_line
    came: list[int] = []
    try:
        with stopped_by_signals() as came:
            status = _run()
            if sys.stdout is not None:
                sys.stdout.flush()  # an error of writing is found here, not while the interpreter shuts down
    except LayercoopError as error:
        _leave(_typed(str(error)), error.status)
    except KeyboardInterrupt:
        _leave(_STOPPED, 1)
    except Terminated as stop:
        _leave(_STOPPED, stop.status)
    except MemoryError:
        _leave("out of memory: use a smaller memory budget, fewer windows, or a narrower dtype", 1)
    except OSError as error:
        if isinstance(_broken_output(), BrokenPipeError):
            sys.exit(1)  # the reader of the pipe has gone (`| head`): an error message would be noise
        _leave(f"{error.filename or 'the system'}: {reason(error)}", 1)
    except Exception as error:
        if came:
            _leave(_STOPPED, status_of(came[0]))
        if isinstance(error, ImportError) and str(error).startswith(_OF_THE_EXTENSION):
            _leave(str(error), RequestError.status)
        _leave(
            f"unexpected error, {type(error).__name__}: {reason(error)[:500]} (set {TRACEBACK}=1 in the environment to "
            "see where)",
            1,
        )
    finally:
        warnings.formatwarning = plain
        _broken_output()
    sys.exit(status)


def _run() -> int:
    """Run the command and return its exit status."""
    import typer  # here, within the error handling of `main`: loading the commands can be stopped, or fail, too

    from layercoop_fast.cli.app import commands

    # typer raises click's exceptions: those of click itself or of its own copy, by version. Both have this base class.
    usage_error: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
    try:
        status = commands(standalone_mode=False)
    except usage_error as error:
        raise RequestError(" ".join(getattr(error, "format_message", error.__str__)().split())) from error
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == _INTERRUPTED:  # newer typers turn Ctrl-C into this status instead of raising
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _typed(message: str) -> str:
    """A message of the library with the options of the command line in the place of parameters."""
    if "=" not in message:
        return message
    from layercoop_fast.cli.app import commands
    from layercoop_fast.cli.messages import as_typed, options_of

    return as_typed(message, options_of(commands), sys.argv[1:])


def _broken_output() -> OSError | None:
    """The error that writing to standard output raises, or None where it works.

    A stream that fails, standard error included, is redirected to the null device: the interpreter would otherwise try
    to flush it once more when it ends, and complain.
    """
    broken = None
    # Typer wraps the real streams in streams that ignore broken pipes, so both are flushed.
    for stream, number in ((sys.stdout, 1), (sys.__stdout__, 1), (sys.stderr, 2), (sys.__stderr__, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            broken = error if number == 1 else broken
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), number)
    return broken


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning in the form of the errors: the place in the code that raised it means nothing to a user."""
    return f"layercoop-fast: {shown(' '.join(_typed(str(message)).split()))}\n"


def _leave(message: str, status: int) -> NoReturn:
    with suppress(OSError):  # the reader may have gone
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        if line := " ".join(message.split()):  # empty where the command had no arguments: the help is printed already
            sys.stderr.write(f"layercoop-fast: {shown(line)}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()

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
"""Variable of the environment: set, an error is told with its traceback."""
_INTERRUPTED = 130
_STOPPED = "stopped. What was written before is whole and kept; what was being written is not there"
# Numbers of the environment that the extension reads when it is loaded; it refuses wrong ones as an `ImportError`.
_OF_THE_EXTENSION = ("LAYERCOOP_THREADS: ", "LAYERCOOP_ISA: ", "LAYERCOOP_DOTS: ")


def main() -> None:
    """Run the command line. Exit status: 0 done, 2 the request was wrong, 1 a failure; errors are one line."""
    plain, warnings.formatwarning = warnings.formatwarning, _one_line
    came: list[int] = []
    try:
        with stopped_by_signals() as came:
            status = _run()
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written is found out here, not while the interpreter ends
    except LayercoopError as error:
        _leave(_typed(str(error)), error.status)
    except KeyboardInterrupt:
        _leave(_STOPPED, 1)
    except Terminated as stop:
        _leave(_STOPPED, stop.status)
    except MemoryError:
        _leave("out of memory: pass a smaller --memory, fewer --windows, or a narrower --dtype", 1)
    except OSError as error:
        if isinstance(_broken_output(), BrokenPipeError):
            sys.exit(1)  # nobody reads any more (`| head`), and nobody wants to know
        _leave(f"{error.filename or 'the system'}: {reason(error)}", 1)
    except Exception as error:
        if came:
            _leave(_STOPPED, status_of(came[0]))
        if isinstance(error, ImportError) and str(error).startswith(_OF_THE_EXTENSION):
            _leave(str(error), RequestError.status)
        _leave(
            f"an error that was not foreseen, {type(error).__name__}: {reason(error)[:500]} ({TRACEBACK}=1 in the "
            "environment shows where)",
            1,
        )
    finally:
        warnings.formatwarning = plain
        _broken_output()
    sys.exit(status)


def _run() -> int:
    """Run the command and return its exit status."""
    import typer  # here, like the commands: loading them can be stopped, or fail, too

    from layercoop_fast.cli.app import app

    # typer raises click's exceptions, from click itself or from a copy of its own, by version; both descend from this.
    usage_error: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
    try:
        status = app(standalone_mode=False)
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
    from layercoop_fast.cli.app import app
    from layercoop_fast.cli.messages import as_typed, options_of

    return as_typed(message, options_of(app), sys.argv[1:])


def _broken_output() -> OSError | None:
    """Why standard output takes nothing, or None where it does.

    What waits to be written to it, and to standard error, is then dropped: the interpreter would try once more at its
    end, and complain.
    """
    broken = None
    # Typer puts streams that keep silent before the real ones.
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
    """A warning as errors are: where in the code it was raised says nothing to a user."""
    return f"layercoop-fast: {shown(' '.join(_typed(str(message)).split()))}\n"


def _leave(message: str, status: int) -> NoReturn:
    with suppress(OSError):  # nobody may be reading
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        if line := " ".join(message.split()):  # without arguments there is only the help, printed already
            sys.stderr.write(f"layercoop-fast: {shown(line)}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()

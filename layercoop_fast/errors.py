"""The two kinds of error that the package raises.

Every check raises one of them with a message of one line that says what is wrong and how to correct it. The command
line prints that line and exits with `status`.
"""

from __future__ import annotations

from layercoop_fast.shown import shown

# Most characters of a message. A longer one quotes a whole file or argument; its middle is left out.
_LONGEST = 2000


class LayercoopError(Exception):
    """Base of the package's own errors.

    Control characters in the message are escaped, so that it is one line whatever it quotes.

    Attributes:
        status: exit status of the command line.
    """

    status = 1

    def __init__(self, message: object = "") -> None:
        line = shown(str(message))
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class RequestError(LayercoopError, ValueError):
    """The request itself was wrong: a retry does not help until the request is changed. Exit status 2."""

    status = 2


class RunError(LayercoopError, RuntimeError):
    """A valid request failed while it ran (disk full, a model that returns no logits). Exit status 1.

    No file is left half-written.
    """

    status = 1

"""The two ways a call can end other than well.

Every check in the package raises one of these with a message of one line that says what is wrong and what would be
right. The command line prints that line and exits with `status`.
"""

from __future__ import annotations

from layercoop_fast.shown import shown

# Characters of a message. What is longer quotes a file or an argument as a whole; its middle is left out.
_LONGEST = 2000


class LayercoopError(Exception):
    """Base of the package's own errors; `status` is the command line's exit status.

    Control characters in the message are escaped, whatever it quotes: it is always one line.
    """

    status = 1

    def __init__(self, message: object = "") -> None:
        line = shown(str(message))
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class RequestError(LayercoopError, ValueError):
    """The request itself was wrong: no retry helps until it is changed. Exit status 2."""

    status = 2


class RunError(LayercoopError, RuntimeError):
    """A good request failed on the way (disk full, a model that misbehaves). Nothing is half-written. Exit status 1."""

    status = 1

"""The two ways a call can end other than well.

Every check in the package raises one of these with a message of one line that says what is wrong and what would be
right. The command line prints that line and exits with `status`.
"""

from __future__ import annotations


class LayercoopError(Exception):
    """Base of the package's own errors; `status` is the command line's exit status."""

    status = 1


class RequestError(LayercoopError, ValueError):
    """The request itself was wrong: no retry helps until it is changed. Exit status 2."""

    status = 2


class RunError(LayercoopError, RuntimeError):
    """A good request failed on the way (disk full, a model that misbehaves). Nothing is half-written. Exit status 1."""

    status = 1

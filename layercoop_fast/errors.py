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

    Examples:
        >>> from layercoop_fast import LayercoopError, stratified_masks
        >>> try:
        ...     stratified_masks(4, 0)
        ... except LayercoopError as error:
        ...     print(error, error.status)
        n_masks must be at least 1, not 0 2
    """

    status = 1

    def __init__(self, message: object = "") -> None:
        line = shown(str(message))
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class RequestError(LayercoopError, ValueError):
    """The request itself was wrong: a retry does not help until the request is changed. Exit status 2.

    Examples:
        >>> from layercoop_fast import RequestError, get_sampler
        >>> try:
        ...     get_sampler("chain")
        ... except RequestError as error:
        ...     print(error)
        unknown sampler 'chain': did you mean 'chains'? The samplers are strata, two-stage, chains, subsets
    """

    status = 2


class RunError(LayercoopError, RuntimeError):
    """A valid request failed while it ran (disk full, a model that returns no logits). Exit status 1.

    No file is left half-written.

    Examples:
        >>> from layercoop_fast import RunError
        >>> RunError("the disk is full").status
        1
    """

    status = 1

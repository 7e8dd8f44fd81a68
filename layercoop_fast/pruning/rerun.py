"""The command line that repeats a call of `prune`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields

from layercoop_fast.inputs.options import flag_of, shell_of
from layercoop_fast.pruning.request import PruneRequest


def rerun_command(model: str, out: str, request: PruneRequest) -> str | None:
    """One line for a shell: `layercoop-fast prune` with every option that is not at its default.

    None where a value has no form on the command line, a utility of the user's own for instance.
    """
    words = ["layercoop-fast", "prune", model, "--" + "out", out]
    for one in fields(request):
        value = getattr(request, one.name)
        if value == one.default or value == []:
            continue
        if isinstance(value, bool):
            words.append(flag_of(one, on=value))
        elif shell_of(one).read == "labels":
            words += [flag_of(one), ",".join(map(str, value))]
        elif isinstance(value, (str, int, float)) or hasattr(value, "__fspath__"):
            words += [flag_of(one), str(value)]
        elif isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
            words += [word for item in value for word in (flag_of(one), item)]
        else:
            return None
    return shlex.join(words)

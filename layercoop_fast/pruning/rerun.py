"""The command line that says again what `prune` was asked."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What stands for True and False of options whose names are not those of the arguments.
_SWITCHES = {
    "share_context": ("--share-context", "--no-share-context"),
    "measure_cost": ("--cost", "--no-cost"),
    "report": ("--report", "--no-report"),
    "verify": ("--verify", "--no-verify"),
}
# Options that take all their labels at once.
_JOINED = ("keep", "must_go")
_UNSAID = ("model", "out", "on_progress")


def rerun_command(prune: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """One line for a shell: `layercoop-fast prune` with every one of `arguments` that is not the default of `prune`.

    None where an argument has no form on the command line, a worth of the user's own for instance.
    """
    words = ["layercoop-fast", "prune", str(arguments["model"]), "--out", str(arguments["out"])]
    for name, parameter in inspect.signature(prune).parameters.items():
        value = arguments.get(name, parameter.default)
        if name in _UNSAID or value == parameter.default:
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(_SWITCHES.get(name, (option, f"--no-{name}"))[0 if value else 1])
        elif name in _JOINED:
            words += [option, ",".join(map(str, value))]
        elif isinstance(value, (str, int, float)) or hasattr(value, "__fspath__"):
            words += [option, str(value)]
        elif isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
            words += [word for item in value for word in (option, item)]
        else:
            return None
    return shlex.join(words)

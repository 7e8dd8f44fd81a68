"""Messages of the library in the words of the command line.

The library names its parameters: `keep_first=3`, `offload=`. Whoever typed a command knows options: `--keep-first 3`,
`--offload`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

# A name and "=", not in a path, an address or an option; then a switch's value, a value, or the end of what is named.
_NAMED = re.compile(r"(?<![\w./=-])([a-z][a-z_]*)=(?!=)(True\b|False\b)?(?=([\s,.;:)?]|$)?)")


def as_typed(text: str, options: Mapping[str, tuple[str, str]] | None = None, typed: str = "") -> str:
    """The text with `name=value` written as `--name value`.

    Args:
        text: a message or a help text.
        options: from a parameter to its option and the option that turns it off ("" without one); other names stay as
            they are. None: every name is an option.
        typed: the command as the user typed it; what stands in it is the user's own text and stays as it is.
    """

    def option(match: re.Match[str]) -> str:
        name, switch, end = match.groups()
        if options is not None and name not in options:
            return match[0]
        if typed and re.search(rf"{re.escape(match[0])}", typed):
            return match[0]
        on, off = ("--" + name.replace("_", "-"), "") if options is None else options[name]
        if switch == "False":
            return off or f"no {on}"
        return on if switch or end is not None else f"{on} "

    return _NAMED.sub(option, text)


@cache
def options() -> dict[str, tuple[str, str]]:
    """The options of all commands, by the parameters that they set."""
    from typer.main import get_command

    from layercoop_fast.cli.app import app

    found: dict[str, tuple[str, str]] = {}
    commands = [get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for one in command.params:
            if one.name and one.opts[0].startswith("--"):
                found.setdefault(one.name, (one.opts[0], (one.secondary_opts or [""])[0]))
    return found

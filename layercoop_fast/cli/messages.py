"""Messages of the library in the words of the command line.

The library names its parameters: `keep_first=3`, `offload=`. Whoever typed a command knows options: `--keep-first 3`,
`--offload`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from typer.core import TyperCommand, TyperGroup

# A name and "=", not in a path, an address or an option; then a switch's value, a value, or the end of what is named.
_NAMED = re.compile(r"""(?<![\w./=?&'"-])([a-z][a-z_]*)=(?!=)(True\b|False\b)?(?=([\s,.;:)?]|$)?)""")


def as_typed(text: str, options: Mapping[str, tuple[str, str]] | None = None, typed: Sequence[str] = ()) -> str:
    """The text with `name=value` written as `--name value`.

    Args:
        text: a message or a help text.
        options: from a parameter to its option and the option that turns it off ("" without one); other names stay as
            they are. None: every name is an option.
        typed: the words of the command; text of the user's own, a file called `memory=4.txt` say, stays as it is.
    """
    own = [value for word in typed if "=" in (value := re.sub(r"^--[a-z-]+=", "", word))]

    def option(match: re.Match[str]) -> str:
        name, switch, end = match.groups()
        word = text[match.start() :].split()[0].rstrip(".,;:)")
        users_own = word != match[0] and any(value in word or word in value for value in own)
        if users_own or (options is not None and name not in options):
            return match[0]
        on, off = ("--" + name.replace("_", "-"), "") if options is None else options[name]
        if switch == "False":
            return off or f"no {on}"
        return on if switch or end is not None else f"{on} "

    return _NAMED.sub(option, text)


def options_of(commands: TyperGroup) -> dict[str, tuple[str, str]]:
    """The options of all commands, by the parameters that they set; see `as_typed`."""
    found: dict[str, tuple[str, str]] = {}
    left: list[TyperCommand | TyperGroup] = [commands]
    while left:
        command = left.pop()
        left += getattr(command, "commands", {}).values()
        for one in command.params:
            if one.name and one.opts[0].startswith("--"):
                found.setdefault(one.name, (one.opts[0], (one.secondary_opts or [""])[0]))
    return found

"""Options of a subject as frozen dataclasses: each field carries its default and its help once, here how.

    @dataclass(frozen=True, kw_only=True)
    class Speed:
        threads: int = field(default=0, metadata=shell("Threads; 0: one per core.", panel=MACHINE, least=0))

The library reads the fields, `cli/expand.py` makes a command's options of them. Nothing here loads numpy or torch.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

# Groups of options in the help of commands, in the order in which people read them.
REMOVE = "What to remove"
TEXT = "Text"
SEARCH = "Search"
REPAIR = "Repair"
SAMPLING = "Sampling"
DRAFT = "Draft"
OUTPUT = "Output"
MACHINE = "Machine"

# Defaults that functions of single texts, searches and repairs share with the options of commands.
WINDOWS = 10
TOKENS = 128
MOST_WINDOWS = 160
REPAIR_TOKENS = 65_536

_SHELL = "shell"


@dataclass(frozen=True)
class Shell:
    """How a field is written on the command line.

    Attributes:
        help: one sentence or two, without square brackets, which the help takes for markup.
        panel: the group that the option stands in.
        names: the option's names where they do not follow from the field's, `--cost/--no-cost` for instance.
        metavar: what stands for the value in the help.
        least: the smallest number that is taken.
        read: how the text of the option becomes the value: "" by the field's own type, "text", "texts" (a repeatable
            option), "path", "size" (4GiB) or "labels" (0,1,3.attn).
    """

    help: str
    panel: str
    names: str | None = None
    metavar: str | None = None
    least: int | None = None
    read: str = ""


def shell(help: str, **how: Any) -> dict[str, Shell]:
    """The metadata of a field that has an option: see `Shell` for `how`."""
    return {_SHELL: Shell(help, **how)}


def shell_of(one: Field[Any]) -> Shell:
    """How a field of options is written on the command line."""
    found: Shell = one.metadata[_SHELL]
    return found


def values_of(options: Any, subject: type[Any]) -> dict[str, Any]:
    """The values of `options` for the fields of `subject`, a dataclass that its class is or descends from."""
    return {each.name: getattr(options, each.name) for each in fields(subject)}

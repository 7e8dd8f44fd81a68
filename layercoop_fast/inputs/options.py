"""Options of a subject as frozen dataclasses: each field has its default and its help in one place.

    @dataclass(frozen=True, kw_only=True)
    class Speed:
        threads: int = option(0, MACHINE, "Threads that compute; 0: one for each core.", least=0)

The library reads the fields, `cli/expand.py` makes a command's options of them. Nothing here loads numpy or torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

# Groups of options in the help of commands, in the order in which people read them.
MODEL = "Model"
REMOVE = "What to remove"
TEXT = "Text"
SEARCH = "Search"
REPAIR = "Repair"
HEALING = "Healing"
SAMPLING = "Sampling"
DRAFT = "Draft"
OUTPUT = "Output"
MACHINE = "Machine"
PANELS = (MODEL, REMOVE, TEXT, SAMPLING, SEARCH, DRAFT, REPAIR, HEALING, OUTPUT, MACHINE)

# Defaults that functions of single texts, searches and repairs share with the options of commands.
WINDOWS = 10
TOKENS = 128
MOST_WINDOWS = 160
REPAIR_TOKENS = 65_536

_SHELL = "shell"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shell:
    """How a field is written on the command line.

    Attributes:
        panel: the group of options in the help.
        help: one sentence or two, without square brackets, which the help takes for markup.
        name: the option's name where it is not the field's.
        short: its short name, a letter.
        metavar: what stands for the value in the help.
        least: the smallest number that is taken.
        read: how the text of the option becomes the value: "" by the field's own type, "text", "texts" (a repeatable
            option), "path", "size" (4GiB), "count" (1M), or parts between commas: "labels" (0,1,3.attn), "names" and
            "sizes" (3,6).
        required: whether the command line has no default, though Python has one.
    """

    panel: str
    help: str
    name: str | None = None
    short: str | None = None
    metavar: str | None = None
    least: int | None = None
    read: str = ""
    required: bool = False


def option(default: Any, panel: str, help: str, **how: Any) -> Any:
    """A field of a dataclass of options; see `Shell` for what `how` can hold."""
    return field(default=default, metadata={_SHELL: Shell(panel, help, **how)})


def shell_of(one: Field[Any]) -> Shell:
    """How a field of options is written on the command line."""
    found: Shell = one.metadata[_SHELL]
    return found


def flag_of(one: Field[Any], *, on: bool = True) -> str:
    """The option of a field; of a switch that is to be turned off, the one that does so."""
    return "--" + ("" if on else "no-") + (shell_of(one).name or one.name).replace("_", "-")


def values_of(options: Any, subject: type[Any]) -> dict[str, Any]:
    """The values of `options` for the fields of `subject`, a dataclass that its class is or descends from."""
    return {each.name: getattr(options, each.name) for each in fields(subject)}


def takes(subject: type[Any]) -> Callable[[Function], Function]:
    """Let a function of `**keywords` that become a dataclass show the dataclass's fields in their place.

    Help, editors and `inspect.signature` then know names, types and defaults.
    """

    def told(function: Function) -> Function:
        own = inspect.signature(function)
        keywords = [each for each in inspect.signature(subject).parameters.values() if each.name not in own.parameters]
        stay = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in keywords]
        function.__signature__ = own.replace(parameters=[*stay, *keywords])  # type: ignore[attr-defined]
        return function

    return told

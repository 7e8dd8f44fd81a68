"""From dataclasses of options to the options of a command.

    @expanded(temperature=0.7)
    def chat(model: Model, sampling: Sampling) -> None: ...

A parameter whose type is a dataclass becomes one option a field (`inputs/options.py`), and the command is handed the
object.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from layercoop_fast.cli.messages import as_typed
from layercoop_fast.cli.sizes import count_of, size_in_bytes
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import PANELS, flag_of, shell_of

Command = TypeVar("Command", bound=Callable[..., Any])
_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str}
_READ_AS = {"path": Path, "texts": list[str]}


def expanded(*, only: Collection[str] | None = None, **defaults: Any) -> Callable[[Command], Command]:
    """Replace the dataclasses among a command's parameters by options for their fields.

    Args:
        only: the fields that become options; the others keep their defaults. None: all.
        defaults: of fields whose default is another one in this command.
    """

    def expand(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        taken: dict[str, list[Field[Any]]] = {}
        parameters = []
        for parameter in signature.parameters.values():
            if is_dataclass(parameter.annotation):
                found = [one for one in fields(parameter.annotation) if only is None or one.name in only]
                taken[parameter.name] = found
                parameters += [_parameter(one, defaults.get(one.name, one.default)) for one in found]
            else:
                parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
        parameters.sort(key=_place)

        @functools.wraps(command)
        def run(**given: Any) -> Any:
            for name, found in taken.items():
                values = {
                    one.name: _read(one, given.pop(one.name), defaults.get(one.name, one.default)) for one in found
                }
                given[name] = signature.parameters[name].annotation(**values)
            return command(**given)

        told: Any = run
        told.__signature__ = signature.replace(parameters=parameters)
        told.__annotations__ = {one.name: one.annotation for one in parameters}
        return told  # type: ignore[no-any-return]

    return expand


def _place(parameter: inspect.Parameter) -> tuple[int, bool]:
    """The position of an option in the help: those of no panel first, then panel by panel, required ones first."""
    option = getattr(parameter.annotation, "__metadata__", [None])[0]
    panel = getattr(option, "rich_help_panel", None)
    return 1 + PANELS.index(panel) if panel in PANELS else 0, parameter.default is not parameter.empty


def _parameter(one: Field[Any], default: Any) -> inspect.Parameter:
    """The option of a field."""
    shell = shell_of(one)
    names = [flag_of(one)]
    kind = _READ_AS.get(shell.read, str) if shell.read else _TYPES[str(one.type).split()[0]]
    if kind is bool and default is not False:
        names = ["/".join([flag_of(one), flag_of(one, on=False)])]
    if shell.read in ("texts", "labels"):
        default = None
    elif shell.read in ("names", "sizes"):
        default = ",".join(map(str, default))
    if shell.short is not None:
        names.append(f"-{shell.short}")
    option = typer.Option(
        *names, help=as_typed(shell.help), metavar=shell.metavar, min=shell.least, rich_help_panel=shell.panel
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if shell.required else default,
        annotation=Annotated[kind | None if default is None else kind, option],
    )


def _read(one: Field[Any], given: Any, default: Any) -> Any:
    """The value of a field, from what was typed."""
    read = shell_of(one).read
    if not given and read in ("texts", "labels"):
        return default
    if read == "size":
        return size_in_bytes(given, flag_of(one))
    if read == "count":
        return count_of(given, flag_of(one))
    if read == "labels":
        return [part.strip() for part in given.split(",") if part.strip()]
    if read == "names":
        return [part.strip() for part in given.split(",")] if given.strip() else []
    if read == "sizes":
        sizes = [part.strip() for part in given.split(",")]
        if not all(part.isdecimal() and len(part) < 10 and int(part) for part in sizes):
            raise RequestError(f"{flag_of(one)} takes sizes like 3,6,10, not {given!r}")
        return [int(part) for part in sizes]
    return given

"""The console for tables and lines: it shows no control characters."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from layercoop_fast.shown import shown

_OF_TEXT = "\n\t"


class _Plain(Console):
    """A console without markup, and without control characters except ends of lines and tabs."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make the text of a cell, a title or a line."""
        return super().render_str(shown(text, _OF_TEXT), **options)


def plain_console() -> Console:
    """Standard output without markup: square brackets in paths and texts of users stay as they are."""
    return _Plain(markup=False)


def say(text: str, *, err: bool = False) -> None:
    """Print one line for people, on standard error with `err`."""
    typer.echo(shown(text), err=err)


def write_generated(text: str) -> None:
    """Print what a model wrote, at once and without an end of line.

    In a terminal, control characters except ends of lines and tabs are escaped; a file or a program gets the text
    unchanged.
    """
    sys.stdout.write(shown(text, _OF_TEXT) if sys.stdout.isatty() else text)
    sys.stdout.flush()

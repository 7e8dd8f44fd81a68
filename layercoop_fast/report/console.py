"""Where tables for people go."""

from __future__ import annotations

from rich.console import Console


def plain_console() -> Console:
    """Standard output, on which square brackets are just that: paths and texts of users are no markup."""
    return Console(markup=False)

"""HTML by small functions that escape whatever is not HTML already."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any


class Html(str):
    """Text that is HTML: the only kind that is not escaped."""

    __slots__ = ()


# Characters that no HTML may hold: a model may write them all the same.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)), "\ufffd")
_VOID = ("meta", "br", "line", "rect", "circle", "path", "polyline")


def el(tag: str, *content: object, **attributes: object) -> Html:
    """An element. `class_` stands for `class`, `_` in a name for `-`; attributes that are None are left out."""
    named = (
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    opened = f"<{tag}{''.join(named)}"
    if tag in _VOID and not content:
        return Html(f"{opened}/>")
    return Html(f"{opened}>{join(content)}</{tag}>")


def join(content: Sequence[object]) -> Html:
    """Pieces one after the other; None is nothing."""
    return Html(
        "".join(piece if isinstance(piece, Html) else _escaped(piece) for piece in content if piece is not None)
    )


def _escaped(value: object) -> str:
    return html.escape(str(value).translate(_CONTROL))


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str | None = None) -> Html:
    """A table whose cells know their column's name, so that narrow screens can stack them."""
    body = [
        el("tr", *(el("td" if i else "th", cell, data_label=head[i]) for i, cell in enumerate(row))) for row in rows
    ]
    return el(
        "div",
        el(
            "table",
            None if caption is None else el("caption", caption),
            el("thead", el("tr", *(el("th", name, scope="col") for name in head))),
            el("tbody", *body),
        ),
        class_="scroll",
    )


def folded(summary: str, *content: object) -> Html:
    """Content that opens on a click."""
    return el("details", el("summary", summary), *content)


def number(value: Any, digits: int = 4) -> str:
    """A number as it is read: whole ones with separators, others at `digits` significant digits."""
    if value is None:
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    shown = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return shown.replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return ("+" if value > 0 else "") + number(value, digits)

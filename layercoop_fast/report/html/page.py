"""The report of one `prune`: a whole page, or a part of one for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

from layercoop_fast.errors import RequestError
from layercoop_fast.report.html import choice, costs, family, healing, quality, repair
from layercoop_fast.report.html.markup import Html, el
from layercoop_fast.report.html.record import Record, model_name, removed_players

Section = Callable[[Record], Html | None]

# Title, the reason to print where a section is missing (none: it is left out), and its pieces, side by side.
_SECTIONS: tuple[tuple[str, str, tuple[Section, ...]], ...] = (
    ("Why each player went", "the method leaves no values, interactions or order", (choice.why,)),
    ("How sure it is", "", (choice.settled,)),
    ("Values and interactions", "the method gives no values", (choice.values, choice.interactions)),
    ("Marginals and forecasts", "only `coop` fits such a surrogate", (choice.marginals, choice.forecasts)),
    ("Quality against players removed", "fewer than two sizes have finite figures", (quality.against_size,)),
    ("Nested family", "", (family.nested,)),
    ("Quality, size and latency", "parameters by player or finite perplexities are missing", (quality.pareto,)),
    ("Repair", "", (repair.repair,)),
    ("Healing", "", (healing.healing,)),
    ("Which text suffers most", "no NLL by window is kept", (quality.texts,)),
    (
        "Before and after",
        "no samples were written: this takes a number of samples, a tokenizer and a model that can generate",
        (quality.generations,),
    ),
    ("Cost of running it", "memory and speed were not measured", (costs.running,)),
    ("Cost of finding it", "no counts or seconds are kept", (costs.searching,)),
    ("Where it comes from", "nothing is kept", (costs.origin,)),
)


def report_page(record: Record) -> str:
    """The report of a record (`layercoop.json`) as one HTML file. Raises `RequestError` for wrong fields."""
    body = _body(record)
    return page(f"{model_name(record)} without {len(removed_players(record))} players", body)


def report_fragment(record: Record) -> str:
    """The report of a record as a part of another page."""
    return fragment(_body(record))


def page(title: str, body: Html) -> str:
    """A whole file."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", _style()),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{el("body", body, class_="lc")}</html>\n'


def fragment(body: Html) -> str:
    """A piece of a page, with its style."""
    return el("div", el("style", _style()), body, class_="lc")


@cache
def _style() -> Html:
    return Html(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))


def _body(record: Record) -> Html:
    try:
        return _assembled(record)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RequestError(
            f"the record is not as `prune` writes it ({type(error).__name__}: {error}): prune again to have a report"
        ) from error


def _assembled(record: Record) -> Html:
    title = f"{model_name(record)}: {len(removed_players(record))} of {record['n_players']} players removed"
    made: list[object] = [el("h1", title)]
    made.append(quality.summary(record))
    for title, missing, pieces in _SECTIONS:
        found = [piece for piece in (section(record) for section in pieces) if piece is not None]
        if not found and not missing:
            continue
        made.append(el("h2", title))
        made.append(_side_by_side(found) if found else el("p", f"Left out: {missing}.", class_="soft"))
    return el("main", *made)


def _side_by_side(pieces: Sequence[Html]) -> Html:
    return pieces[0] if len(pieces) == 1 else el("div", *pieces, class_="figures")

"""A comparison as a table, and its rows one by one as they are found."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from layercoop_fast.comparing.compare import Comparison
from layercoop_fast.comparing.forecast import Ahead
from layercoop_fast.comparing.rows import REAL, Judged, Measured, Row
from layercoop_fast.progress import duration
from layercoop_fast.report.console import plain_console

_OF_REPAIRS = (
    " Models with a repair or another compensation are compared with the best of them; - no better than without it "
    "there, or worse (paired test, p ≥ 0.05); seconds are with those of the fit."
)


def ahead_line(ahead: Ahead) -> str:
    """What a comparison will cost, in one line, before it begins."""
    kept = f", {ahead.kept} of them kept" if ahead.kept else ""
    expensive = sorted(ahead.passes.items(), key=lambda item: -item[1])
    parts = [f"{method} {passes:,.0f}" for method, passes in expensive if passes >= 1]
    parts += [f"the other texts {ahead.text_passes:,.0f}"] if ahead.text_passes >= 1 else []
    parts += [f"fits {ahead.repair_passes:,.0f}"] if ahead.repair_passes >= 1 else []
    return (
        f"{ahead.rows + ahead.kept} rows{kept}: at most about {ahead.total:,.0f} forward passes of the full model over "
        f"the searched text ({', '.join(parts) or 'none'}), {duration(ahead.seconds)} by a short pilot"
    )


def row_line(row: Row) -> str:
    """A row in one line."""
    texts = ", ".join(f"{Path(one.text).stem} {_plain_ppl(one)}" for one in row.texts)
    texts += "".join(f"; {name} {_share(one)}" for name, one in row.judged.items())
    if not row.n_remove:
        return f"full model: ppl {texts}"
    goes = f"{row.params:,} parameters of width" if row.removed is None else " ".join(map(str, row.removed))
    return f"{row.label}, {row.n_remove} removed: ppl {texts}; {row.passes:.1f} passes, {row.seconds:.1f} s; {goes}"


def show_comparison(compared: Comparison, console: Console | None = None) -> None:
    """Print one row for each method and size; perplexities as good as the best of their size and text are marked."""
    console = console or plain_console()
    title = f"{compared.about['model'].rstrip('/').rsplit('/', 1)[-1]}, {compared.about['n_players']} players"
    table = Table(title=title)
    table.add_column("removed", justify="right")
    table.add_column("method")
    for text in compared.about["texts"]:
        table.add_column(f"ppl {Path(text).stem}", justify="right")
    judges = list(compared.full.judged)
    for name in (*judges, "passes", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("players that go")
    last = None
    for row in [compared.full, *compared.rows]:
        if last is not None and row.n_remove != last:
            table.add_section()
        last = row.n_remove
        removed = f"{row.params:,} parameters of width" if row.removed is None else " ".join(map(str, row.removed))
        cost = ("", "") if row is compared.full else (f"{row.passes:.1f}", f"{row.seconds:.1f}")
        shares = (_judged(row, row.judged.get(name)) for name in judges)
        table.add_row(str(row.n_remove), row.label, *(_ppl(row, one) for one in row.texts), *shares, *cost, removed)
    console.print(table)
    windows = ", ".join(map(str, compared.about["windows"]))
    compensated = any(row.compensated for row in compared.rows)
    console.print(
        f"ppl ± standard error over windows ({windows}); * as good as the best of its size on that text (paired test, "
        "p ≥ 0.05). The first text is the one searched on. Passes: cost in forward passes of the full model over it, "
        f"of each method by itself. All searches together took {compared.about['passes_spent']:.1f}, since no mask is "
        "measured twice; seconds are what that took." + (_OF_REPAIRS if compensated else ""),
        highlight=False,
    )
    for one in compared.about["refused"]:
        console.print(
            f"{one['method']} has no row at {one['remove']}: {one['reason']}", highlight=False, soft_wrap=True
        )


def _ppl(row: Row, one: Measured) -> str:
    if one.ppl is None:
        return _plain_ppl(one)
    return f"{_plain_ppl(one)}{_marks(row, one)}"


def _judged(row: Row, one: Judged | None) -> str:
    return "" if one is None else f"{_share(one)}{_marks(row, one)}"


def _share(one: Judged) -> str:
    """The mean of a judge's documents with its standard error."""
    found = one.as_json()
    return f"{found['mean']:.3f}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.3f}")


def _plain_ppl(one: Measured) -> str:
    """A perplexity with its standard error."""
    if one.ppl is None:
        return "not finite"
    return f"{one.ppl:.1f}" + ("" if one.ppl_stderr is None else f" ± {one.ppl_stderr:.1f}")


def _marks(row: Row, one: Measured | Judged) -> str:
    """Two marks: where a repair has not improved a result significantly, and where it is as good as the best."""
    lost = row.compensated and (one.p_unrepaired is None or one.p_unrepaired >= REAL)
    best = row.n_remove and one.p_best is not None and one.p_best >= REAL
    return f"{'-' if lost else ' ' if row.compensated else ''}{'*' if best else ' '}"

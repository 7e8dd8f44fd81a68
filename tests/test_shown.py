"""Text of others is shown without control characters, wherever it goes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from layercoop_fast.__main__ import _one_line
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.report.console import _Plain, say, write_generated
from layercoop_fast.shown import shown

EVIL = "a\x1b[31mb\x9b2J\nc\u202ed\u2028e\x00\udcff"
PLAIN = r"a\x1b[31mb\x9b2J\nc\u202ed\u2028e\x00\udcff"


def test_control_characters_are_escaped_and_others_are_not() -> None:
    assert shown(EVIL) == PLAIN
    assert shown(shown(EVIL)) == PLAIN
    assert shown("naïve ✓ \u200d 日本\u0301 \\x1b") == "naïve ✓ \u200d 日本\u0301 \\x1b"
    assert shown("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@pytest.mark.parametrize("kind", [RequestError, RunError])
def test_an_error_is_one_plain_line_of_bounded_length(kind: type[Exception]) -> None:
    assert str(kind(f"{EVIL} is no folder")) == f"{PLAIN} is no folder"
    assert len(str(kind("x" * 10**6))) < 2100
    assert str(kind()) == ""


def test_tables_lines_and_warnings_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    console = _Plain(file=out, markup=False, width=200, force_terminal=False)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    console.print(table)
    console.print(EVIL, "[bold]x[/]")
    assert out.getvalue().count(r"\x1b[31mb\x9b2J") == 4
    assert not {"\x1b", "\x9b", "\u202e", "\x00"} & set(out.getvalue())
    assert "[bold]x[/]" in out.getvalue()
    say(f"written: {EVIL}")
    assert capsys.readouterr().out == f"written: {PLAIN}\n"
    assert _one_line(UserWarning(EVIL)) == "layercoop-fast: " + PLAIN.replace(r"\n", " ").replace(r"\u2028", " ") + "\n"


def test_what_a_model_writes_is_escaped_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_generated("one\n\ttwo\x1b]0;title\x07")
    assert capsys.readouterr().out == "one\n\ttwo\x1b]0;title\x07"
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    write_generated("one\n\ttwo\x1b]0;title\x07")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b]0;title\\x07"


def test_a_name_of_a_file_reaches_the_terminal_escaped(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arguments in (("report",), ("store", "info"), ("doctor",), ("shapley", "--worths")):
            status, out, error = run(*arguments, tmp_path / "no\x1b[2Jthing")
            assert (status, out) == (2, "")
            assert r"no\x1b[2Jthing" in error
            assert "\x1b" not in error

"""Options of commands, made of the fields of dataclasses."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from layercoop_fast.cli.expand import expanded
from layercoop_fast.comparing.compare import compare
from layercoop_fast.comparing.request import CompareRequest
from layercoop_fast.errors import RequestError
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.game.options import GameOptions
from layercoop_fast.inputs.options import MACHINE, OUTPUT, PANELS, TEXT, shell, shell_of
from layercoop_fast.pruning.prune import prune
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.options import AnswerOptions, RuntimeOptions, Sampling


@dataclass(frozen=True, kw_only=True)
class Wish:
    memory: int | None = field(default=None, metadata=shell("Memory, with force=.", panel=MACHINE, read="size"))
    cost: bool = field(default=True, metadata=shell("Measure.", panel=OUTPUT, name="price"))
    chat: bool = field(default=False, metadata=shell("Turns.", panel=TEXT))
    keep: Any = field(default=(), metadata=shell("Stay.", panel=TEXT, read="labels"))
    remove: Any = field(default=(3,), metadata=shell("Sizes.", panel=TEXT, read="sizes"))
    texts: Any = field(default="builtin", metadata=shell("Texts.", panel=TEXT, read="texts"))
    count: int = field(default=1, metadata=shell("Number.", panel=TEXT, short="n", least=1))
    store: Path | None = field(default=None, metadata=shell("File.", panel=TEXT, read="path"))


def handed(*words: str, only: Any = None, **defaults: Any) -> Wish:
    """What a command gets that is called with these words."""
    got: list[Wish] = []
    app = typer.Typer()

    @app.command()
    @expanded(only=only, **defaults)
    def command(wish: Wish) -> None:
        got.append(wish)

    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return got[0]


def test_without_words_the_fields_keep_their_defaults() -> None:
    assert handed() == Wish(remove=[3])
    assert handed(count=7).count == 7


def test_what_is_typed_is_read() -> None:
    words = [
        *("--memory", "2KiB", "--no-price", "--chat", "--keep", "0,3.attn", "--remove", "3,6", "-n", "4"),
        *("--texts", "a", "--texts", "b", "--store", "s"),
    ]
    assert handed(*words) == Wish(
        memory=2048, cost=False, chat=True, keep=["0", "3.attn"], remove=[3, 6], texts=["a", "b"], count=4,
        store=Path("s"),
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--no-chat"], ["--count", "0"], ["--cost"]])
def test_what_is_no_option_is_refused(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        handed(*words)


@pytest.mark.parametrize("words", [["--memory", "much"], ["--remove", "3,0"]])
def test_a_wrong_value_names_the_option(words: list[str]) -> None:
    with pytest.raises(RequestError, match=words[0]):
        handed(*words)


def test_only_some_fields() -> None:
    assert handed("--count", "2", only=["count"]).count == 2
    with pytest.raises(AssertionError):
        handed("--chat", only=["count"])


@pytest.mark.parametrize("options", [PruneRequest, CompareRequest, RuntimeOptions, AnswerOptions, Sampling])
def test_every_field_has_a_help_and_a_panel(options: Any) -> None:
    for one in fields(options):
        about = shell_of(one)
        assert about.help.endswith(".")
        assert "[" not in about.help
        assert about.panel in PANELS


@pytest.mark.parametrize(("options", "function"), [(PruneRequest, prune), (CompareRequest, compare)])
def test_functions_show_the_fields_as_their_keywords(options: Any, function: Any) -> None:
    shown = inspect.signature(function).parameters
    for one in fields(options):
        assert shown[one.name].default == one.default
        assert shown[one.name].kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="nonsense"):
        function("model", *(["out"] if function is prune else []), nonsense=1)


@pytest.mark.parametrize(
    ("options", "function"),
    [(GameOptions, ModelGame.from_pretrained), (RuntimeOptions, LayerSkipModel.from_pretrained)],
)
def test_defaults_are_those_of_the_function(options: Any, function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert {one.name: one.default for one in fields(options)} == {
        one.name: parameters[one.name].default for one in fields(options)
    }

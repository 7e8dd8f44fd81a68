"""Every public name has an example in its docstring, and what the example shows is what happens."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
from tiny_models import save_tiny

import layercoop_fast

NAMES = sorted(set(layercoop_fast.__all__) - {"__version__"})


def example_of(name: str) -> doctest.DocTest:
    text = inspect.getdoc(getattr(layercoop_fast, name)) or ""
    return doctest.DocTestParser().get_doctest(text, {"__name__": name}, name, None, None)


@pytest.fixture(scope="module")
def my_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the examples call "my-model": a llama of four layers with a tokenizer of bytes."""
    return save_tiny(tmp_path_factory.mktemp("examples") / "my-model", n_layers=4)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name: str, my_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-model").symlink_to(my_model, target_is_directory=True)
    example = example_of(name)
    assert example.examples, f"the docstring of {name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)

"""Every public name has an example in its docstring, and what the example shows is what happens."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import layercoop_fast

# Names that have no example yet.
WITHOUT = frozenset(
    {
        *("Calibration", "ChoiceUtility", "Choices", "Items", "LayerSkipModel", "LayercoopError", "ModelGame"),
        *("RequestError", "RunError", "Sampling", "Skeleton", "Worths", "choice_utility", "compare"),
        *("export_checkpoint", "find_draft", "fit_repair", "image_text", "prune", "repaired_worth"),
    }
)
NAMES = sorted(set(layercoop_fast.__all__) - {"__version__"})


def example_of(name: str) -> doctest.DocTest:
    text = inspect.getdoc(getattr(layercoop_fast, name)) or ""
    return doctest.DocTestParser().get_doctest(text, {"__name__": name}, name, None, None)


@pytest.mark.parametrize("name", [each for each in NAMES if each not in WITHOUT])
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = example_of(name)
    assert example.examples, f"the docstring of {name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


def test_what_has_no_example_is_public_and_has_none() -> None:
    assert set(NAMES) >= WITHOUT
    assert not [name for name in WITHOUT if example_of(name).examples]

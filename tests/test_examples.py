"""Every example and notebook runs, on one tiny model, and says how it is called."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, TrainerState

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "tiny_model")
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# (arguments that make it short, where they are needed, and a line that it must print)
RUNS: dict[str, tuple[list[str], str]] = {
    "callback_for_a_trainer": (["MODEL"], "step 4: perplexity"),
    "evaluate_on_a_cluster": (["MODEL", "--masks", "30"], "layer evaluations instead of 180"),
    "generate_under_masks": (["MODEL", "--tokens", "6"], "without [2, 3]"),
    "own_search_method": (["MODEL"], "climbing: remove ["),
    "own_utility": (["MODEL"], "half and half: remove ["),
    "prune_a_model": (["MODEL", "--method", "sleb", "--quick"], "perplexity, held-out:"),
    "shapley_from_worths": (["--model", "MODEL", "--masks", "60"], "strongest interaction:"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("examples") / "model"
    made: str = runpy.run_path(str(EXAMPLES / "tiny_model.py"))["save_tiny_model"](folder)
    return made


@pytest.fixture(autouse=True)
def in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script or a notebook there finds it: `tiny_model` can be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "tiny_model", raising=False)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow if "cluster" in each else ()) for each in SCRIPTS]
)
def test_an_example_runs(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = RUNS[name]
    monkeypatch.setattr(sys, "argv", [name, *(model if each == "MODEL" else each for each in arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert said in capsys.readouterr().out


def test_the_callback_writes_by_one_process_what_an_evaluation_chose(model: str, tmp_path: Path) -> None:
    opened = AutoModelForCausalLM.from_pretrained(model).train()
    callback = runpy.run_path(str(EXAMPLES / "callback_for_a_trainer.py"))["PrunedPerplexity"](1, tmp_path / "out")
    first, second = (TrainerState(is_world_process_zero=first) for first in (True, False))
    callback.on_train_end(None, first, None, model=opened)  # no evaluation chose layers
    callback.chosen = {"kept": [0], "blocks_path": "model.layers"}
    callback.on_train_end(None, second, None, model=opened)
    assert not (tmp_path / "out").exists()
    callback.on_train_end(None, first, None, model=opened)
    assert (tmp_path / "out" / "config.json").exists()
    assert opened.training


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"examples/{name}.py" in capsys.readouterr().out


def test_examples_are_short() -> None:
    long = {path.name: n for path in EXAMPLES.glob("*.py") if (n := len(path.read_text().splitlines())) >= 80}
    assert not long


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(each, id=each.stem, marks=pytest.mark.slow if "serve" in each.stem else ()) for each in NOTEBOOKS],
)
def test_the_cells_of_a_notebook_run_in_order(notebook: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("MODEL = None", f"MODEL = {model!r}")
            exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)

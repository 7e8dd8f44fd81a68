"""Items and continuations of pruned models against transformers' own, and in a comparison."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_streams import blocks_of
from html_page import Page
from rich.console import Console
from short_texts import short_texts
from tiny_models import save_tiny

from layercoop_fast import ModelGame
from layercoop_fast.comparing.compare import Comparison, compare
from layercoop_fast.comparing.compensations import compensate
from layercoop_fast.comparing.judges import Changed, ContinuationJudge, ItemJudge
from layercoop_fast.comparing.table import show_comparison
from layercoop_fast.repair.texts import load_texts
from layercoop_fast.report.html.compared import comparison_page
from layercoop_fast.report.html.markup import number
from layercoop_fast.tasks.paired import paired
from layercoop_fast.texts.items import load_items

Run = Callable[..., tuple[int, str, str]]
MASK = np.array([True, True, False, True, True])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("judged") / "model", n_layers=5))


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return short_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def game(model: str) -> ModelGame:
    return ModelGame.from_pretrained(model, windows=3, tokens=24)


def pruned(game: ModelGame) -> Any:
    """transformers' model without the blocks that the mask removes, in place."""
    found = game.checkpoint.model
    blocks = blocks_of(found)
    del blocks[2]
    return found


@torch.no_grad()
def test_right_items_are_those_of_transformers(game: ModelGame, specs: list[str]) -> None:
    """Option by option, log-probabilities by the number of characters."""
    judge = ItemJudge(game, specs, 12, seed=3)
    own, full = judge.of(Changed(MASK)), judge.of(Changed(np.ones(5, dtype=bool)))
    wanted: list[list[float]] = []
    items = [
        load_items(spec, game.checkpoint.tokenizer, game.masked.skeleton, items=12, tokens=60, seed=3) for spec in specs
    ]
    for change in (lambda: game.checkpoint.model, lambda: pruned(game)):
        net, right = change(), []
        for choices in items:
            characters = iter(choices.layout.characters)
            for group, label in zip(choices.groups, choices.layout.labels, strict=True):
                sums = []
                for option in group:
                    ids = torch.tensor([option.tokens])
                    logs = net(ids, use_cache=False).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                    sums.append(float(logs[option.start - 1 :].double().sum()) / next(characters))
                right.append(float(np.argmax(sums) == label))
        wanted.append(right)
    assert [full.tolist(), own.tolist()] == wanted
    assert len(own) == 24
    assert 0 < own.mean() < 1


@torch.no_grad()
def test_continuations_are_as_long_as_greedy_decoding_agrees(game: ModelGame, specs: list[str]) -> None:
    judge = ContinuationJudge(game, [game], 3)
    found = judge.of(Changed(MASK))
    prompts = game.calibration.ids[:, :12]

    def said(net: Any) -> torch.Tensor:
        ids = prompts
        for _ in range(12):
            ids = torch.cat([ids, net(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        return ids[:, 12:]

    expected = said(game.checkpoint.model)
    assert judge.of(Changed(np.ones(5, dtype=bool))).tolist() == [1, 1, 1]
    texts = load_texts(game, specs, len(specs) * 12 * 24)
    other = compensate("ghosted", game, MASK, texts)
    assert judge.of(Changed(MASK, other.patches, other.maps)).tolist() != found.tolist()
    same = said(pruned(game)) == expected
    wanted = [float(np.cumprod(row).sum()) / 12 for row in same.numpy()]
    assert found.tolist() == wanted
    assert 0 < max(wanted) < 1


@pytest.fixture(scope="module")
def compared(model: str, specs: list[str]) -> Comparison:
    return compare(
        model,
        calibration=specs[0],
        texts=["builtin-heldout"],
        remove=[2],
        methods=["sleb", "flap", "reverse"],
        compensations=["ghosted", "replaceme"],
        repair_text=specs,
        repair_tokens=1024,
        items=8,
        continuations=2,
        windows=3,
        tokens=16,
        text_windows=4,
    )


def test_rows_of_a_comparison(compared: Comparison) -> None:
    record = compared.record
    json.dumps(record, allow_nan=False)
    assert [row.label for row in compared.rows] == [
        *("sleb", "sleb + ghosted", "sleb + replaceme", "flap", "reverse", "reverse + ghosted", "reverse + replaceme"),
    ]
    assert [row["compensation"] and row["compensation"]["plain"] for row in record["rows"]] == [
        None, False, True, None, None, False, True,
    ]  # fmt: skip
    by_label = {row.label: row for row in compared.rows}
    assert by_label["flap"].judged == {}
    assert record["full"]["judged"]["continuations"]["mean"] == 1
    plain, ghosted = by_label["reverse"], by_label["reverse + ghosted"]
    assert ghosted.removed == plain.removed
    assert ghosted.texts[1].window_nll.tolist() != plain.texts[1].window_nll.tolist()
    assert ghosted.texts[1].p_unrepaired is not None
    values = [row.judged["items"].values for row in (ghosted, plain)]
    assert [len(one) for one in values] == [8, 8]
    assert ghosted.judged["items"].p_unrepaired == (paired(*values).p or 1)
    # The best of those with something behind the choice, and of those without, each at its size.
    for compensated in (False, True):
        rows = [row for row in compared.rows if row.compensated == compensated and row.judged]
        best = max(row.judged["items"].values.mean() for row in rows)
        assert all(row.judged["items"].p_best == 1 for row in rows if row.judged["items"].values.mean() == best)


def test_what_is_ahead_counts_fits_and_documents(model: str, specs: list[str], game: ModelGame) -> None:
    seen: list[Any] = []
    compare(
        model,
        texts=[specs[1]],
        remove=[1],
        methods=["reverse"],
        compensations=["ghosted", "prune_comp"],
        repair_text=specs,
        repair_tokens=512,
        items=4,
        continuations=2,
        windows=3,
        tokens=24,
        text_windows=2,
        on_ahead=seen.append,
    )
    own = 3 * 24
    every = sum(
        ids.numel() for text in load_texts(game, specs, 512).texts for ids in (text.fit, text.choice, text.check)
    )
    assert seen[0].repair_passes == pytest.approx(2 * every / own)
    items = ItemJudge(game, [specs[1]], 4, seed=0).tokens
    # Three models, on the other text and the documents; the searched one again for the two that something follows.
    passes = (3 * (2 * 24 + items + 2 * 2 * 24) + 2 * own) / own
    assert seen[0].text_passes == pytest.approx(passes * 4 / 5)


def test_they_are_shown(compared: Comparison) -> None:
    console = Console(width=220, record=True, file=io.StringIO())
    show_comparison(compared, console)
    printed = console.export_text()
    page = Page(comparison_page(compared.record)).text
    for row in compared.rows:
        assert row.label in printed
        assert row.label in page
        for one in row.judged.values():
            assert f"{one.values.mean():.3f} ± " in printed
            assert f"{number(one.values.mean())} ± " in page
    assert "items" in printed
    assert "Continuations" in page


def test_on_the_command_line(model: str, specs: list[str], run: Run, tmp_path: Path) -> None:
    """Finished rows are kept by all that they depend on: another compensation, and other items, are found again."""
    store = tmp_path / "store"
    arguments = ["compare", model, "--remove", 1, "--methods", "reverse", "--windows", 2, "--tokens", 16]
    arguments += ["--eval", specs[0], "--eval-windows", 2, "--repair-text", specs[1], "--repair-tokens", 512]
    arguments += ["--store", store, "--json"]
    status, printed, said = run(*arguments, "--compensate", "prune_comp", "--items", 3)
    assert status == 0
    first = json.loads(printed)["rows"]
    assert [row["compensation"] and row["compensation"]["name"] for row in first] == [None, "prune_comp"]
    assert "; items 0." in said
    assert f"{len(first) - 1} rows, 1 of them kept" not in said
    again = json.loads(run(*arguments, "--compensate", "prune_comp", "--items", 3)[1])["rows"]
    assert again == first
    more = json.loads(run(*arguments, "--compensate", "prune_comp,ghosted", "--items", 3)[1])["rows"]
    assert [row["seconds"] for row in more[:2]] == [row["seconds"] for row in first]
    other = json.loads(run(*arguments, "--compensate", "prune_comp", "--items", 4)[1])["rows"]
    assert [row["judged"]["items"]["documents"] for row in other] == [4, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--compensate", "ghostly"], "unknown compensation 'ghostly': did you mean 'ghosted'? there are replaceme,"),
        (["--items", 5], "items are cut from texts that no search sees: name one with --eval"),
        (["--items", 10**9, "--eval", "builtin-heldout"], "--items 1000000000: from 0 to 100,000 items can be cut"),
        (["--continuations", 10**9], "--continuations 1000000000: from 0 to 1,000 prompts of each text"),
        (["--repair-text", "builtin"], "needs --repair or --compensate"),
    ],
)
def test_wrong_requests(model: str, run: Run, options: list[Any], said: str) -> None:
    status, printed, error = run("compare", model, "--remove", 1, "--methods", "reverse", *options)
    assert (status, printed) == (2, "")
    assert said in " ".join(error.split())

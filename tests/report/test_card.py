"""Model cards: what `huggingface_hub` reads from them, what is said, and READMEs of users that are not lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_models import save_tiny

from layercoop_fast import prune
from layercoop_fast.errors import RequestError
from layercoop_fast.report.base_model import Base
from layercoop_fast.report.card import CARD, card_files, is_own_card, model_card, write_card
from layercoop_fast.report.card_sections import PAPER

ASKED: dict[str, Any] = {
    "calibration": "builtin", "windows": 2, "tokens": 24, "remove": 2, "method": "ppl", "measure_cost": False,
    "samples": 0, "heldout": "builtin-heldout", "report": False, "repair": False,
}  # fmt: skip
README = (
    "---\nlicense: other\nlicense_name: my-own.license\nlicense_link: LICENSE\nlanguage:\n- en\n- de\n- 3\n"
    "pipeline_tag: text-generation\nbase_model: some/thing\n---\n# Base\n"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("card") / "models--org--base/snapshots/abc")
    (folder / "README.md").write_text(README)
    (folder / "LICENSE").write_text("my terms")
    return folder


@pytest.fixture(scope="module")
def pruned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "smaller"
    prune(str(base), folder, **ASKED)
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "layercoop.json").read_text())
    return record


def test_the_hub_reads_what_prune_wrote(pruned: Path) -> None:
    data = ModelCard.load(pruned / "README.md").data
    assert data.base_model == "org/base"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.license, data.license_name, data.license_link) == ("other", "my-own.license", "LICENSE")
    assert data.language == ["en", "de"]
    assert {"layercoop_fast", "pruned"} <= set(data.tags)
    (result,) = data.eval_results
    assert result.metric_type == "perplexity"
    assert result.metric_value == round(record_of(pruned)["heldout"]["ppl"]["pruned"], 4)
    assert (pruned / "LICENSE").read_text() == "my terms"


def test_it_says_what_went_and_what_that_costs(pruned: Path) -> None:
    text, record = (pruned / "README.md").read_text(), record_of(pruned)
    first, second = record["removed"]
    assert f"| {first}-{second} |" in text or f"| {first},{second} |" in text
    assert f"| method | `{record['method']}` |" in text
    for part in (record, record["heldout"]):
        assert f"{part['ppl']['full']:.2f} | {part['ppl']['pruned']:.2f} |" in text
    assert 'from_pretrained("smaller")' in text
    assert str(pruned.parent) not in text  # no paths of this machine
    assert "on 24 tokens the logits are the same bit for bit" in text
    assert is_own_card(text)


def test_what_other_records_hold(pruned: Path) -> None:
    record = copy.deepcopy(record_of(pruned))
    cost = {"params": 1234, "weight_bytes": 5e6, "kv_bytes_per_token": 3, "peak_memory_bytes": None}
    cost |= {"prefill_tok_s": 12.345, "decode_tok_s": 6.0}
    record.update(
        model="/home/someone/my|model",
        removed=["1.mlp"],
        kept=[0, "1.attn", 2],
        cost={"full": cost, "pruned": cost},
        repair={"kept": True, "tokens": 4096},
        hosts=[{"host": "vLLM", "problem": "it refuses this", "inherited": True}],
        calibration={"spec": "/home/someone/private.txt"},
    )
    record["ppl"]["unrepaired"] = None
    text = model_card(record, "x", Base())
    for said in (
        "without one half of 1 of its 3 layers,",
        "1.mlp",
        "`my|model`",
        "written as zeros",
        "closed form, on 4,096 tokens",
        "12.3 | 12.3 |",
    ):
        assert said in text
    assert "- vLLM: it refuses this (as of the base model)" in text
    assert "| not measured |" in text
    assert "/home/someone" not in text
    assert "layercoop-fast cut" not in text  # the repair is in the weights
    assert "base_model" not in yaml.safe_load(text.split("---")[1])
    record.update(quantised="nf4", heldout=None, removed=[])
    record["ppl"] = {"full": 3.0, "pruned": None, "unquantised": 4.0}
    text = model_card(record, "x", Base())
    assert "nf4" in yaml.safe_load(text.split("---")[1])["tags"]
    assert "| quantised afterwards | nf4 |" in text
    assert "model-index" not in text
    with pytest.raises(RequestError, match="a model card cannot be made of it"):
        model_card({"schema": 1}, "x", Base())


def test_a_readme_of_the_user_is_not_lost(base: Path, pruned: Path, tmp_path: Path) -> None:
    card, out = (pruned / "README.md").read_text(), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text(card)
    assert list(card_files("new", out)) == ["README.md"]  # a card of ours is replaced, without a word
    mine = card.replace("# smaller", "# my own words")
    (out / "README.md").write_text(mine)
    with pytest.warns(UserWarning, match=f"it stays, and the new card is {CARD}"):
        prune(str(base), out, force=True, **ASKED)
    assert (out / "README.md").read_text() == mine
    assert is_own_card((out / CARD).read_text())
    assert record_of(out)["removed"] == record_of(pruned)["removed"]


def test_the_command_writes_it_again(pruned: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "copy"
    folder.mkdir()
    record = {**record_of(pruned), "model": "gone"}
    (folder / "layercoop.json").write_text(json.dumps(record))
    status, said, _ = run("card", folder, "--base-model", "org/base", "--license", "apache-2.0", "--json")
    assert (status, json.loads(said)["out"]) == (0, str(folder / "README.md"))
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.license) == ("org/base", "apache-2.0")
    write_card(folder)  # what was said once stays
    assert ModelCard.load(folder / "README.md").data.base_model == "org/base"
    for option, value in (("--base-model", "nothing"), ("--license", "a b")):
        status, _, error = run("card", folder, option, value)
        assert (status, error.count("\n"), option in error) == (2, 1, True)
    assert run("card", tmp_path)[0] == 2


@pytest.mark.parametrize(
    "readme",
    ["", "no metadata", "---\n[1, 2]\n---\n", "---\na: [\n---\n", "---\nlicense: [x]\nlanguage: 5\n---\n", "\x00\xff"],
)
def test_metadata_of_others_are_not_trusted(readme: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(readme, encoding="latin-1")
    assert Base.of(str(tmp_path)) == Base()


def test_names_of_the_hub() -> None:
    assert Base.of("org/name").id == "org/name"
    assert Base.of("name").id is None
    assert Base.of("/nowhere/org/name").id is None


def test_an_unreadable_target_is_one_line(tmp_path: Path) -> None:
    assert list(card_files("x", tmp_path / "nothing")) == ["README.md"]


def test_the_citation_is_that_of_the_package() -> None:
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())["references"][0]
    record = {"model": "m", "removed": [0], "kept": [1], "method": "x", "calibration": {"spec": "s"}}
    text = model_card({**record, "ppl": {"full": None, "pruned": None}}, "x", Base())
    assert f"title = {{{cited['title']}}}" in text
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in cited["authors"]) in text
    assert cited["identifiers"][0]["value"] == PAPER

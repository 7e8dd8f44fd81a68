"""Model cards: what `huggingface_hub` reads from them, what is said, and READMEs of users that are not lost."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
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
from layercoop_fast.report.html.record import spec_name

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
    changed = (out / CARD).read_text().replace("# out", "# more of my words")
    (out / CARD).write_text(changed)
    with pytest.warns(UserWarning, match="both stay, and no new one is written"):
        assert card_files("new", out) == {"README.md": mine.encode(), CARD: changed.encode()}
    with pytest.raises(RequestError, match="remove or rename one of them"):
        write_card(out)
    (out / "README.md").unlink()
    write_card(out)
    assert is_own_card((out / "README.md").read_text())
    assert (out / CARD).read_text() == changed


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a file of Linux that cannot be read")
def test_an_unreadable_target_is_one_line(tmp_path: Path) -> None:
    assert list(card_files("x", tmp_path / "nothing")) == ["README.md"]
    (tmp_path / "README.md").symlink_to("/proc/self/mem")  # a file whose first byte is at no address
    with pytest.raises(RequestError, match=r"README\.md cannot be read: Input/output error"):
        card_files("x", tmp_path)


HEALED: dict[str, Any] = {
    "kept": True, "reason": None, "teacher": "/home/someone/full", "tokens": 1234567, "train": "all",
    "nll": {"/home/someone/mails.txt": {"before": 3.0, "after": 2.0}, "builtin": {"before": 2.5, "after": None}},
}  # fmt: skip


def test_the_card_of_a_healed_model_says_so(pruned: Path) -> None:
    record = copy.deepcopy(record_of(pruned))
    assert "layercoop-fast cut" in model_card(record, "x", Base())
    assert "compared with the masked base model before" in model_card(record, "x", Base())
    for part in (record, record["heldout"]):
        part["ppl"] = {"full": 3.0, "pruned": None, "unhealed": 12.5}
    record["healing"] = HEALED
    text = model_card(record, "x", Base())
    assert "| healing | distillation from the base model (all), 1,234,567 tokens |" in text
    assert "| held-out text | 3.00 | 12.50 |" in text
    assert "| perplexity on held-out windows of | before healing | after |" in text
    assert "| mails.txt | 20.09 | 7.39 |" in text
    assert "| builtin | 12.18 | not finite |" in text
    assert "compared with the healed model in memory before" in text
    assert "layercoop-fast cut" not in text  # the base's blocks are not healed
    assert "/home/someone" not in text
    (result,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert result["dataset"]["name"] == "mails.txt (held-out windows)"
    assert result["metrics"][0]["value"] == 7.3891
    quantised = model_card({**record, "quantised": "nf4"}, "x", Base())
    assert "| before healing | after, before quantisation |" in quantised
    assert "compared with the quantised model in memory before" in quantised
    assert "model-index" not in quantised
    record["healing"] = {**HEALED, "kept": False, "reason": "/home/someone/mails.txt is worse"}
    text = model_card(record, "x", Base())
    assert "| healing | none: mails.txt is worse |" in text
    assert "compared with the pruned model in memory before" in text
    assert "layercoop-fast cut" in text
    assert "/home/someone" not in text


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("builtin", "builtin"),
        ("/home/me/a.txt + clients/acme/mails.txt", "a.txt + mails.txt"),
        ("self:/home/me/p.jsonl", "self:p.jsonl"),
        ("ppl:wikitext2=/home/me/f", "ppl:wikitext2=f"),
        ("ppl:c4=hf:/home/me/set", "ppl:c4=hf:set"),
        ("hf:/home/me/set", "hf:set"),
        ("hf:./set/train", "hf:train"),
        ("hf:Salesforce/wikitext/wikitext-2-v1", "hf:Salesforce/wikitext/wikitext-2-v1"),
    ],
)
def test_specs_without_folders_of_this_machine(spec: str, shown: str) -> None:
    assert spec_name(spec) == shown


def test_a_data_set_in_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert spec_name("hf:clients/acme") == "hf:acme"


def test_a_relative_folder_is_no_repository_of_a_stranger(pruned: Path, base: Path, tmp_path: Path) -> None:
    """`models/llama` that was pruned elsewhere has the form of a name of the hub."""
    record = {**record_of(pruned), "model": "models/llama"}
    assert Base.of_record({**record, "base_model": None}).id is None
    assert Base.of_record({**record, "base_model": "org/base"}).id == "org/base"
    assert Base.of_record({**record, "base_model": 3}).id is None
    assert Base.of_record({"model": str(base), "base_model": None}) == replace(Base.of(str(base)), id=None)
    del record["base_model"]
    assert Base.of_record(record) == Base()  # of an older version, which did not say
    (tmp_path / "layercoop.json").write_text(json.dumps({**record, "base_model": "org/base"}))
    write_card(tmp_path, base_model="org/moved")
    write_card(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "org/moved"


def test_the_citation_is_that_of_the_package() -> None:
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())["references"][0]
    record = {"model": "m", "removed": [0], "kept": [1], "method": "x", "calibration": {"spec": "s"}}
    text = model_card({**record, "ppl": {"full": None, "pruned": None}}, "x", Base())
    assert f"title = {{{cited['title']}}}" in text
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in cited["authors"]) in text
    assert cited["identifiers"][0]["value"] == PAPER

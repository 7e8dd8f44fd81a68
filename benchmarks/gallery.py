"""Write docs/gallery.md and the reports beside it: checkpoints pruned from the small real model, each by one command.

    python benchmarks/gallery.py --work FOLDER [--dtype float32]

The checkpoints stay in FOLDER. A command whose checkpoint is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine
from small_model import small_model

from layercoop_fast.files import written_whole

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = ("--calibration", "builtin", "--heldout", "builtin-heldout", "--windows", "6", "--repair-tokens", "8192")


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the gallery.

    Attributes:
        folder: that it is written to.
        asked: what is asked of `prune`, besides the texts.
        about: what it shows.
    """

    folder: str
    asked: tuple[str, ...]
    about: str


ENTRIES = (
    Entry("minus-3", ("--remove", "3"), "a tenth of the blocks"),
    Entry("minus-6", ("--remove", "6"), "a fifth of them"),
    Entry("minus-10", ("--remove", "10"), "a third of them"),
    Entry(
        "published",
        ("--remove", "6", "--method", "shortgpt", "--no-repair"),
        "six blocks by a rule of one pass, no repair",
    ),
)

_HEAD = """# Gallery

Written by `python benchmarks/gallery.py`; no row is by hand.

## Notebooks

- [Prune and look](../examples/prune_and_look.ipynb): a model is pruned, and shows itself.
- [A game of your own](../examples/a_game_of_your_own.ipynb): any function of masks is a game.
- [Serve and switch masks](../examples/serve_and_switch_masks.ipynb): one copy of the weights, a mask a request.

## Pruned checkpoints

SmolLM2-135M-Instruct, {machine}, on two short texts that come with Python. Masks are chosen on one of them
({windows}); the other is text that no search has seen. The full model has perplexities of {full}. The
minutes are those of all that `prune` does, its proof, samples and costs included, while other programs ran. With longer
texts choices are surer and repairs stronger: [performance](performance.md#search) has those.

"""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    model = small_model()
    if not (work / model.name).exists():
        (work / model.name).symlink_to(model)
    for entry in ENTRIES:
        if not (work / entry.folder).exists():
            subprocess.run(command(entry, model.name, arguments.dtype), cwd=work, check=True)
    records = [json.loads((work / entry.folder / "layercoop.json").read_text("utf-8")) for entry in ENTRIES]
    (DOCS / "gallery").mkdir(exist_ok=True)
    for entry in ENTRIES:
        shutil.copyfile(work / entry.folder / "report.html", DOCS / "gallery" / f"{entry.folder}.html")
    with written_whole(DOCS / "gallery.md", force=True) as part:
        part.write_text(page(records), encoding="utf-8")


def command(entry: Entry, model: str, dtype: str) -> list[str]:
    """What is run, in the folder of the checkpoints."""
    asked = [*entry.asked, *TEXTS, *([] if dtype == "auto" else ["--dtype", dtype])]
    return [sys.executable, "-m", "layercoop_fast", "prune", model, *asked, "--out", entry.folder]


def page(records: Sequence[dict[str, Any]]) -> str:
    """The page. `records` holds each checkpoint's `layercoop.json`."""
    first = records[0]
    windows = f"{first['calibration']['windows']} windows of {first['calibration']['tokens']} tokens"
    full = f"{first['ppl']['full']:.1f} and {first['heldout']['ppl']['full']:.1f}"
    here = machine()
    head = _HEAD.format(machine=f"{here['processor']}, {here['cores']} cores", windows=windows, full=full)
    rows = [
        "| | removed | perplexity, chosen on | unseen | unseen, unrepaired | parameters | weights | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [_row(entry, record) for entry, record in zip(ENTRIES, records, strict=True)]
    commands = "\n".join(f"    {record['command']}" for record in records)
    return f"{head}{chr(10).join(rows)}\n\nEach name leads to the report of its folder. The commands:\n\n{commands}\n"


def _row(entry: Entry, record: dict[str, Any]) -> str:
    unseen = record["heldout"]["ppl"]
    cost = record["cost"]
    cells = [
        f"[{entry.folder}](gallery/{entry.folder}.html), {entry.about}",
        ", ".join(str(unit) for unit in record["removed"]),
        f"{record['ppl']['pruned']:.1f}",
        f"{unseen['pruned']:.1f}",
        f"{unseen['unrepaired']:.1f}" if "unrepaired" in unseen else "",
        f"{cost['pruned']['params'] / cost['full']['params']:.1%}".replace("%", " %"),
        f"{cost['pruned']['weight_bytes'] / 1e6:.0f} MB",
        f"{sum(record['seconds'].values()) / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

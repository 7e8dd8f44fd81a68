"""Repair and healing by each kind of what is trained, alone and together: time, perplexities, items, continuations.

    python benchmarks/healing/combinations.py --calibration novels.txt --eval jargon.txt --out combinations.json
        [--eval encyclopedia.txt] [--remove 6] [--tokens 65536] [--train all,head+last:3,lora:16,norms]

Texts are those of curve.py. A row is a checkpoint: pruned, or pruned and repaired, and then trained on so many tokens
or not. Its columns: seconds of training (opening and writing apart; the teacher's tokens come from the disk, and are
put there before the first row), tokens a second, perplexity on each text, accuracy on items cut from the texts of kinds
never seen (a stretch and four continuations, the likelihood of each by its length), and continuations: the share of 64
greedy tokens before the first that differs from the full model's, the mean over prompts of all texts. Ends in Markdown.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from curve import Texts, add_text_options, pruned, save

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import LayerSkipModel, ModelGame, heal

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 48, 64  # of each text
ITEMS, ITEM_TOKENS = 150, 60


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_text_options(parser)
    parser.add_argument("--remove", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--train", default="all,head+last:3,lora:16,norms")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    result: dict[str, Any] = {
        "benchmark": "healing/combinations",
        "machine": machine(),
        "model": model.rstrip("/").rsplit("/", 1)[-1],
        "removed": arguments.remove,
        "tokens": arguments.tokens,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = Texts(arguments, folder, model)
        judge = Judge(texts, model, arguments.eval)
        rows: list[dict[str, Any]] = result["rows"]
        rows.append({"repair": False, "train": "(full model)", **judge.of(model)})
        for start in ("unrepaired", "repaired"):
            cut = folder / start
            pruned(model, cut, texts, remove=arguments.remove, repair=start == "repaired", method="sleb")
            rows.append({"repair": start == "repaired", "train": "-", **judge.of(str(cut))})
            asked: dict[str, Any] = {
                "text": texts.read,
                "tokens": arguments.tokens,
                "cache_teacher": folder / "teacher",
            }
            asked |= {"watch_every": arguments.tokens, "report": False}
            if start == "unrepaired":  # to put the teacher's tokens on the disk
                heal(cut, model, folder / "unused", **{**asked, "train": "norms"})
            for train in arguments.train.split(","):
                out = folder / f"{start}-{train}".replace(":", "-")
                done = heal(cut, model, out, train=train, **asked)
                row = {"repair": start == "repaired", "train": train, "seconds": round(done.record["seconds"], 1)}
                row["tokens_a_second"] = round(done.record["tokens"] / done.record["seconds"], 1)
                rows.append({**row, **judge.of(str(out))})
                save(result, arguments.out)
    save(result, arguments.out)
    sys.stdout.write(table(rows) + "\n")


class Judge:
    """What a checkpoint is worth.

    Args:
        texts: that perplexities are of.
        model: the full model.
        unseen: SPECs of kinds never seen.
    """

    def __init__(self, texts: Texts, model: str, unseen: list[str]) -> None:
        self._texts, self._unseen = texts, unseen
        self._prompts = [ids[:PROMPTS, :PROMPT_TOKENS].tolist() for ids in texts.windows.values()]
        self._expected = self._said(model)

    def of(self, folder: str) -> dict[str, Any]:
        """The columns of a row."""
        found: dict[str, Any] = {
            "perplexity": {name: round(math.exp(nll), 2) for name, nll in self._texts.nll(folder).items()}
        }
        found["items"] = {Path(spec).name: self._items(folder, spec) for spec in self._unseen}
        same = [
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))
            for one, other in zip(self._said(folder), self._expected, strict=True)
        ]
        found["continuations"] = round(float(np.mean(same)) / NEW_TOKENS, 4)
        return found

    def _said(self, folder: str) -> list[list[int]]:
        model = LayerSkipModel.from_pretrained(folder)
        prompts = [prompt for each in self._prompts for prompt in each]
        answers = model.generate(prompts, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        assert isinstance(answers, list)
        return [list(answer.tokens) for answer in answers]

    def _items(self, folder: str, spec: str) -> float:
        how = {"utility": "accuracy_norm", "windows": ITEMS, "tokens": ITEM_TOKENS}
        with closing(ModelGame.from_pretrained(folder, spec, **how)) as game:
            return round(float(game(np.ones((1, game.n_players), dtype=bool))[0]), 4)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    texts, items = list(rows[0]["perplexity"]), list(rows[0]["items"])
    head = ["repair", "trained", "s", "tokens/s", *texts, *(f"items, {name}" for name in items), "continuations"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = ["yes" if row["repair"] else "no", row["train"]]
        cells += [row.get(name, "-") for name in ("seconds", "tokens_a_second")]
        cells += [*row["perplexity"].values(), *row["items"].values(), row["continuations"]]
        lines.append([str(cell) for cell in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()

"""What healing regains against tokens, from repaired and unrepaired checkpoints, on kinds of text seen and unseen.

    python benchmarks/healing/curve.py --calibration novels.txt --eval jargon.txt --minutes 20 --out curve.json
        [--eval encyclopedia.txt] [--remove 6,10] [--starts repaired,unrepaired] [--train all] [--tokens N]

encyclopedia.txt is what `benchmarks/encyclopedia.py` writes. Layers are chosen on --windows windows of 128 tokens.

The first four fifths of the calibration text are searched, repaired and trained on; its last fifth, and the last
fifths of the standard library's three kinds of text, are unseen text of the kinds trained on, and so is
`builtin-heldout`, which shares no topic with `builtin`. Each --eval SPEC is of a kind never seen. The regained share of
a text is

    (NLL of the pruned, unrepaired model − NLL of the healed one) / (NLL of the pruned one − NLL of the full model)

so that a repair alone has a share too. Tokens saved by the repair: those after which healing of the unrepaired model
reaches the mean NLL of the seen kinds that the repaired one starts from (linear between looks; "more than" where it
does not get there). Everything is written to --out after every look, so that a run can be stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import heal, prune
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.files import written_whole
from layercoop_fast.healing.reading import Reader
from layercoop_fast.healing.watching import mean_nll
from layercoop_fast.progress import Bars
from layercoop_fast.texts.calibration import load_calibration, read_text

BUILTIN = ("builtin", "builtin-docstrings", "builtin-code")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_text_options(parser)
    parser.add_argument("--remove", default="6,10")
    parser.add_argument("--starts", default="repaired,unrepaired")
    parser.add_argument("--method", default="sleb")
    parser.add_argument("--windows", type=int, default=10, help="of 128 tokens, to search on")
    parser.add_argument("--train", default="all")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--watch-every", type=int, default=32_768)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = arguments.model or str(small_model())
    result: dict[str, Any] = {
        "benchmark": "healing/curve",
        "machine": machine(),
        "model": model.rstrip("/").rsplit("/", 1)[-1],
        "train": arguments.train,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder, Bars() as bars:
        texts = Texts(arguments, Path(folder), model)
        result["full"] = texts.nll(model)
        for size in map(int, arguments.remove.split(",")):
            unrepaired: dict[str, float] = {}
            for start in ("unrepaired", "repaired"):
                cut = Path(folder) / f"{start}-{size}"
                options: dict[str, Any] = {"method": arguments.method, "windows": arguments.windows, "tokens": 128}
                pruned(model, cut, texts, remove=size, repair=start == "repaired", on_progress=bars.update, **options)
                before = texts.nll(str(cut))
                unrepaired = unrepaired or before
                run: dict[str, Any] = {"removed": size, "start": start, "nll": before, "curve": []}
                run["kinds"] = [spec for spec, name in texts.name_of.items() if name in texts.kinds_seen]
                run["regained"] = regained(result["full"], unrepaired, before)
                result["runs"].append(run)
                save(result, arguments.out)
                if start in arguments.starts.split(","):
                    healed(run, result, texts, (model, str(cut), unrepaired), arguments, bars)
            result.setdefault("tokens_saved", {})[str(size)] = tokens_saved(result["runs"], size)
            save(result, arguments.out)
    sys.stdout.write(json.dumps(result) + "\n")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """The options that `Texts` reads, and the model."""
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--eval", action="append", default=[], help="SPEC of a kind never seen; repeatable")
    parser.add_argument("--eval-windows", type=int, default=40)


def pruned(model: str, out: Path, texts: Texts, *, repair: bool, **options: Any) -> None:
    """Write a pruned checkpoint, repaired or not; masks that were measured for one beside it are not measured again."""
    prune(
        model,
        out,
        calibration=str(texts.seen),
        store=str(out.parent / "masks.store"),
        repair=repair,
        repair_text=texts.read if repair else None,
        measure_cost=False,
        samples=0,
        **options,
    )


class Texts:
    """The texts that are trained on and those that are measured on; their NLL by name under a model."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, model: str) -> None:
        self.seen, *rest = self._split(str(arguments.calibration), arguments.calibration.stem, folder)
        self.library: list[Path] = []
        measured = {f"{arguments.calibration.stem}, unseen part": str(rest[0])}
        for spec in BUILTIN:
            first, last = self._split(spec, spec, folder)
            self.library.append(first)
            measured[f"{spec}, unseen part"] = str(last)
        self.kinds_seen = [*measured, "builtin-heldout"]
        measured["builtin-heldout"] = "builtin-heldout"
        measured |= {Path(spec).name: spec for spec in arguments.eval}
        self.name_of = {spec: name for name, spec in measured.items()}
        tokenizer = AutoTokenizer.from_pretrained(model)
        skeleton = Skeleton(AutoModelForCausalLM.from_pretrained(model))
        self.windows = {
            name: load_calibration(spec, tokenizer, skeleton, windows=arguments.eval_windows).ids
            for name, spec in measured.items()
        }

    @property
    def read(self) -> list[str]:
        """SPECs of the texts that are trained on."""
        return [str(self.seen), *map(str, self.library)]

    @staticmethod
    def _split(spec: str, name: str, folder: Path) -> tuple[Path, Path]:
        """The first four fifths of a text and its last fifth."""
        text = read_text(spec)
        border = text.index("\n", len(text) * 4 // 5)
        paths = folder / f"{name}.txt", folder / f"{name}-unseen.txt"
        for path, part in zip(paths, (text[:border], text[border:]), strict=True):
            path.write_text(part, encoding="utf-8")
        return paths

    def nll(self, folder: str) -> dict[str, float]:
        """Mean NLL of every text under a checkpoint, in nats a token."""
        reader = Reader(AutoModelForCausalLM.from_pretrained(folder).eval())
        return {name: mean_nll(reader, ids) for name, ids in self.windows.items()}


def healed(
    run: dict[str, Any],
    result: dict[str, Any],
    texts: Texts,
    places: tuple[str, str, dict[str, float]],
    arguments: argparse.Namespace,
    bars: Bars,
) -> None:
    """Heal, looking at all texts on the way, and measure what was written."""
    model, cut, unrepaired = places

    def on_look(point: dict[str, Any]) -> None:
        run["curve"].append(point)
        save(result, arguments.out)
        told = ", ".join(f"{texts.name_of[spec]} {nll:.3f}" for spec, nll in point["watched"].items())
        bars.say(
            f"{run['removed']} removed, {run['start']}: {point['tokens']:,} tokens, {point['seconds']:.0f} s: {told}"
        )

    done = heal(
        cut,
        model,
        f"{cut}-healed",
        text=texts.read,
        watch=list(texts.name_of),
        train=arguments.train,
        minutes=arguments.minutes,
        tokens=arguments.tokens,
        learning_rate=arguments.learning_rate,
        watch_every=arguments.watch_every,
        on_progress=bars.update,
        on_look=on_look,
    )
    run["healed"] = texts.nll(str(done.out))
    run["tokens"], run["seconds"], run["kept"] = (done.record[name] for name in ("tokens", "seconds", "kept"))
    run["regained_after"] = regained(result["full"], unrepaired, run["healed"])
    for kind, seen in (("seen", True), ("unseen", False)):
        shares = [share for text, share in run["regained_after"].items() if (text in texts.kinds_seen) == seen]
        run[f"regained_{kind}_kinds"] = round(sum(shares) / len(shares), 4) if shares else None
    save(result, arguments.out)


def regained(full: dict[str, float], cut: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The share of the lost nats that is back, of every text."""
    return {name: round((cut[name] - now[name]) / (cut[name] - full[name]), 4) for name in now}


def tokens_saved(runs: list[dict[str, Any]], size: int) -> int | str | None:
    """Tokens after which the unrepaired model is as good as the repaired one was; None where that is unknown."""
    of = {run["start"]: run for run in runs if run["removed"] == size}
    if set(of) != {"repaired", "unrepaired"} or not of["unrepaired"]["curve"]:
        return None
    kinds = of["repaired"]["kinds"]

    def mean(point: dict[str, Any]) -> float:
        return sum(point["watched"][spec] for spec in kinds) / len(kinds)

    if not of["repaired"]["curve"]:
        return None
    wanted = mean(of["repaired"]["curve"][0])
    points = [(point["tokens"], mean(point)) for point in of["unrepaired"]["curve"]]
    for (tokens, value), (later, reached) in pairwise(points):
        if reached <= wanted:
            return round(tokens + (later - tokens) * (value - wanted) / (value - reached))
    return f"more than {points[-1][0]}"


def save(result: dict[str, Any], out: Path) -> None:
    """Write what is known so far."""
    with written_whole(out, force=True) as place:
        place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

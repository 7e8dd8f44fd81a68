"""Which calibration chooses masks that hold on other texts: text × tokens × objective × method.

    python benchmarks/search/study_calibration.py --novels novels.txt [--remove 6] [--tokens 1000,4000,16000]
    python benchmarks/search/study_calibration.py --model TINY --texts docs,self --tokens 192 --window 32 --remove 2

The texts are novels (a file that is given), docs (the language reference that the standard library ships), self (what
the model writes) and a mixture of those three in equal parts, which share the tokens out, so that every text costs the
same. The objectives are ppl (ratio), kl (divergence from the full model) and choice (the margin of the true one of four
continuations, of items cut from the text; neither from what the model writes nor from a mixture). `worst` (of the
mixture's texts; of one text that is ppl) can be asked for too.

Every choice is judged by what the NLL of the pruned model rises by on text that no calibration has seen: the second
half of the novels, of which the first alone is calibrated on, the held-out half of the docs, the model's own words from
another seed, and files given with --judge. A row says what that is on each (`rise`), on the mean of all (`all`), on the
worst, and on the mean of those of a kind that was not calibrated on (`foreign`; a mixture has only --judge there),
in nats a token. Methods of one row of the table share what they measure, so `full_tokens` (of the full model) is what
each added to those before it. A judge that defaults are chosen by is no longer one that nothing was tuned on.

Prints a table, row by row, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import ModelGame
from layercoop_fast.engine.loading import open_checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.game.opening import load_text
from layercoop_fast.game.options import GameOptions
from layercoop_fast.search.base import finite_or_none, get_method

OBJECTIVES = {"ppl": "ppl_ratio", "kl": "kl", "choice": "margin", "worst": "ppl_ratio:worst"}
# The judges' own words are of another seed than those that are calibrated on.
_JUDGE_SEED = 1_000


@dataclass(frozen=True)
class Judge:
    """A text that no calibration has seen: its kind, and the game on it."""

    kind: str
    game: ModelGame


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--novels", help="a UTF-8 text file, half to calibrate on and half to judge on")
    parser.add_argument("--judge", action="append", default=[], help="a further text to judge on; several times")
    parser.add_argument("--texts", default="novels,docs,self,mixture")
    parser.add_argument("--tokens", default="1000,4000,16000", help="tokens of calibration text, over all texts")
    parser.add_argument("--window", type=int, default=128, help="tokens a window")
    parser.add_argument("--objectives", default="ppl,kl,choice")
    parser.add_argument("--methods", default="coop,sleb,shortgpt")
    parser.add_argument("--remove", default="6")
    parser.add_argument("--judge-windows", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.novels is None and "novels" in arguments.texts:
        parser.error("--novels names the file of novels; or leave novels out of --texts")
    with tempfile.TemporaryDirectory() as folder:
        result = study(arguments, Path(folder))
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")


def study(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows, and what they were measured on."""
    path = arguments.model or str(small_model())
    checkpoint = open_checkpoint(path, dtype=arguments.dtype, device=arguments.device)
    skeleton = Skeleton(checkpoint.model)
    specs = {"docs": "builtin", "self": "self"}
    judged = {"docs": "builtin-heldout", "self": "self"}
    if arguments.novels is not None:
        specs["novels"], judged["novels"] = halves(Path(arguments.novels), folder)
    judged |= {Path(text).name: text for text in arguments.judge}

    def game_on(spec: str | list[str], utility: str, windows: int, seed: int) -> ModelGame:
        options = GameOptions(utility=utility, windows=windows, tokens=arguments.window, seed=seed)
        text = load_text(spec, checkpoint.tokenizer, skeleton, options)
        return ModelGame(checkpoint, text, skeleton=skeleton, utility=utility)

    judges = [
        Judge(kind, game_on(spec, "nll", arguments.judge_windows, arguments.seed + _JUDGE_SEED))
        for kind, spec in judged.items()
    ]
    full = np.ones((1, judges[0].game.n_players), np.bool_)
    base = {judge.kind: float(judge.game.evaluate(full).nll[0]) for judge in judges}
    sizes = [int(size) for size in arguments.remove.split(",")]
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for text in arguments.texts.split(","):
        kinds = sorted(specs) if text == "mixture" else [text]
        for tokens in map(int, arguments.tokens.split(",")):
            windows = max(1, round(tokens / arguments.window / len(kinds)))
            for objective in arguments.objectives.split(","):
                try:
                    given = [specs[kind] for kind in kinds]
                    game = game_on(
                        given if len(given) > 1 else given[0], OBJECTIVES[objective], windows, arguments.seed
                    )
                except RequestError as error:
                    left_out.append(f"{text}, {tokens} tokens, {objective}: {error}")
                    continue
                for size in sizes:
                    for method in arguments.methods.split(","):
                        about = {"text": text, "tokens": tokens, "objective": objective, "method": method}
                        try:
                            found = choose(game, method, size, arguments.seed)
                        except RequestError as error:
                            left_out.append(f"{text}, {tokens} tokens, {objective}, {method}: {error}")
                            continue
                        rows.append(
                            {**about, "remove": size, **found, **verdict(found["removed"], judges, base, kinds)}
                        )
                        show(rows[-1])
                game.masked.windows.free()
    return {
        "benchmark": "search/calibration",
        "machine": machine(),
        "model": path.rstrip("/").rsplit("/", 1)[-1],
        "dtype": arguments.dtype,
        "device": arguments.device,
        "window": arguments.window,
        "judges": {judge.kind: [judge.game.masked.windows.n_windows, round(base[judge.kind], 4)] for judge in judges},
        "left_out": left_out,
        "means": means(rows),
        "rows": rows,
    }


def halves(path: Path, folder: Path) -> tuple[str, str]:
    """Two files with the halves of a text, cut at a line where it has any."""
    text, made = path.read_text(encoding="utf-8-sig"), []
    middle = text.rfind("\n", 0, len(text) // 2 + 1) + 1 or len(text) // 2
    for name, part in (("first", text[:middle]), ("second", text[middle:])):
        target = folder / f"{name}.txt"
        target.write_text(part, encoding="utf-8")
        made.append(str(target))
    return made[0], made[1]


def choose(game: ModelGame, method: str, size: int, seed: int) -> dict[str, Any]:
    """What a method removes, and what finding it cost beyond what the game knows from the methods before."""
    before, started = game.evaluations.token_evals, time.perf_counter()
    choice = get_method(method)(game, size, seed=seed)
    return {
        "removed": np.flatnonzero(~choice.mask).tolist(),
        "runner_up_better": choice.details.get("runner_up_better"),
        "full_tokens": round((game.evaluations.token_evals - before) / game.masked.skeleton.n_layers),
        "seconds": round(time.perf_counter() - started, 2),
    }


def verdict(removed: list[int], judges: list[Judge], base: dict[str, float], kinds: list[str]) -> dict[str, Any]:
    """What the NLL rises by on every judge, and on the mean of the foreign ones and of all."""
    mask = np.ones((1, judges[0].game.n_players), np.bool_)
    mask[0, removed] = False
    rises = {judge.kind: float(judge.game.evaluate(mask).nll[0]) - base[judge.kind] for judge in judges}
    foreign = [rise for kind, rise in rises.items() if kind not in kinds]
    return {
        "rise": {kind: finite_or_none(round(rise, 4)) for kind, rise in rises.items()},
        "foreign": finite_or_none(round(float(np.mean(foreign)), 4)) if foreign else None,
        "all": finite_or_none(round(float(np.mean(list(rises.values()))), 4)),
        "worst": finite_or_none(round(max(rises.values()), 4)),
    }


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean of `all` over the rows with each text, number of tokens, objective and method, at the sizes asked for.

    Objectives are compared on the texts, tokens, methods and sizes that every one of them has, and so are the others:
    a mean over other rows would compare those.
    """
    found: dict[str, dict[str, float | None]] = {}
    axes = ("text", "tokens", "objective", "method")
    for axis in axes:
        others = [name for name in (*axes, "remove") if name != axis]
        cells: dict[str, dict[tuple[Any, ...], float]] = {}
        for row in rows:
            if row["all"] is not None:
                cells.setdefault(str(row[axis]), {})[tuple(row[name] for name in others)] = row["all"]
        common = set.intersection(*map(set, cells.values())) if cells else set()
        found[axis] = {
            level: round(float(np.mean([row[key] for key in common])), 4) if common else None
            for level, row in cells.items()
        }
    return found


def show(row: dict[str, Any]) -> None:
    """Print one row of the table, as soon as it is there."""
    rises = " ".join(f"{kind} {rise if rise is None else round(rise, 3)}" for kind, rise in row["rise"].items())
    about = f"{row['text']:<8}{row['tokens']:>6} {row['objective']:<7}{row['method']:<9}{row['remove']:>3}"
    gone = " ".join(map(str, row["removed"]))
    sys.stdout.write(f"{about}  foreign {row['foreign']}  all {row['all']}  [{rises}]  {row['seconds']} s  {gone}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

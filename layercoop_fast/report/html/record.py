"""What the sections read in `layercoop.json`, and how they say its numbers."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.files import RECORD
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import is_flat, read_json

Record = dict[str, Any]
SCHEMA = 1
# Half the width of a 95 % interval in standard errors.
NORMAL_95 = 1.96
# What may stand before a path in a SPEC (`texts/calibration.py`).
_SOURCES = re.compile(r"(?:ppl:[^=/]*=)?(?:hf:|self:)?")
_BY_TOKEN = ("ppl_ratio", "nll", "kl")


def load_record(folder: Path) -> Record:
    """The record in a folder that `prune` wrote. `RequestError` where there is none or it is something else."""
    path = folder / RECORD
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder: give the folder that `prune` wrote, which holds {RECORD}")
    if not path.is_file():
        raise RequestError(f"{folder} holds no {RECORD}: give the folder that `prune` wrote")
    record = read_json(path, hint="`prune` writes it again")
    if not isinstance(record, dict) or "schema" not in record:
        raise RequestError(f"{path} is not a record of `prune`: it has no schema")
    if record["schema"] != SCHEMA:
        raise RequestError(f"{path} has schema {reprlib.repr(record['schema'])}: this version reads {SCHEMA}")
    n = record.get("n_players", 1)  # whoever needs it says where it is missing
    if type(n) is not int or not 1 <= n <= MAX_PLAYERS:
        raise RequestError(f"{path} is about {reprlib.repr(n)} players: records are of 1 to {MAX_PLAYERS:,}")
    if not is_flat(record):
        raise RequestError(f"{path} is not a record of `prune`: its values lie too deep in each other")
    return record


def model_name(record: Record) -> str:
    """The last part of the model's path or hub name."""
    return str(record["model"]).rstrip("/").rsplit("/", 1)[-1]


def spec_name(spec: str) -> str:
    """A SPEC, or several with " + " between, with the last part alone of what may be a path of this machine.

    A data set of the hub (`hf:ORG/NAME`) keeps its name, unless that is a folder here.
    """
    return " + ".join(map(_without_folders, spec.split(" + ")))


def _without_folders(spec: str) -> str:
    prefix = _SOURCES.match(spec)[0]  # type: ignore[index]  # it matches the empty text too
    name = spec[len(prefix) :]
    on_disk = name.startswith(("/", ".", "~")) or os.path.exists(name)
    return spec if prefix.endswith("hf:") and not on_disk else prefix + name.rstrip("/").rsplit("/", 1)[-1]


def player_names(record: Record) -> list[str]:
    """A name for each player: "7" for a layer, "7.attn" for half of one, "7+8" for a group."""
    n, kind = int(record["n_players"]), record["players"]
    if kind == "sublayers":
        return [f"{player // 2}.{('attn', 'mlp')[player % 2]}" for player in range(n)]
    if kind == "groups":
        return ["+".join(map(str, group)) for group in json.loads(record["fingerprints"]["players"])]
    return [str(player) for player in range(n)]


def removed_players(record: Record) -> list[int]:
    """The players that went."""
    gone = set(map(str, record["removed"]))
    return [player for player, name in enumerate(player_names(record)) if set(name.split("+")) <= gone]


def utility(record: Record) -> str:
    """Name of the worth that was searched on."""
    return str(record.get("fingerprints", {}).get("utility", "worth"))


def loss_unit(record: Record) -> str:
    """Unit of losses: what a mask lies below the full model."""
    return "nats a token" if utility(record) in _BY_TOKEN else "of log worth, or worth"


def value_unit(record: Record) -> str:
    """Unit of the scores of players."""
    if record["method"] == "coop":
        return loss_unit(record)
    return "of worth" if record["method"] == "official" else f"score of {record['method']}"


@dataclass(frozen=True)
class Fit:
    """The surrogate that `coop` leaves: loss(R) = Σ a_i + Σ b_ij over the removed players R, and how sure it is.

    Attributes:
        values: Shapley value of each player, [n].
        pairs: b, [n][n], symmetric with a zero diagonal.
        errors: standard errors of `pairs`, [n][n].
    """

    values: list[float]
    pairs: list[list[float]]
    errors: list[list[float]]

    @classmethod
    def of(cls, record: Record) -> Fit | None:
        """What the record holds of it, or None."""
        details = record.get("details") or {}
        scores = record.get("scores")
        if not scores or "interactions" not in details or None in scores:
            return None
        return cls(scores, *(_square(details[name]) for name in ("interactions", "interactions_stderr")))

    def alone(self, player: int) -> float:
        """Loss by removing this player and no other."""
        return self.values[player] - 0.5 * sum(self.pairs[player])

    def marginal(self, player: int, others: int) -> float:
        """Mean loss by removing this player after `others` of the others, whichever they are."""
        return self.alone(player) + others / max(len(self.values) - 1, 1) * sum(self.pairs[player])

    def marginal_without(self, player: int, removed: list[int]) -> float:
        """Loss by removing this player after the others of `removed`."""
        return self.alone(player) + sum(self.pairs[player][other] for other in removed if other != player)


def _square(triangle: list[list[float | None]]) -> list[list[float]]:
    n = len(triangle)
    full = [[0.0] * n for _ in range(n)]
    for row, values in enumerate(triangle):
        for offset, value in enumerate(values):
            column = row + 1 + offset
            full[row][column] = full[column][row] = 0.0 if value is None else value
    return full


@dataclass(frozen=True)
class Step:
    """The best mask that the method found with this number of players removed; None where not known.

    `chosen` is the model that was written; where it is `repaired`, it follows the step of its mask without repair.
    """

    n_removed: int
    removed: list[int]
    worth: float | None
    ppl: float | None
    chosen: bool = False
    repaired: bool = False

    def params(self, record: Record) -> int | None:
        """Parameters that are used."""
        known = record.get("params")
        return None if not known else known["full"] - sum(known["players"][player] for player in self.removed)


def path(record: Record) -> list[Step]:
    """The full model, the masks on the way where the method names them, the chosen one, and that repaired."""
    chosen = removed_players(record)
    steps = [Step(0, [], record["worth"]["full"], record["ppl"]["full"])]
    details = record.get("details") or {}
    # Losses on more windows are never shown next to losses on the first ones.
    grown = len((details.get("settled") or {}).get("steps", [])) > 1
    for step in [] if grown else details.get("path", []):
        if 0 < step["n_removed"] < len(chosen) and step["loss"] is not None:
            steps.append(Step(step["n_removed"], step["removed"], *of_loss(record, step["loss"])))
    greedy = list(zip(details.get("greedy_order", []), details.get("greedy_worths", []), strict=True))
    for i, (_, worth) in enumerate(greedy[: len(chosen) - 1]):
        steps.append(Step(i + 1, [player for player, _ in greedy[: i + 1]], *_of_worth(record, worth)))
    repaired = "unrepaired" in record["ppl"]
    if repaired:
        steps.append(Step(len(chosen), chosen, record["worth"]["unrepaired"], record["ppl"]["unrepaired"]))
    written = Step(
        len(chosen), chosen, of_pruned(record["worth"]), of_pruned(record["ppl"]), chosen=True, repaired=repaired
    )
    return [*steps, written]


def of_pruned(figures: Record) -> float | None:
    """A figure of the pruned model, as it was measured before healing where it was healed since."""
    found: float | None = figures.get("unhealed", figures["pruned"])
    return found


def is_searchs_own(record: Record) -> bool:
    """Whether what went is what the search chose; more windows, or a repair, may have led to another finalist."""
    searched = (record.get("details") or {}).get("path") or []
    return not searched or sorted(searched[-1]["removed"]) == removed_players(record)


def of_loss(record: Record, loss: float) -> tuple[float | None, float | None]:
    """Worth and perplexity of a mask that lies so far below the full model."""
    kind, full, ppl = utility(record), record["worth"]["full"], record["ppl"]["full"]
    if kind in ("ppl_ratio", "nll") and ppl is not None and loss < 700:
        worth = math.exp(-loss) * full if kind == "ppl_ratio" else full - loss
        return worth, ppl * math.exp(loss)
    return (full - loss, None) if kind == "kl" else (None, None)


def _of_worth(record: Record, worth: float | None) -> tuple[float | None, float | None]:
    """A worth and the perplexity that it means."""
    kind, ppl = utility(record), record["ppl"]["full"]
    if worth is None or ppl is None or record["method"] == "finercut":
        return None, None  # finercut goes by a divergence of its own
    if kind == "ppl_ratio" and worth > 0:
        return worth, ppl / worth
    if kind == "nll" and -worth < 700:
        return worth, math.exp(-worth)
    return worth, None

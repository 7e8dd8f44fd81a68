"""Whether workers are alike: their worths are to be the same bits whoever measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layercoop_fast.errors import RequestError

_MACHINE = ("processor", "gpu")


def likeness(report: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree between the reports of workers: the game, its numerics, and the machine."""
    game = dict(report["fingerprints"])
    numerics = game.pop("numerics")
    return {**game, **numerics, **report["machine"]}


def common_fingerprints(reports: Mapping[int, Mapping[str, Any]], *, tolerant: bool) -> dict[str, Any]:
    """The fingerprints of the game that all these workers (by their places) measure.

    Where machines or versions differ and `tolerant` allows it, what differs is called "mixed". Raises `RequestError`
    where it does not, and where they measure different games in any case.
    """
    first = reports[min(reports)]
    expected = likeness(first)
    unlike: dict[str, str] = {}
    for place, report in sorted(reports.items()):
        for key, value in likeness(report).items():
            if value != expected[key] and key not in unlike:
                unlike[key] = (
                    f"{key} is {expected[key]} on {first['host']}, but {value} for worker {place} on {report['host']}"
                )
    fingerprints = dict(first["fingerprints"])
    numerics = dict(fingerprints["numerics"])
    if other := sorted(unlike.keys() - numerics.keys() - set(_MACHINE)):
        raise RequestError(f"the workers do not measure one game: {unlike[other[0]]}")
    if unlike and not tolerant:
        raise RequestError(
            f"the workers are unlike each other: {'; '.join(unlike.values())}. Their worths would differ by rounding: "
            "take machines that are alike, or pass tolerant=True, which the fingerprints then say"
        )
    numerics.update({key: "mixed" for key in unlike if key in numerics})
    if machines := sorted(unlike.keys() & set(_MACHINE)):
        numerics["machines"] = f"mixed: {', '.join(machines)}"
    return {**fingerprints, "numerics": numerics}

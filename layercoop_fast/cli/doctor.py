"""`layercoop-fast doctor`: what was found in a model."""

from __future__ import annotations

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, Model, print_json
from layercoop_fast.game.options import GameOptions

_OPTIONS = ("dtype", "device", "windows", "tokens", "blocks", "trust_remote_code")


@expanded(only=_OPTIONS)
def doctor(model: Model, options: GameOptions, as_json: AsJson = False) -> None:
    """Print what was found in a model: blocks, their arguments and results, the head, and how many states fit."""
    from layercoop_fast.report.doctor import examine
    from layercoop_fast.report.tables import show_findings

    found = examine(model, **{name: getattr(options, name) for name in _OPTIONS})
    if as_json:
        print_json(found)
    else:
        show_findings(found)

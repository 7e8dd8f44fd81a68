from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from layercoop_fast.game.utility import Utility
from layercoop_fast.pruning.request import PruneRequest
from layercoop_fast.pruning.rerun import rerun_command


def test_what_is_not_a_default_is_said() -> None:
    request = PruneRequest(
        remove=3, drop=None, memory=2**30, offload=True, measure_cost=False, share_context=False, seed=0,
        store=Path("s.sqlite"), score_every=4, keep=[],
    )  # fmt: skip
    command = rerun_command("my model", "o'ut", request)
    assert command is not None
    assert shlex.split(command) == [
        "layercoop-fast", "prune", "my model", "--out", "o'ut", "--remove", "3", "--no-share-context",
        "--score-every", "4", "--store", "s.sqlite", "--memory", str(2**30), "--offload", "--no-cost",
    ]  # fmt: skip


def test_every_option_it_can_say_is_one_of_the_command(run) -> None:  # type: ignore[no-untyped-def]
    switches = {"offload": True, "force": True, "tolerant": True, "trust_remote_code": True, "measure_cost": False}
    values = {"remove": 1, "calibration": "builtin-heldout", "players": "sublayers", "blocks": "a.b", "shots": 1}
    more = {"method": "ppl", "budget": 3, "heldout": "self", "utility": "kl", "windows": 2, "tokens": 3, "seed": 7}
    rest = {"dtype": "float32", "device": "cuda:9", "block_path": "hf", "samples": 0, "report": False, "workers": 2}
    asked: dict[str, Any] = {**switches, **values, **more, **rest}
    command = rerun_command("/nowhere/at-all", "out", PruneRequest(**asked))
    status, _, error = run(*shlex.split(command or "")[1:])
    assert status == 2
    assert "No such option" not in error


def test_labels_are_said_at_once_and_texts_one_by_one() -> None:
    """An option of labels is one string to the command, of which the last would win; one of texts is a list."""
    asked = PruneRequest(keep=["0", "3.attn"], must_go=[1, 4], calibration=["a.txt:2", "b.txt"])
    command = rerun_command("m", "o", asked)
    expected = "--calibration a.txt:2 --calibration b.txt --keep 0,3.attn --must-go 1,4"
    assert command == f"layercoop-fast prune m --out o {expected}"


def test_what_no_command_can_say() -> None:
    own = Utility("mine", False, lambda nll, kl, full: -nll)
    assert rerun_command("m", "o", PruneRequest(remove=1, utility=own)) is None
    assert rerun_command("m", "o", PruneRequest(remove=1, players=[[0], [1]])) is None

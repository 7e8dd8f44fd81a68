"""Messages of the library name parameters; whoever typed a command reads options."""

from __future__ import annotations

from typing import Any

import pytest

from layercoop_fast.cli.app import commands
from layercoop_fast.cli.messages import as_typed, options_of

OPTIONS = options_of(commands)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("keep_first=3 and keep_last=-1 do not fit", "--keep-first 3 and --keep-last -1 do not fit"),
        ("offload= reads plain weights: leave it out", "--offload reads plain weights: leave it out"),
        ("costs= belongs to speedup=: leave it out", "--costs belongs to --speedup: leave it out"),
        ("in one way (remove=3), or (fit=2GiB)", "in one way (--remove 3), or (--fit 2GiB)"),
        ("try dtype=float32.", "try --dtype float32."),
        ("costs='x' is not known", "--costs 'x' is not known"),
        ("pass force=True to replace it", "pass --force to replace it"),
        ("with repair=False, or share_context=False", "with --no-repair, or --no-share-context"),
        ("with offload=False", "with no --offload"),
        ("measure_cost=False, texts=", "--no-cost, --eval"),
        ("LAYERCOOP_THREADS=0, nonsense=3, 2 == 2 and `ray start --address=x`", None),
        ("the folder /tmp/seed=3/store=4 is not there", None),
        ("unknown utility 'seed=5'", None),
        ("https://hub/x?name=foo&source=bar is not there", None),
    ],
)
def test_parameters_become_options(said: str, read: str | None) -> None:
    assert as_typed(said, OPTIONS) == (said if read is None else read)


def test_the_users_own_words_stay() -> None:
    typed = ["evaluate", "--masks", "memory=4.npy", "--drop=1.5", "--out", "seed="]
    assert as_typed("memory=4.npy cannot be read", OPTIONS, typed) == "memory=4.npy cannot be read"
    assert as_typed("drop=1.5 is not a share", OPTIONS, typed) == "--drop 1.5 is not a share"
    assert as_typed("memory=4.npy.store holds another game", OPTIONS, typed) == "memory=4.npy.store holds another game"
    assert as_typed("seed= is about drawing", OPTIONS, typed) == "--seed is about drawing"


def test_every_command_says_its_options(run: Any, tmp_path: Any) -> None:
    status, _, error = run("prune", tmp_path, "--out", tmp_path / "out", "--drop", 1.5)
    assert (status, error) == (2, "layercoop-fast: --drop 1.5 is not a share between 0 and 1\n")

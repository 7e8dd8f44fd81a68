"""How much `plan` lays out at most."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from layercoop_fast.cli import plan as module


def test_masks_times_layers_are_what_is_bounded(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MASK_BITS", 100)
    status, _, line = run("plan", "--layers", 4, "--masks", 26)
    assert (status, "26 masks of 4 layers are too many to lay out: at most 25" in line) == (2, True)
    assert run("plan", "--layers", 4, "--masks", 25)[0] == 0

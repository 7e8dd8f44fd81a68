"""Tests of two workers run on a machine of one processor too, where a user is refused a second one."""

from __future__ import annotations

import pytest

from layercoop_fast.system import machine


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    found = max(2, machine.processors())
    monkeypatch.setattr(machine, "processors", lambda: found)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from close import noise

from layercoop_fast.kernels.gpu import tuning
from layercoop_fast.kernels.gpu.frame import recorded
from layercoop_fast.kernels.gpu.swiglu import CONFIGS, launch_gated


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_decided", {})
    return tmp_path


def run(device: str = "cpu") -> None:
    launch_gated(noise(3, 32).to(device), torch.empty(3, 16, device=device), gelu=False)


def test_the_fastest_is_remembered(cache: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(call) -> float:
        with recorded() as launches:
            call()
        return {"wide": 1.0, "narrow": 2.0}[launches[0].config.name]

    found = tuning.tune(lambda: run(device), clock=clock)
    assert found == {"gated 16 False": "wide"}
    assert json.loads(tuning.table_path().read_text()) == found
    # The interpreter keeps to the rule; a device does not.
    assert tuning.chosen("gated", (16, False), CONFIGS, "narrow").name == ("narrow" if device == "cpu" else "wide")
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    assert tuning.chosen("gated", (16, False), CONFIGS, "narrow").name == "wide"
    assert tuning.chosen("gated", (17, False), CONFIGS, "narrow").name == "narrow"


def test_a_choice_is_looked_up_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch costs the host some microseconds; the name of a device and a file's path cost tens of them."""
    asked = []
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: asked.append(1) or "none")
    for _ in range(3):
        assert tuning.chosen("gated", (18, False), CONFIGS, "narrow").name == "narrow"
    assert len(asked) == 1


@pytest.mark.parametrize("content", ["", "[1]", '{"gated 16 False": 3}', '{"gated 16 False": "gone"}'])
def test_a_broken_table_is_no_table(cache: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: f"broken {len(content)}")
    tuning.table_path().parent.mkdir(parents=True)
    tuning.table_path().write_text(content)
    assert tuning.chosen("gated", (16, False), CONFIGS, "narrow").name == "narrow"

"""The layer board in a browser, as people use it: by mouse and by keyboard, wide and narrow, light and dark.

With LAYERCOOP_TEST_PICTURES=FOLDER each view is kept there as a picture, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from tiny_models import save_tiny
from tiny_server import L, Server, serving

from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.serving.board import Predictions

pytestmark = pytest.mark.slow
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
PICTURES = os.environ.get("LAYERCOOP_TEST_PICTURES")


def measured() -> Worths:
    """Block 1 is worth most, block 0 least."""
    masks = all_masks(L)[1:]
    worths = masks @ np.array([0.1, 0.5, 0.2, 0.4, 0.3])
    return Worths(masks, worths, -worths, -worths[:, None], np.array([1]), {"utility": "nll", "players": "layers"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = save_tiny(tmp_path_factory.mktemp("board") / "tiny", n_layers=L, max_position_embeddings=512)
    with serving(folder, predictions=lambda model: Predictions(measured(), L)) as found:
        yield found


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    width, height, scheme = request.param
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        found = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        said: list[str] = []
        found.on("console", lambda message: said.append(message.text))
        found.on("pageerror", lambda error: said.append(str(error)))
        found.goto(server.url)
        found.wait_for_selector("#blocks .block")
        yield found
        assert [line for line in said if "400 (Bad Request)" not in line] == []
        assert found.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
        if PICTURES:
            found.screenshot(path=Path(PICTURES) / f"board-{width}.png", full_page=True)
        browser.close()


def reads(page: Any, name: str, text: str) -> None:
    page.locator(f"#{name}", has_text=text).wait_for(timeout=20_000)


def test_switching_blocks_by_mouse_and_by_keyboard(page: Any, server: Server) -> None:
    page.get_by_role("button", name="block 1", exact=True).click()
    reads(page, "removed", "1")
    assert float(page.text_content("#predicted")) == pytest.approx(1.0, abs=0.2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    reads(page, "removed", "1,2.attn")
    reads(page, "predicted", "–")  # worths of halves were not measured
    assert page.get_by_role("button", name="block 2 attn").get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Undo").click()
    reads(page, "removed", "1")
    reads(page, "command", "--mask 1")
    page.get_by_role("button", name="Keep all").click()
    reads(page, "removed", "nothing")


def test_the_best_mask_is_found_and_measured(page: Any) -> None:
    page.fill("#size", "2")
    page.get_by_role("button", name="Find it").click()
    reads(page, "removed", "0,2")
    page.get_by_role("button", name="Measure").click()
    reads(page, "ratio", ".")
    page.fill("#size", "7")
    page.get_by_role("button", name="Find it").click()
    reads(page, "error", "7")


def test_two_masks_write_side_by_side(page: Any) -> None:
    page.select_option("#other", "tiny:fast")
    page.fill("#tokens", "12")
    page.get_by_role("button", name="Write").click()
    reads(page, "rate0", "tokens/s")
    reads(page, "rate1", "tokens/s")
    reads(page, "othername", "tiny:fast")
    assert page.text_content("#text0")
    assert page.text_content("#text1")

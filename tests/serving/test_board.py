"""The page at `/`, and what it asks the server for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_server import L, Server, serving

from layercoop_fast.errors import RequestError
from layercoop_fast.game.worths import Worths
from layercoop_fast.masks.stratified import all_masks
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.board import Predictions

WORTH = np.array([0.1, 0.5, 0.2, 0.4, 0.3])


def additive() -> Worths:
    """Worths that are sums over blocks, plus what blocks 1 and 3 are worth together."""
    masks = all_masks(L)[1:]
    worths = masks @ WORTH + 0.2 * masks[:, 1] * masks[:, 3]
    return Worths(masks, worths, -worths, -worths[:, None], np.array([1]), {"utility": "nll", "players": "layers"})


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, predictions=lambda model: Predictions(additive(), L)) as found:
        yield found


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    response = server.http.get("/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert len(response.content) < 100_000
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", response.text)


def test_what_a_mask_costs_and_is_expected_to_be_worth(server: Server, direct: LayerSkipModel) -> None:
    told = server.post("/board/mask", {"halves": [3, 0, 3, 3, 0]}).json()
    assert told["removed"] == "1,4"
    assert told["predicted"] == pytest.approx(0.1 + 0.2 + 0.4, abs=0.02)
    assert told["parameters"] == direct.size(direct.mask(np.array([3, 0, 3, 3, 0], np.uint8))).parameters
    assert server.post("/board/mask", {"halves": [3, 1, 3, 3, 3]}).json()["predicted"] is None  # blocks were measured


def test_values_and_the_best_mask_are_those_of_the_surrogate(server: Server) -> None:
    about = server.http.get("/board/about").json()
    assert (about["layers"], about["by_halves"], about["utility"]) == (L, False, "nll")
    values = np.array(about["values"])[:, 0]
    assert np.argsort(values).tolist() == np.argsort(WORTH + np.array([0, 0.1, 0, 0.1, 0])).tolist()
    best = server.post("/board/best", {"remove": 2}).json()
    assert best["halves"] == [0, 3, 0, 3, 3]
    assert best["predicted"] == pytest.approx(0.5 + 0.4 + 0.3 + 0.2, abs=0.05)


def test_measuring_is_what_the_model_says_of_the_text(server: Server, direct: LayerSkipModel) -> None:
    told = server.post("/board/measure", {"halves": [3] * L}).json()
    assert told["ratio"] == 1.0
    assert 0 < told["nll"] < 20
    half = server.post("/board/measure", {"halves": [3, 3, 1, 3, 3]}).json()
    assert half["ratio"] == pytest.approx(math.exp(told["nll"] - half["nll"]))
    assert server.at_rest()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("mask", {"halves": [3]}),
        ("mask", {"halves": [0] * L}),
        ("mask", {"halves": [4] * L}),
        ("mask", {"halves": []}),
        ("measure", {"halves": ["a"] * L}),
        ("measure", {}),
        ("best", {"remove": 0}),
        ("best", {"remove": 9}),
    ],
)
def test_what_the_page_would_not_ask(server: Server, path: str, body: object) -> None:
    response = server.post(f"/board/{path}", body)
    assert response.status_code == 400
    assert "message" in response.json()["error"]


def test_worths_of_another_model_are_refused() -> None:
    with pytest.raises(RequestError, match="5 players"):
        Predictions(additive(), 7)

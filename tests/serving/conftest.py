"""Shared by the server's tests: a tiny model, one server a module, and a look at what is left after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import save_tiny
from tiny_server import L, Server, serving

from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.options import Access


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serving") / "tiny", n_layers=L, max_position_embeddings=512)


@pytest.fixture(scope="session")
def direct(folder: Path) -> LayerSkipModel:
    """The same model, asked without a server."""
    return LayerSkipModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, access=Access(admin_keys=("admin",))) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the module's server is at rest."""
    yield
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").at_rest()

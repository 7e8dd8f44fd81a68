"""Names of masks: limited in number, the one not used for longest leaves, and the server's own stay."""

from __future__ import annotations

import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.serving.failures import RefusedError
from layercoop_fast.serving.masks import NamedMasks


@pytest.fixture
def masks(direct: LayerSkipModel) -> NamedMasks:
    return NamedMasks(direct, "base", {"own": "0"}, most=2)


def names(masks: NamedMasks) -> list[str]:
    return [each.model for each in masks.all()]


def test_the_least_recently_used_name_makes_room(masks: NamedMasks) -> None:
    for name in ("a", "b"):
        assert masks.add(name, "1")[1] == []
    masks.find("base:a")
    mask, left = masks.add("c", "2")
    assert [each.model for each in left] == ["base:b"]
    assert names(masks) == ["base", "base:own", "base:a", "base:c"]
    assert masks.text(mask) == "2"


def test_a_name_holds_one_mask(masks: NamedMasks) -> None:
    masks.add("a", "1")
    assert masks.add("a", [True, False, True, True, True])[0].model == "base:a"
    with pytest.raises(RefusedError, match="another mask") as found:
        masks.add("a", "2")
    assert found.value.status == 409
    with pytest.raises(RefusedError) as found:
        masks.add("own", "1")
    assert found.value.status == 409


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "a b", ".a", "x" * 65, "unnamed", "é"])
def test_names_that_are_none(masks: NamedMasks, direct: LayerSkipModel, name: str) -> None:
    with pytest.raises(RefusedError) as found:
        masks.add(name, "1")
    assert found.value.status == 400
    with pytest.raises(RequestError, match="name"):
        NamedMasks(direct, "base", {name: "1"}, 2)


def test_masks_that_cannot_run(masks: NamedMasks, direct: LayerSkipModel) -> None:
    for mask in ("0-4", "7", "a", [True], [1, 0], None, {"x": 1}, "full,1"):
        with pytest.raises(RefusedError) as found:
            masks.unnamed("base", mask)
        assert (found.value.status, found.value.param) == (400, "layer_mask")
    with pytest.raises(RequestError, match="removes every block"):
        NamedMasks(direct, "base", {"none": "0-4"}, 2)
    assert names(masks) == ["base", "base:own"]

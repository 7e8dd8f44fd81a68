"""Units by fast blocks and by the model's own modules, as the scheduler runs them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.units import FastUnits, GeneralUnits
from layercoop_fast.masked.windows import Windows


def windows_of(family: str, *, n_layers: int = 3, windows: int = 3, tokens: int = 20, **config: object) -> Windows:
    ids = torch.randint(3, 256, (windows, tokens), generator=torch.Generator().manual_seed(0))
    return Windows(Skeleton(FAMILIES[family](n_layers=n_layers, **config)), ids)


def states_of(windows: Windows, count: int) -> list[Tensor]:
    with torch.inference_mode():
        return list(torch.stack([windows.context(1).embedding * (1 + index) for index in range(count)]))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("block_path", ["auto", "hf"])
def test_states_are_read_and_written_where_they_lie(family: str, block_path: str) -> None:
    windows = windows_of(family)
    units = make_units(windows, block_path=block_path)
    assert units.path == ("fast" if block_path == "auto" and family != "gpt2" else "hf")
    states = states_of(windows, 4)
    before = [state.clone() for state in states]
    with torch.inference_mode():
        expected = [windows.context(1).run(1, state) for state in before]
        units.run(1, [states[0], states[2]], [states[0], states[3]])
    for found, wanted in ((states[0], expected[0]), (states[3], expected[2])):
        assert float((found - wanted).norm() / wanted.norm()) < (1e-6 if units.path == "fast" else 1e-20)
    assert torch.equal(states[1], before[1])
    assert torch.equal(states[2], before[2]), "a source that is no target changed"


@pytest.mark.parametrize("block_path", ["auto", "hf"])
def test_halves_one_after_the_other_are_the_block(block_path: str) -> None:
    windows = windows_of("qwen3")
    whole = make_units(windows, block_path=block_path)
    halves = make_units(windows, Sublayers(windows.skeleton).run, halves=True, block_path=block_path)
    assert whole.path == halves.path
    first, second, apart = states_of(windows, 2), states_of(windows, 2), states_of(windows, 2)
    half, end = states_of(windows, 2), states_of(windows, 2)
    with torch.inference_mode():
        whole.run(2, first, first)
        halves.run(4, second, second)
        halves.run(5, second, second)
        halves.run(4, apart, half)
        halves.run(5, half, end)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "in place"
    assert all(torch.equal(a, b) for a, b in zip(first, end, strict=True)), "from slot to slot"
    assert not any(torch.equal(a, b) for a, b in zip(half, end, strict=True))


def test_blocks_without_a_fast_form_run_their_own_modules() -> None:
    windows = windows_of("qwen2", n_layers=5)
    windows.skeleton.blocks[3].mlp.act_fn = torch.nn.GELU()
    units = make_units(windows)
    assert units.path == "fast but for blocks 3"
    general = GeneralUnits(windows)
    for layer in (0, 3):
        states, expected = states_of(windows, 2), states_of(windows, 2)
        with torch.inference_mode():
            units.run(layer, states, states)
            general.run(layer, expected, expected)
        assert torch.equal(states[1], expected[1]) == (layer == 3)
        torch.testing.assert_close(states[1], expected[1], rtol=1e-5, atol=1e-4)


def test_other_dtypes_have_the_general_path_only() -> None:
    windows = windows_of("llama")
    windows.skeleton.model.double()
    assert make_units(windows).path == "hf"


def test_no_weight_is_kept_alive() -> None:
    windows = windows_of("llama")
    units = make_units(windows)
    assert isinstance(units, FastUnits)
    windows.skeleton.model.to("meta")
    assert all(block is not None and block.qkv.weight.is_meta for block in units.blocks)


def test_an_unknown_block_path_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown block path 'slow': choose from auto, hf"):
        make_units(windows_of("llama"), block_path="slow")


def test_the_pool_is_allocated_once() -> None:
    windows = windows_of("llama")
    wide = windows.pool(5)
    assert wide.shape == (5, 3, 20, 48)
    assert windows.pool(2).data_ptr() == wide.data_ptr()
    assert len(windows.pool(6)) == 6
    with pytest.raises(RequestError, match=r"GiB for stored states are not free: give a smaller memory="):
        windows.pool(2**50)
    assert windows.pool(1).shape == (1, 3, 20, 48)
    windows.free()
    assert windows.pool(1).untyped_storage().nbytes() == windows.state_bytes


def test_blocks_that_share_part_of_a_joint_weight_stay_general() -> None:
    """A parameter stands in one joint matrix only: the block that was joined first has lost it."""
    model = FAMILIES["llama"](n_layers=4)
    for block in model.model.layers[1:]:
        block.mlp.gate_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    windows = Windows(Skeleton(model), torch.arange(40).view(2, 20))
    units = make_units(windows)
    assert units.path == "fast but for blocks 0,1,2"
    state = windows.context(1).embedding[:2].clone()
    with torch.inference_mode():
        expected = model(windows.ids, use_cache=False).logits
        for layer in range(4):
            units.run(layer, [state], [state])
        torch.testing.assert_close(windows.context(1).logits(state), expected, rtol=0, atol=1e-4)

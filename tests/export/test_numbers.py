"""Which numbers blocks and their parts have in a pruned model."""

from __future__ import annotations

import torch
from tiny_models import tiny_model

from layercoop_fast.export.checkpoint import _renumbered, pruned_model


def test_a_half_is_zeroed_in_the_block_it_belongs_to() -> None:
    name = "mlp.down_proj.weight"
    pruned = pruned_model(tiny_model("llama", 5), [0, 2, 4], "model.layers", {2: [name]})
    silent = [not block.get_parameter(name).any() for block in pruned.model.layers]
    assert silent == [False, True, False]


def test_what_only_the_first_block_has_goes_to_the_new_first() -> None:
    tensors = {f"b.{name}": torch.tensor(number) for number, name in enumerate(("0.norm.w", "0.x", "1.x", "2.x"))}
    found = _renumbered({**tensors, "head": torch.tensor(9)}, [1, 2], "b.", ["norm"])
    assert {name: int(tensor) for name, tensor in found.items()} == {"b.0.norm.w": 0, "b.0.x": 2, "b.1.x": 3, "head": 9}

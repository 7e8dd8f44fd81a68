"""RWKV's norm of the embedding, and its rescaling, set apart from the blocks."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from layercoop_fast.engine.first_block import only_in_first, stop_rescaling
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError


def test_the_norm_in_the_first_block_is_part_of_the_embedding() -> None:
    model = tiny_model("rwkv", 3)
    skeleton = Skeleton(model)
    assert skeleton.embedding_norm is model.rwkv.blocks[0].pre_ln
    ids = torch.arange(3, 15)[None]
    context = skeleton.context(ids)
    with torch.inference_mode():
        embedded = model.rwkv.embeddings(ids)
        assert torch.equal(context.embedding, model.rwkv.blocks[0].pre_ln(embedded))
        assert torch.equal(context.run(0, context.embedding), model.rwkv.blocks[0](embedded)[0])
        assert torch.equal(skeleton.embedding_norm(embedded), context.embedding), "it must stand in its place again"


@pytest.mark.parametrize("family", ["jamba", "bamba", "deepseek_v3"])
def test_a_first_block_of_another_kind_holds_no_such_norm(family: str) -> None:
    """The only Mamba layer is a child that the first block alone has, and is the block's own."""
    arguments = {"jamba": {"attn_layer_period": 2}, "bamba": {"attn_layer_indices": [1]}}.get(family, {})
    skeleton = Skeleton(tiny_model(family, 2, **arguments))
    assert family == "deepseek_v3" or only_in_first(skeleton.blocks) == ["mamba"]
    assert skeleton.embedding_norm is None


def test_a_model_that_ran_rescaled_gets_its_weights_back() -> None:
    fresh, used = (tiny_model("rwkv", 4, rescale_every=2) for _ in range(2))
    ids = torch.arange(3, 15)[None]
    rescaled = used(ids, use_cache=False).logits
    assert not torch.equal(used.rwkv.blocks[3].attention.output.weight, fresh.rwkv.blocks[3].attention.output.weight)
    stop_rescaling(used)
    assert all(torch.equal(a, b) for a, b in zip(used.parameters(), fresh.parameters(), strict=True))
    assert not used.training
    # The same model but for rounding and for the norms' epsilon.
    torch.testing.assert_close(used(ids, use_cache=False).logits, rescaled, rtol=1e-3, atol=1e-3)


def test_quantised_weights_that_ran_rescaled_are_refused() -> None:
    model = tiny_model("rwkv", 3, rescale_every=2)
    model(torch.arange(3, 15)[None], use_cache=False)
    model.hf_quantizer = object()
    with pytest.raises(RequestError, match="open it again"):
        stop_rescaling(model)

"""A masked pass over the skeleton is the model with the other blocks physically removed, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from torch import nn
from transformers import DynamicCache

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.export.config import prune_config

ISSUE_FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt", "gpt_neox", "mamba",
]  # fmt: skip


def random_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def masked_logits(skeleton: Skeleton, ids: torch.Tensor, kept: list[int]) -> torch.Tensor:
    context = skeleton.context(ids)
    with torch.inference_mode():
        hidden = context.embedding
        for layer in kept:
            hidden = context.run(layer, hidden)
        return context.logits(hidden)


def physically_removed(model: Any, path: str, kept: list[int]) -> Any:
    """The same model with the other blocks really taken out of its module list, and out of its config's lists."""
    smaller = copy.deepcopy(model)
    parent = smaller.get_submodule(path.rpartition(".")[0])
    blocks = getattr(parent, path.rpartition(".")[2])
    setattr(parent, path.rpartition(".")[2], nn.ModuleList([blocks[layer] for layer in kept]))
    config = prune_config(model.config, kept)
    for module in smaller.modules():
        if getattr(module, "config", None) is not None:
            module.config = config
    return smaller


@pytest.mark.parametrize("family", ISSUE_FAMILIES)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 17), (3, 24)])
def test_masked_equals_physically_removed(family: str, batch: int, tokens: int) -> None:
    model = FAMILIES[family](n_layers=6)
    skeleton = Skeleton(model)
    assert skeleton.n_layers == 6
    ids = random_ids(batch, tokens)
    rng = np.random.default_rng(batch)
    masks = [np.ones(6, bool), np.eye(6, dtype=bool)[rng.integers(6)], *(rng.random((3, 6)) < 0.6)]
    full = masked_logits(skeleton, ids, list(range(6)))
    for mask in masks:
        kept = [int(layer) for layer in np.flatnonzero(mask)]
        if not kept:
            continue
        with torch.inference_mode():
            expected = physically_removed(model, skeleton.blocks_path, kept)(input_ids=ids, use_cache=False).logits
        got = masked_logits(skeleton, ids, kept)
        assert torch.equal(got, expected), f"{family} {kept}"
        if len(kept) < 6:
            assert not torch.equal(got, full), "removing a block must be visible, or this test sees nothing"


@pytest.mark.parametrize("family", ["opt", "gemma3", "mistral"])
def test_each_batch_width_is_captured_for_itself(family: str) -> None:
    """OPT has batch-sized positions, Gemma 3 and Mistral batch-sized masks: two states side by side equal two alone."""
    skeleton = Skeleton(FAMILIES[family](n_layers=3))
    ids = random_ids(2, 20)
    alone = masked_logits(skeleton, ids, [0, 2])
    together = masked_logits(skeleton, ids.repeat(2, 1), [0, 2])
    assert torch.equal(together, torch.cat([alone, alone]))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama", 3)
    ids = random_ids(1, 16)
    before = model(input_ids=ids, use_cache=False).logits
    masked_logits(Skeleton(model), ids, [1])
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_hooks_on_blocks_are_kept_and_run() -> None:
    """accelerate puts a forward of its own on blocks, to bring them what lies on another device."""
    from accelerate import hooks

    model = FAMILIES["llama"](n_layers=2)
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    seen = []

    class Hook(hooks.ModelHook):  # type: ignore[misc, name-defined]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(module)
            return args, kwargs

    for block in model.model.layers:
        hooks.add_hook_to_module(block, Hook())
    skeleton = Skeleton(model)
    context = skeleton.context(ids)
    seen.clear()
    logits = context.logits(context.run(1, context.run(0, context.embedding)))
    assert seen == list(model.model.layers)
    assert torch.equal(logits, expected)


def test_a_failing_pass_also_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama", 3)
    skeleton = Skeleton(model)
    with pytest.raises(IndexError):
        skeleton.context(torch.full((1, 16), VOCAB_SIZE + 7))
    assert all("forward" not in vars(module) for module in model.modules())


class ChainConfig:
    """The little of a config that a skeleton asks for."""

    def __init__(self, layers: int) -> None:
        self.num_hidden_layers = layers
        self.max_position_embeddings = 64

    def get_text_config(self, decoder: bool = True) -> ChainConfig:
        return self


class Returning(nn.Module):
    """A block in the style of older families: takes its state by keyword and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, scale: torch.Tensor, hidden_states: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, hidden_states + scale * self.linear(hidden_states)


class Chain(nn.Module):
    """A causal model in miniature, whose loop over the blocks each test chooses."""

    def __init__(self, loop: Any, layers: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(32, 8)
            self.stack = nn.ModuleList([Returning() for _ in range(layers)])
            self.head = nn.Linear(8, 32)
        self.config = ChainConfig(layers)
        self.loop = loop
        self.dtype = torch.float32

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.loop(self.stack, self.embed(input_ids))
        return type("Output", (), {"logits": self.head(hidden)})()


SCALE = torch.tensor(0.5)


def plain_loop(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        hidden = block(SCALE, hidden_states=hidden)[1]
    return hidden


def rescaling_loop(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        hidden = block(SCALE, hidden_states=hidden)[1] / 2
    return hidden


def backward_loop(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    for block in reversed(blocks):
        hidden = block(SCALE, hidden_states=hidden)[1]
    return hidden


def shared_loop(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    return plain_loop(blocks, plain_loop(blocks, hidden))


@pytest.mark.parametrize("layers", [1, 4])
def test_tuples_and_keywords_are_followed(layers: int) -> None:
    model = Chain(plain_loop, layers)
    skeleton = Skeleton(model)  # type: ignore[arg-type]
    assert (skeleton.convention.takes, skeleton.convention.gives, skeleton.convention.width) == ("hidden_states", 1, 2)
    ids = torch.arange(16).view(1, 16)
    kept = list(range(0, layers, 2))
    expected = copy.deepcopy(model)
    expected.stack = nn.ModuleList([model.stack[layer] for layer in kept])
    assert torch.equal(masked_logits(skeleton, ids, kept), expected(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("loop", "message"),
    [(rescaling_loop, "computes between its blocks"), (backward_loop, "order"), (shared_loop, "order")],
)
def test_what_is_no_plain_chain_is_refused(loop: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Skeleton(Chain(loop))  # type: ignore[arg-type]


def test_a_cache_among_the_arguments_is_refused_by_its_type() -> None:
    class Holding(Returning):
        def forward(self, scale: torch.Tensor, hidden_states: torch.Tensor, memory: Any = None) -> Any:
            return super().forward(scale, hidden_states)

    def loop(blocks: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            hidden = block(SCALE, hidden_states=hidden, memory=DynamicCache())[1]
        return hidden

    model = Chain(loop)
    model.stack = nn.ModuleList([Holding() for _ in range(4)])
    with pytest.raises(RequestError, match="DynamicCache as 'memory'"):
        Skeleton(model)  # type: ignore[arg-type]


def test_the_block_list_can_be_named_by_hand() -> None:
    model = Chain(plain_loop)
    model.config.num_hidden_layers = 5
    with pytest.raises(RequestError, match=r"no list of 5 blocks .* stack \(4\)"):
        Skeleton(model)  # type: ignore[arg-type]
    assert Skeleton(model, blocks="stack").n_layers == 4  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no block list 'layers'"):
        Skeleton(model, blocks="layers")  # type: ignore[arg-type]

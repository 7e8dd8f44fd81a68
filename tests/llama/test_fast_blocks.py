from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from layercoop_fast import _C
from layercoop_fast.engine.calls import BlockCall
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.llama.block import BlockParts, find_parts
from layercoop_fast.llama.cpu_block import FastBlock, Workspace
from layercoop_fast.llama.fast_blocks import fast_block, why_not
from layercoop_fast.llama.model import find_model

# Families with a fast path. Gemma's and mistral's sliding windows are shorter than the text, qwen2's is as long.
FAST: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"sliding_window": 24},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {},
    "smollm3": {},
    "phi3": {},
    "granite": {},
    "olmo2": {},
}
TOKENS = 24


def ids_of(model: PreTrainedModel, windows: int, tokens: int = TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(windows)
    return torch.randint(model.config.vocab_size, (windows, tokens), generator=generator)


def calls_of(skeleton: Skeleton, ids: Tensor) -> list[BlockCall]:
    """The arguments that each block is called with, seen from outside."""
    calls: list[BlockCall] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(BlockCall(args, kwargs))

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in skeleton.blocks]
    with torch.inference_mode():
        skeleton.model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def fast_blocks(skeleton: Skeleton, ids: Tensor) -> list[FastBlock]:
    workspace = Workspace()
    made = []
    for block, call in zip(skeleton.blocks, calls_of(skeleton, ids), strict=True):
        assert why_not(block, call, skeleton.convention) is None
        fast = fast_block(block, call, skeleton.convention, workspace)
        assert fast is not None
        made.append(fast)
    return made


def run_all(blocks: list[FastBlock], hidden: Tensor) -> Tensor:
    with torch.inference_mode():
        for block in blocks:
            hidden = block(hidden)
    return hidden


@pytest.fixture(params=_C.isa_available())
def level(request: pytest.FixtureRequest) -> Any:
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.mark.parametrize("tokens", [1, 7, TOKENS])
@pytest.mark.parametrize("family", FAST)
def test_logits_are_those_of_hugging_face(level: str, family: str, tokens: int) -> None:
    model = tiny_model(family, n_layers=4, **FAST[family])
    skeleton = Skeleton(model)
    ids = ids_of(model, 3, tokens)
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    context = skeleton.context(ids)
    blocks = fast_blocks(skeleton, ids)
    with torch.inference_mode():
        logits = context.logits(run_all(blocks, context.embedding))
        assert torch.equal(model(ids, use_cache=False).logits, expected), "joining the weights changed the model"
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAST)
def test_bf16_is_as_close_to_fp32_as_hugging_face(family: str) -> None:
    exact_model = tiny_model(family, n_layers=4, **FAST[family])
    skeleton = Skeleton(tiny_model(family, n_layers=4, **FAST[family]).to(torch.bfloat16))
    ids = ids_of(exact_model, 2)
    with torch.inference_mode():
        # The same rounded weights in fp32: what bf16 arithmetic is measured against.
        exact_model.load_state_dict({name: value.float() for name, value in skeleton.model.state_dict().items()})
        exact = exact_model(ids, use_cache=False).logits
        theirs = skeleton.model(ids, use_cache=False).logits
        context = skeleton.context(ids)
        ours = context.logits(run_all(fast_blocks(skeleton, ids), context.embedding))
    errors = [float((logits.float() - exact).norm() / exact.norm()) for logits in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("family", FAST)
def test_a_window_does_not_depend_on_the_batch(level: str, family: str) -> None:
    skeleton = Skeleton(tiny_model(family, n_layers=2, **FAST[family]))
    ids = ids_of(skeleton.model, 7)
    blocks = fast_blocks(skeleton, ids[:1])
    embedding = skeleton.context(ids).embedding
    together = run_all(blocks, embedding)
    for windows in (1, 2, 3, 5):
        assert torch.equal(run_all(blocks, embedding[:windows].contiguous()), together[:windows])
        assert torch.equal(run_all(blocks, embedding[-windows:].contiguous()), together[-windows:])


def test_a_few_rows_are_like_many() -> None:
    skeleton = Skeleton(tiny_model("llama", n_layers=2))
    ids = ids_of(skeleton.model, 40, tokens=1)
    blocks = fast_blocks(skeleton, ids[:1])
    embedding = skeleton.context(ids).embedding
    together = run_all(blocks, embedding)
    for windows in (1, 3, 17):
        assert torch.equal(run_all(blocks, embedding[:windows].contiguous()), together[:windows])


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "olmo2", "granite"])
def test_several_states_at_once_in_place_and_not(family: str) -> None:
    skeleton = Skeleton(tiny_model(family, n_layers=2))
    ids = ids_of(skeleton.model, 2)
    block = fast_blocks(skeleton, ids)[0]
    with torch.inference_mode():
        embedding = skeleton.context(ids).embedding
        pool = torch.stack([embedding, embedding * 2, embedding * 3, embedding * 4])
        expected = [block(state) for state in pool]
        block.run([pool[0], pool[2]], [pool[0], pool[3]])
        assert torch.equal(pool[0], expected[0])
        assert torch.equal(pool[3], expected[2])
        assert torch.equal(pool[2], embedding * 3), "a source that is no target changed"
        assert torch.equal(pool[1], embedding * 2)
        block.run([], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("half", [None, "attn", "mlp"])
@pytest.mark.parametrize("rows", [[0], [TOKENS - 1], [2, 5, 8, 11, 14, 17, 20], list(range(TOKENS))])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3", "olmo2"])
def test_some_rows_alone_have_the_bits_they_have_among_all(
    family: str, dtype: torch.dtype, half: Any, rows: list[int]
) -> None:
    skeleton = Skeleton(tiny_model(family, n_layers=2).to(dtype))
    ids = ids_of(skeleton.model, 2)
    block = fast_blocks(skeleton, ids)[0]
    with torch.inference_mode():
        embedding = skeleton.context(ids).embedding
        states = [embedding, (embedding[:1] * 2).contiguous(), embedding * 3]
        whole = [torch.empty_like(state) for state in states]
        block.run(states, whole, half)
        if half is None:
            for state, result in zip(states, whole, strict=True):
                between = torch.empty_like(state)
                block.run([state], [between], "attn")
                block.run([between], [between], "mlp")
                assert torch.equal(between, result), "the halves one after the other are not the block"
        some = [torch.full_like(state, 7.0) for state in states]
        some[2].copy_(states[2])
        block.run([*states[:2], some[2]], some, half, torch.tensor(rows))  # the last one in place
        others = [row for row in range(TOKENS) if row not in rows]
        for found, expected, left in zip(some, whole, [7.0, 7.0, None], strict=True):
            assert torch.equal(found[:, rows], expected[:, rows])
            if left is not None:
                assert (found[:, others] == left).all(), "other rows were written"


def test_weights_are_shared_with_the_block() -> None:
    skeleton = Skeleton(tiny_model("qwen2", n_layers=2, **FAST["qwen2"]))
    block = skeleton.blocks[0]
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}
    ids = ids_of(skeleton.model, 2)
    fast = fast_blocks(skeleton, ids)[0]
    assert all(torch.equal(parameter, before[name]) for name, parameter in block.named_parameters())
    memory = {parameter.untyped_storage().data_ptr() for parameter in block.self_attn.q_proj.parameters()}
    assert {fast.qkv.weight.untyped_storage().data_ptr(), fast.qkv.bias.untyped_storage().data_ptr()} == memory  # type: ignore[union-attr]
    with torch.inference_mode():
        hidden = skeleton.context(ids).embedding
        for parameter in block.parameters():
            parameter.zero_()
        assert torch.equal(fast(hidden), hidden)
    again = fast_block(block, calls_of(skeleton, ids)[0], skeleton.convention, Workspace())
    assert again is None or again.qkv.weight.data_ptr() == fast.qkv.weight.data_ptr()


def test_bytes_a_row_are_what_the_workspace_holds() -> None:
    skeleton = Skeleton(tiny_model("qwen3", n_layers=2))
    block = fast_blocks(skeleton, ids_of(skeleton.model, 1))[0]
    with torch.inference_mode():
        block(skeleton.context(ids_of(skeleton.model, 5)).embedding)
    held = sum(buffer.numel() * buffer.element_size() for buffer in block.workspace._buffers.values())
    assert block.bytes_a_row * 5 * TOKENS == held


def test_a_workspace_of_many_rows_serves_few() -> None:
    skeleton = Skeleton(tiny_model("llama", n_layers=2))
    blocks = fast_blocks(skeleton, ids_of(skeleton.model, 1))
    embedding = skeleton.context(ids_of(skeleton.model, 9)).embedding
    with torch.inference_mode():
        first = blocks[0](embedding[:1].contiguous())
        blocks[0].workspace.matrix("normed", 1000, 48, torch.float32).fill_(float("nan"))
        blocks[0](embedding * float("nan"))
        assert torch.equal(blocks[0](embedding[:1].contiguous()), first)


def refused(
    family: str,
    message: str,
    *,
    layer: int = 0,
    change: Callable[[Any], Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    skeleton = Skeleton(tiny_model(family, n_layers=3).to(dtype))
    block = skeleton.blocks[layer]
    if change is not None:
        change(block)
    call = calls_of(skeleton, ids_of(skeleton.model, 2))[layer]
    reason = why_not(block, call, skeleton.convention)
    assert reason is not None
    assert message in reason
    assert fast_block(block, call, skeleton.convention, Workspace()) is None


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt2", "no attention made of q_proj"),
        ("gpt_oss", "no gated MLP made of gate_proj"),
        ("falcon_h1", "it has no post_attention_layernorm"),
    ],
)
def test_other_families_are_refused(family: str, message: str) -> None:
    refused(family, message)


def test_only_the_experts_of_a_sparse_model_are_refused() -> None:
    refused("qwen2_moe", "no gated MLP", layer=1)
    fast_blocks(Skeleton(tiny_model("qwen2_moe", n_layers=1)), torch.zeros(1, 9, dtype=torch.int64))


def test_a_mask_that_is_not_the_sliding_windows_is_refused() -> None:
    def other_window(block: Any) -> None:
        block.self_attn.sliding_window = 7

    refused("mistral", "attention_mask is neither a causal mask nor that of its sliding window", change=other_window)


@pytest.mark.parametrize(
    "config", [{"sliding_window": 7}, {"sliding_window": 7, "layer_types": ["full_attention"] * 2}]
)
def test_a_window_that_the_model_does_not_use_is_no_hindrance(config: dict[str, Any]) -> None:
    """llama reads no such setting; here its config has it all the same."""
    model = tiny_model("llama", n_layers=2)
    for name, value in config.items():
        setattr(model.config, name, value)
    skeleton = Skeleton(model)
    ids = ids_of(model, 2)
    with torch.inference_mode():
        states = run_all(fast_blocks(skeleton, ids), skeleton.context(ids).embedding)
        logits = skeleton.context(ids).logits(states)
        assert torch.allclose(logits, model(ids, use_cache=False).logits, rtol=1e-5, atol=1e-5)
    parts, _ = find_model(skeleton)
    assert parts.first.sliding_window == 0


@pytest.mark.parametrize("returned", [lambda hidden: (hidden, hidden), lambda hidden: 1 / 0])
def test_a_norm_that_does_something_else_is_refused(returned: Callable[[Any], Any]) -> None:
    """A fused norm that returns a pair, and one that fails: the block is refused, and nothing is raised."""
    skeleton = Skeleton(tiny_model("llama", n_layers=1))
    call = calls_of(skeleton, ids_of(skeleton.model, 2))[0]
    skeleton.blocks[0].input_layernorm.forward = returned
    assert "no root-mean-square norm" in str(why_not(skeleton.blocks[0], call, skeleton.convention))


def test_another_activation_is_refused() -> None:
    refused(
        "llama",
        "gated neither by SiLU nor by GELU's tanh form",
        change=lambda block: setattr(block.mlp, "act_fn", nn.GELU()),
    )


def unrotated_and_nearly_uniform(block: Any) -> None:
    """A block whose scores are so small that leaving out the rotation changes less than bf16 rounds."""
    block.self_attn.q_proj.weight.data.mul_(1e-3)
    block.self_attn.use_rope = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", lambda block: setattr(block, "residual_multiplier", 0.5)),
        ("gemma3", lambda block: setattr(block.self_attn, "attn_logit_softcapping", 0.1)),
        ("llama", lambda block: setattr(block.self_attn, "use_rope", False)),
        ("llama", unrotated_and_nearly_uniform),
    ],
)
def test_what_a_block_says_but_does_not_do_is_found_by_running_it(
    family: str, change: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    refused(family, "on random input the fast block differs from the block by", change=change, dtype=dtype)


def test_parts_are_found_as_the_configs_state_them() -> None:
    def parts_of(family: str, layer: int = 0) -> BlockParts:
        return find_parts(Skeleton(tiny_model(family, n_layers=3)).blocks[layer])

    gemma2, gemma3, phi3, granite, olmo2 = map(parts_of, ("gemma2", "gemma3", "phi3", "granite", "olmo2"))
    assert (gemma2.score_cap, gemma2.activation, gemma2.sliding_window) == (50.0, "gelu_tanh", 8)
    assert parts_of("gemma2", 1).sliding_window == 0
    assert {norm.gemma for norm in (*gemma2.norms, *gemma3.norms)} == {True}
    assert (len(gemma2.norms), len(gemma3.norms)) == (4, 6)
    assert phi3.query.module is phi3.value.module
    assert (phi3.heads, phi3.kv_heads, len(phi3.layers)) == (3, 1, 4)
    assert (granite.factor, granite.scale) == (0.6, 0.2)
    assert olmo2.attention_norm is olmo2.mlp_norm is None
    assert olmo2.joint_head_norms
    assert [parts_of("smollm3", layer).rotates for layer in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda block: block.mlp.up_proj.register_parameter("extra", nn.Parameter(torch.ones(1))), "up_proj.extra"),
        (
            lambda block: setattr(block.self_attn, "o_proj", nn.Sequential(block.self_attn.o_proj)),
            "its o_proj is a Sequential",
        ),
        (lambda block: setattr(block, "post_attention_layernorm", nn.LayerNorm(48)), "no root-mean-square norm"),
        (lambda block: setattr(block.self_attn, "scaling", 0.5), ""),
        (lambda block: setattr(block.self_attn, "scaling", -1.0), "scales its scores by -1.0"),
    ],
)
def test_changed_blocks(change: Callable[[Any], Any], message: str) -> None:
    if message:
        refused("llama", message, change=change)
        return
    skeleton = Skeleton(tiny_model("llama", n_layers=2))
    change(skeleton.blocks[0])
    assert why_not(skeleton.blocks[0], calls_of(skeleton, ids_of(skeleton.model, 2))[0], skeleton.convention) is None


def test_bad_states() -> None:
    skeleton = Skeleton(tiny_model("llama", n_layers=2))
    block = fast_blocks(skeleton, ids_of(skeleton.model, 1))[0]
    good = torch.zeros(2, TOKENS, 48)
    with pytest.raises(RequestError, match=r"expected contiguous states \[W, 24, 48\], got \[2, 23, 48\]"):
        block(good[:, 1:])
    with pytest.raises(RequestError, match=r"expected torch\.float32 on the CPU, got torch\.float64"):
        block(good.double())
    with pytest.raises(RequestError, match="as many targets as sources"):
        block.run([good], [good[:1]])

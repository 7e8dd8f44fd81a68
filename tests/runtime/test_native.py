"""The C++ step against its plain-torch oracle in float64, against the models themselves, and against itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from native_oracle import OracleExecutor
from tiny_models import FAMILIES, tiny_model
from torch import Tensor

from layercoop_fast import _C
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.llama.model import ModelParts, find_model
from layercoop_fast.llama.native_packing import FORMATS, pack_rows
from layercoop_fast.runtime import batching
from layercoop_fast.runtime.batching import Batcher
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.native import NativeExecutor
from layercoop_fast.runtime.options import Sampling
from layercoop_fast.runtime.requests import Request

pytestmark = pytest.mark.usefixtures("restore_core")

FITTING = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "phi3")
LEVELS = _C.isa_available()
LAYERS = 4

# Sizes that are multiples of nothing: heads, key heads, their width, hidden width, the MLP's.
SIZES = {
    "one of everything": (1, 1, 2, 1, 1),
    "odd": (5, 1, 6, 35, 33),
    "many heads on one key head": (14, 2, 10, 56, 20),
    "wider than a vector": (3, 3, 34, 69, 97),
}


def odd_model(heads: int, kv_heads: int, width: int, hidden: int, inner: int, family: str = "llama") -> Any:
    return tiny_model(
        family,
        LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        hidden_size=hidden,
        intermediate_size=inner,
    )


def whole(model: Any) -> ModelParts:
    """The weights as they are before an executor takes them away."""
    return find_model(Skeleton(model))[0]


def executor_of(model: Any, dtype: str = "fp32", kv_dtype: str = "auto") -> NativeExecutor:
    return NativeExecutor(
        copy.deepcopy(model), dtype, np.full(model.config.num_hidden_layers, 3, dtype=np.uint8), 1 << 22, kv_dtype
    )


def words(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def conversation(executor: Executor) -> list[Tensor]:
    """Prompts, forks, single tokens and a longer piece, over page and chunk borders, under four masks."""
    everything = np.ones(LAYERS, dtype=bool)
    late, early = everything.copy(), everything.copy()
    late[2] = False
    early[0] = False
    halves = np.array([3, 1, 2, 2], dtype=np.uint8)
    a, b, c, d = (executor.sequence(mask) for mask in (everything, late, early, halves))
    prompt = words(37)
    found = [
        executor.run([Chunk(a, prompt, wanted=21), Chunk(b, prompt), Chunk(c, prompt[:3], wanted=2)]),
        executor.run([Chunk(a, [5]), Chunk(b, [7]), Chunk(c, [7]), Chunk(d, words(4), wanted=4)]),
        executor.run([Chunk(b, words(9, 1), wanted=9), Chunk(d, words(3, 9))]),
        executor.run([Chunk(a, words(130, 2), wanted=3)]),
    ]
    a.truncate(100)
    return [*found, executor.run([Chunk(a, [11]), Chunk(c, words(14, 3))])]


def oracle_of(weights: ModelParts, **options: Any) -> list[Tensor]:
    return conversation(OracleExecutor(weights, 1 << 24, **options))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each row within a share of it."""
    for ours, theirs in zip(found, expected, strict=True):
        distance = (ours.double() - theirs.double()).norm(dim=1) / theirs.double().norm(dim=1)
        assert float(distance.max()) <= tolerance, float(distance.max())


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, restore_core: None) -> str:
    _C.set_isa(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def odd_models() -> dict[str, Any]:
    return {name: odd_model(*sizes) for name, sizes in SIZES.items()}


@pytest.fixture(scope="module")
def odd_expected(odd_models: dict[str, Any]) -> dict[str, list[Tensor]]:
    """The oracle's logits of each."""
    return {name: oracle_of(whole(model)) for name, model in odd_models.items()}


@pytest.mark.parametrize("name", SIZES)
def test_odd_sizes_are_the_oracles(
    odd_models: dict[str, Any], odd_expected: dict[str, list[Tensor]], name: str, level: str
) -> None:
    assert_close(conversation(executor_of(odd_models[name])), odd_expected[name], 2e-5)


@pytest.mark.parametrize("family", FITTING)
def test_families_are_the_oracles(family: str) -> None:
    model = tiny_model(family, LAYERS)
    assert_close(conversation(executor_of(model)), oracle_of(whole(model)), 2e-5)


def rounded_int8(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, x)


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "bf16": lambda x: x.bfloat16().to(x.dtype),
    "fp16": lambda x: x.clamp(-65504, 65504).half().to(x.dtype),
    "int8": rounded_int8,
}


@pytest.fixture(scope="module")
def stored_expected(odd_models: dict[str, Any]) -> dict[str, list[Tensor]]:
    weights = whole(odd_models["wider than a vector"])
    return {kv_dtype: oracle_of(weights, stored=stored) for kv_dtype, stored in STORED.items()}


@pytest.mark.parametrize("kv_dtype", STORED)
def test_keys_and_values_of_every_dtype(
    odd_models: dict[str, Any],
    odd_expected: dict[str, list[Tensor]],
    stored_expected: dict[str, list[Tensor]],
    kv_dtype: str,
    level: str,
) -> None:
    found = conversation(executor_of(odd_models["wider than a vector"], "fp32", kv_dtype))
    # A number that lies between two stored ones may go to the other: a few of many, each a small step.
    assert_close(found, stored_expected[kv_dtype], 5e-3)
    with pytest.raises(AssertionError):
        assert_close(found, odd_expected["wider than a vector"], 2e-5)


def test_values_beyond_fp16_become_its_largest(level: str) -> None:
    model = odd_model(*SIZES["wider than a vector"])
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.v_proj.weight *= 1e6
            block.self_attn.o_proj.weight *= 1e-6
    expected = oracle_of(whole(model), stored=STORED["fp16"])
    assert_close(conversation(executor_of(model, "fp32", "fp16")), expected, 5e-3)
    with pytest.raises(AssertionError):
        assert_close(oracle_of(whole(model)), expected, 5e-3)


@pytest.mark.parametrize("kv_dtype", ["fp32", "bf16", "int8"])
def test_a_value_that_is_no_number_does_not_become_one(kv_dtype: str, level: str) -> None:
    model = odd_model(*SIZES["odd"])
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight.fill_(100)
        model.model.layers[2].self_attn.v_proj.weight[1] = 3e38  # its products are infinite, or none of both signs
    executor = executor_of(model, "fp32", kv_dtype)
    assert executor.run([Chunk(executor.sequence(np.ones(LAYERS, dtype=bool)), words(5))]).isnan().all()


def test_quantised_weights_keep_keys_and_values_in_fp16() -> None:
    kept = {dtype: executor_of(FAMILIES["llama"](2), dtype).kv_dtype for dtype in FORMATS}
    assert kept == {"fp32": "fp32", "bf16": "bf16", "int8": "fp16", "int4": "fp16"}


def unpacked(format: str, weight: Tensor) -> Tensor:
    out = np.empty(tuple(weight.shape), dtype=np.float32)
    pack_rows(format, [weight]).unpack(0, out)
    return torch.from_numpy(out)


@pytest.fixture(scope="module")
def packed_expected(odd_models: dict[str, Any]) -> dict[str, list[Tensor]]:
    """The oracle's logits with the weights that packing leaves."""
    weights = whole(odd_models["many heads on one key head"])
    found = {}
    for dtype in FORMATS:
        ends = "int8" if dtype == "int4" else dtype
        head = weights.head.projection
        found[dtype] = oracle_of(
            replace(weights, embedding=unpacked(ends, weights.embedding)),
            matrix=lambda linear, dtype=dtype, ends=ends, head=head: unpacked(
                ends if linear is head else dtype, linear.weight
            ),
        )
    return found


@pytest.mark.parametrize("dtype", FORMATS)
def test_weights_of_every_dtype(
    odd_models: dict[str, Any], packed_expected: dict[str, list[Tensor]], dtype: str, level: str
) -> None:
    found = conversation(executor_of(odd_models["many heads on one key head"], dtype, "fp32"))
    # With integer weights the inputs of products are integers too, and with dot products of bf16 they are bf16.
    tolerance = {"fp32": 2e-5, "bf16": 2e-2, "int8": 5e-2, "int4": 5e-2}[dtype]
    assert_close(found, packed_expected[dtype], tolerance)


@pytest.mark.parametrize("family", FITTING)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model = FAMILIES[family](LAYERS)
    prompt = words(21, 4)
    settings = {"do_sample": False, "max_new_tokens": 45, "min_new_tokens": 45, "pad_token_id": 2}
    expected = model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    executor = executor_of(model)
    sequence = executor.sequence(np.ones(LAYERS, dtype=bool))
    # End of text is no word for `generate` here, and so not for us.
    found = []
    logits = executor.run([Chunk(sequence, prompt)]).clone()
    while len(found) < len(expected):
        logits[0, 1] = -torch.inf
        found.append(int(logits.argmax()))
        logits = executor.run([Chunk(sequence, found[-1:])]).clone()
    assert found == expected


def test_a_masked_model_is_the_model_without_the_block() -> None:
    model = FAMILIES["gemma3"](LAYERS)
    skeleton = Skeleton(model)
    prompt = torch.tensor([words(40, 5)])
    mask = np.array([True, False, True, True])
    context = skeleton.context(prompt)
    hidden = context.embedding
    for layer in np.flatnonzero(mask):
        hidden = context.run(int(layer), hidden)
    expected = context.logits(hidden)[0]
    executor = executor_of(model)
    found = executor.run([Chunk(executor.sequence(mask), prompt[0].tolist(), wanted=40)])
    assert_close([found], [expected], 2e-5)


@pytest.mark.parametrize("dtype", FORMATS)
def test_bits_do_not_depend_on_the_rows_beside_nor_on_the_threads(
    odd_models: dict[str, Any], dtype: str, level: str
) -> None:
    executor = executor_of(odd_models["odd"], dtype, "int8")
    prompt = words(24, 6)
    full = np.ones(LAYERS, dtype=bool)
    results = []
    for threads, pieces in ((1, [24]), (2, [24]), (3, [1] * 24), (2, [7, 16, 1])):
        _C.set_num_threads(threads)
        sequence, beside = executor.sequence(full), executor.sequence(np.array([True, False, True, True]))
        rows, at = [], 0
        for size in pieces:
            chunks = [Chunk(sequence, prompt[at : at + size], wanted=size)]
            if at == 7:
                chunks.append(Chunk(beside, words(3, 7)))
            rows.append(executor.run(chunks)[:size])
            at += size
        results.append(torch.cat(rows))
        sequence.release()
        beside.release()
    for other in results[1:]:
        assert torch.equal(results[0], other)
    assert executor.pool.used == 0


def test_best_tokens_are_the_largest_logits(level: str) -> None:
    executor = executor_of(FAMILIES["gemma2"](LAYERS), "int8")
    full = np.ones(LAYERS, dtype=bool)
    for threads in (1, 3):
        _C.set_num_threads(threads)
        logits = executor.run([Chunk(executor.sequence(full), words(40), wanted=40)])
        best = executor.best([Chunk(executor.sequence(full), words(40), wanted=40)])
        assert best.tolist() == logits.argmax(-1).tolist()
        for count in (1, 7, 200, executor.vocab_size):
            values, found = executor.top([Chunk(executor.sequence(full), words(40), wanted=40)], count)
            expected = logits.sort(dim=-1, descending=True, stable=True)
            assert torch.equal(values, expected.values[:, :count])
            assert torch.equal(found, expected.indices[:, :count])


@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_of_equal_logits_the_lowest_word_wins_however_many_threads_look(dtype: str, level: str) -> None:
    """Words whose rows of the head are the same have the same logits; threads look at 16 rows or more each."""
    everything = np.ones(LAYERS, dtype=bool)
    prompt = words(9)
    for equal in ([0, 299], [15, 16], [40, 41, 255, 256], [17, 100, 298], list(range(300))):
        model = tiny_model("llama", LAYERS)
        executor = executor_of(model, dtype, "fp32")
        likeliest = int(executor.run([Chunk(executor.sequence(everything), prompt)]).argmax())
        # So that nothing beats them at the prompt's end.
        model.lm_head.weight.data[equal] = model.lm_head.weight.data[likeliest].clone()
        executor = executor_of(model, dtype, "fp32")
        for threads in (1, 2, 5):
            _C.set_num_threads(threads)
            chunk = [Chunk(executor.sequence(everything), prompt, wanted=9)]
            logits = executor.run(chunk)
            assert len(set(logits[-1, equal].tolist())) == 1
            first = [row.index(max(row)) for row in logits.tolist()]
            assert first[-1] <= equal[0]
            best = executor.best([Chunk(executor.sequence(everything), prompt, wanted=9)])
            assert best.tolist() == first, (equal, threads)
            _, found = executor.top([Chunk(executor.sequence(everything), prompt, wanted=9)], 5)
            by_word = [sorted(range(300), key=lambda word: (-row[word], word))[:5] for row in logits.tolist()]
            assert found.tolist() == by_word, (equal, threads)


def test_requests_draw_the_same_from_the_likeliest_words_as_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(tiny_model("llama", LAYERS))
    ways = (Sampling(), Sampling(temperature=1.5, top_k=5), Sampling(temperature=2.0, top_k=60, top_p=0.9))
    answers = []
    for most in (0, 512):
        monkeypatch.setattr(batching, "_MOST_LIKELY", most)
        batcher = Batcher(executor)
        runnings = [
            batcher.add(Request(tuple(words(9, at)), np.full(LAYERS, 3, dtype=np.uint8), 12, way, ignore_eos=True))
            for at, way in enumerate(ways)
        ]
        batcher.run()
        answers.append([running.result().tokens for running in runnings])
        monkeypatch.setattr(executor, "logits", None)  # from here on they are not handed out
    assert answers[0] == answers[1]
    assert all(len(answer) == 12 for answer in answers[0])


def test_a_grid_is_found_in_fp32_that_holds_what_bf16_could() -> None:
    numbers = torch.randint(0, 16, (32, 64), generator=torch.Generator().manual_seed(3))
    scale, low = torch.tensor([0.0123, -0.07]).half().float()
    weight = (numbers * scale + low).bfloat16()
    for format in ("int8", "int4"):
        assert torch.equal(unpacked(format, weight.float()), unpacked(format, weight))
    other = weight.float()
    other[-1, -1] += 1e-6  # no longer: it is on no grid, and neither is its matrix
    assert not torch.equal(unpacked("int4", other)[:16], unpacked("int4", weight)[:16])


def test_the_models_own_weights_are_let_go_of() -> None:
    model = tiny_model("llama", LAYERS, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    total = sum(parameter.numel() for parameter in model.parameters())
    executor = NativeExecutor(model, "bf16", np.array([3, 3, 0, 3], dtype=np.uint8), 1 << 20)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left < total / 50
    assert executor.weight_bytes < 2 * total  # of which a block is not held
    with pytest.raises(RequestError, match="block 2"):
        executor.run([Chunk(executor.sequence(np.ones(LAYERS, dtype=bool)), [4])])
    held = executor.run([Chunk(executor.sequence(np.array([True, True, False, True])), [4])])
    assert held.isfinite().all()


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("fp16", "auto"), ("int8", "int4"), ("", "auto")])
def test_unknown_dtypes_are_refused(dtype: str, kv_dtype: str) -> None:
    with pytest.raises(RequestError, match="expected one of fp32, bf16, int8, int4 and one of fp32, bf16, fp16, int8"):
        executor_of(FAMILIES["llama"](2), dtype, kv_dtype)


def test_rows_that_no_model_can_compute_are_refused() -> None:
    executor = executor_of(tiny_model("llama", 2))
    sequence = executor.sequence(np.ones(2, dtype=bool))
    executor.run([Chunk(sequence, words(5))])
    good: dict[str, Any] = {
        "tokens": [4, 5],
        "positions": [5, 6],
        "sequence": [0, 0],
        "parent": [-1, -1],
        "fork": [0, 0],
        "wanted": [1],
    }
    arrays = {name: np.array(value, dtype=np.int32) for name, value in good.items()}
    arrays |= {"masks": np.full((1, 2), 3, dtype=np.uint8), "tables": sequence.tables[None].copy()}

    def run(**changes: Any) -> None:
        call = {**arrays, **changes}
        executor._packed.model.run(executor._memory, "fp32", **call, logits=np.empty((1, 300), dtype=np.float32))

    run()
    i32 = {"dtype": np.int32}
    for change, message in (
        ({"tokens": np.array([4, 300], **i32)}, "row 1: its token is not in the vocabulary"),
        ({"tokens": np.array([4, 5])}, "tokens: expected .*int32"),
        ({"positions": np.array([5, 7], **i32)}, "row 1: it does not follow the row before it"),
        ({"positions": np.array([-1, 0], **i32)}, "row 0: its position has no cosines"),
        ({"positions": np.array([63, 64], **i32)}, "row 1: its position is beyond its page table"),
        ({"positions": np.array([15, 16], **i32)}, "row 1: a page of block 0 is missing"),
        ({"sequence": np.array([0, 1], **i32)}, "row 1: its sequence does not exist"),
        ({"parent": np.array([-1, 1], **i32)}, "row 1: its parent does not come before it"),
        ({"parent": np.array([-1, 0], **i32), "fork": np.array([0, 3], **i32)}, "row 1: it forks before a block"),
        ({"wanted": np.array([2], **i32)}, "wanted: 2 is not a row"),
        ({"masks": np.full((1, 2), 4, dtype=np.uint8)}, "masks: sequence 0 keeps of block 0"),
        ({"tables": np.full((1, 2, 1), 9999, **i32)}, "row 1: a page of block 0 is missing"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            run(**change)

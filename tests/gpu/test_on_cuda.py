"""What the rest of the suite promises on the CPU, on a CUDA device: worths, kinds of players, searches, generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny, tiny_model

from layercoop_fast import ModelGame
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.masked.pool_units import PoolUnits
from layercoop_fast.masked.queues import CudaQueue, queue_of
from layercoop_fast.masked.scoring import FusedScorer
from layercoop_fast.runtime.executor import Chunk
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.spans import DEVICE_BLOCKS, DEVICE_HEAD, Spans
from layercoop_fast.texts.calibration import Calibration

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here"),
]
IDS = torch.randint(3, 256, (3, 24), generator=torch.Generator().manual_seed(0))


def game_of(family: str, device: str, dtype: torch.dtype = torch.float32, **options: object) -> ModelGame:
    model = tiny_model(family, 6).to(dtype).to(device)
    return ModelGame(Checkpoint(model, None, family), Calibration(IDS.to(device), "random"), **options)  # type: ignore[arg-type]


def masks_of(n_players: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(1).random((count, n_players)) < 0.75


@pytest.mark.parametrize("players", ["layers", "sublayers"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "mamba", "qwen2_moe"])
def test_worths_are_those_of_the_cpu(family: str, players: str) -> None:
    if players == "sublayers" and family in ("mamba", "qwen2_moe"):
        pytest.skip("whole layers of these are enough")
    games = [game_of(family, device, players=players) for device in ("cpu", DEVICE)]
    masks = masks_of(games[0].n_players)
    expected, found = (game.evaluate(masks) for game in games)
    np.testing.assert_allclose(found.window_nll, expected.window_nll, rtol=2e-4)
    if family in ("llama", "qwen3"):
        assert isinstance(games[1].masked.units, PoolUnits)
        assert games[1].masked.units.path == "pool"
        assert isinstance(games[1].masked.scorer, FusedScorer)
        assert "gpu" in found.fingerprints["numerics"]
        assert set(found.fingerprints["numerics"]["gpu_kernels"].values()) == {"triton"}


@pytest.mark.parametrize("options", [{"utility": "kl"}, {"score_every": 4}, {"memory": 2**18}, {"block_path": "hf"}])
def test_worths_in_other_ways(options: dict[str, object]) -> None:
    masks = masks_of(6)
    expected, found = (game_of("llama", device, **options).evaluate(masks) for device in ("cpu", DEVICE))
    np.testing.assert_allclose(found.worths, expected.worths, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_16_bits(dtype: torch.dtype, tolerance: float) -> None:
    masks = masks_of(6, 20)
    expected, game = game_of("llama", "cpu").evaluate(masks), game_of("llama", DEVICE, dtype)
    found = game.evaluate(masks)
    assert game.masked.units.path == "pool"
    assert np.abs(found.nll - expected.nll).mean() < tolerance


def test_steps_come_back_as_graphs_and_fill_the_profile() -> None:
    game = game_of("llama", DEVICE)
    with Spans(trace=True) as spans:
        game.evaluate(masks_of(6))
    assert isinstance(game.masked.units, PoolUnits)
    assert isinstance(game.masked.units.queue, CudaQueue)
    first = game.evaluate(masks_of(6)).worths
    again = game.view(apart=True, stored=False).evaluate(masks_of(6)).worths
    third = game.view(apart=True, stored=False).evaluate(masks_of(6)).worths
    assert len(game.masked.units.queue.graphs), "nothing was captured"
    assert game.masked.units.queue.graphs.why_off is None
    np.testing.assert_allclose(again, first, rtol=1e-5)
    np.testing.assert_array_equal(third, again)
    assert spans.seconds[DEVICE_BLOCKS] > 0
    assert spans.seconds[DEVICE_HEAD] > 0


def test_the_queue() -> None:
    queue = queue_of(torch.device(DEVICE))
    table = torch.arange(1000, dtype=torch.int32)
    source, sums = queue.send(table), torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def work() -> None:
        sums.add_(source.sum())

    for _ in range(6):
        queue.run("sum", work)
    fetched = queue.fetch(sums)
    source.zero_()
    queue.run("sum", work)
    assert fetched().item() == 6 * 499500
    queue.wait()
    assert sums.item() == 6 * 499500
    queue.forget()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_generation_under_masks(family: str) -> None:
    cpu, device = Skeleton(tiny_model(family, 5)), Skeleton(tiny_model(family, 5).to(DEVICE))
    from layercoop_fast.runtime.gpu import GpuExecutor

    masks = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 1, 1, 0, 1]], dtype=np.bool_)
    found = []
    for executor in (GeneralExecutor(cpu, 2**21), GpuExecutor(device, 2**21)):
        sequences = [executor.sequence(mask) for mask in masks]
        words = executor.best([Chunk(sequence, [5, 9, 200, 31, 7]) for sequence in sequences])
        texts = [words.tolist()]
        for _ in range(40):
            words = executor.best([Chunk(s, [word]) for s, word in zip(sequences, words.tolist(), strict=True)])
            texts.append(words.tolist())
        found.append(texts)
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_generation_with_quantised_weights(dtype: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    path = save_tiny(tmp_path / "model", "llama")
    tiny_model("llama", 5, **sizes, head_dim=16).save_pretrained(path)
    found = []
    for device in (DEVICE, "cpu"):
        model = LayerSkipModel.from_pretrained(path, dtype, device=device)
        found.append(model.generate([[5, 9, 200], [31, 7]], max_new_tokens=6, ignore_eos=True))
    assert model.executor.name == f"native {dtype}"
    # The native executor rounds its inputs to 8 bits as well, so later tokens may part ways.
    assert [answer.tokens[0] for answer in found[0]] == [answer.tokens[0] for answer in found[1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_models_opened_on_the_device(family: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", family)
    said = pytest.warns(UserWarning, match="on the blocks of transformers") if family == "gpt2" else nullcontext()
    with said:
        model = LayerSkipModel.from_pretrained(path, device=DEVICE)
    assert (model.why_general is None) == (family == "llama")
    made = model.generate([5, 6, 7], max_new_tokens=4, ignore_eos=True)
    assert len(made.tokens) == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [(), ("--workers", 1)])
def test_pruning(run: Callable[..., tuple[int, str, str]], tmp_path: Path, workers: tuple[object, ...]) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    arguments = ("--remove", 2, "--windows", 3, "--tokens", 24, "--samples", 0, "--no-repair", *workers)
    found = []
    for device in ("cpu", DEVICE):
        out = tmp_path / f"on-{len(found)}"
        status, _, error = run("prune", model, "--out", out, "--method", "sleb", "--device", device, *arguments)
        assert status == 0, error
        found.append(json.loads((out / "layercoop.json").read_text()))
    assert found[0]["removed"] == found[1]["removed"]
    assert abs(found[0]["nll"]["pruned"] / found[1]["nll"]["pruned"] - 1) < 1e-3


def test_every_family_of_the_suite_opens() -> None:
    for family, make in FAMILIES.items():
        skeleton = Skeleton(make(n_layers=3).to(DEVICE))
        context = skeleton.context(IDS.to(DEVICE))
        with torch.inference_mode():
            hidden = context.embedding
            for layer in range(3):
                hidden = context.run(layer, hidden)
            assert torch.allclose(context.logits(hidden), skeleton.model(IDS.to(DEVICE)).logits, rtol=1e-4), family


def test_doctor_prints_what_the_device_does_right(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, printed, error = run("doctor", save_tiny(tmp_path / "model", "llama"), "--device", DEVICE, "--json")
    assert status == 0, error
    found = json.loads(printed)
    assert found["gpu"]["graphs"] is None
    assert [each["operation"] for each in found["gpu"]["kernels"] if each["problem"]] == []
    assert found["fast"]["blocks"] == "pool"

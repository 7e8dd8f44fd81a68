"""Two pieces of memory in turn: the right block is there, what is expected is read ahead, nothing else is read."""

from __future__ import annotations

import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layercoop_fast.engine.streamed import Matrix, StreamedBlocks
from layercoop_fast.engine.weight_files import WeightFiles
from layercoop_fast.errors import RunError
from layercoop_fast.masked.plan import build_plan, layer_visits
from layercoop_fast.spans import READING, Spans


class Block(nn.Module):
    """Three projections of one width and a fourth of another."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.mix = nn.ModuleDict({name: nn.Linear(5, rows) for name, rows in (("q", 5), ("k", 3), ("v", 3))})
        self.out = nn.Linear(3 + layer % 2, 5)  # not all blocks are of one size


class Streams:
    """Blocks on the meta device, the truth about them, and their files."""

    def __init__(self, folder: Path, n_blocks: int = 5) -> None:
        blocks = [Block(layer) for layer in range(n_blocks)]
        self.truth = {
            f"{layer}.{name}": parameter.detach().clone()
            for layer, block in enumerate(blocks)
            for name, parameter in block.named_parameters()
            if parameter.dim() > 1
        }
        save_file(self.truth, folder / "model.safetensors")
        self.files = WeightFiles(folder)
        self.blocks = blocks
        self.streamed = StreamedBlocks(
            self.files, [self._matrices(layer, block) for layer, block in enumerate(blocks)], lambda name, _: b"m"
        )

    def _matrices(self, layer: int, block: Block) -> list[Matrix]:
        found = []
        for name, parameter in block.named_parameters():
            if parameter.dim() > 1:
                owner, key = block.get_submodule(name.rpartition(".")[0]), "weight"
                full = f"{layer}.{name}"
                empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
                owner._parameters[key] = empty
                found.append(Matrix(full, name, owner, key, empty, self.files.tensors[full]))
        return found

    def there(self) -> list[int]:
        """Blocks that have all of their matrices, each checked against the truth."""
        found = []
        for layer, block in enumerate(self.blocks):
            matrices = {name: p for name, p in block.named_parameters() if p.dim() > 1}
            if not any(matrix.is_meta for matrix in matrices.values()):
                assert all(torch.equal(self.truth[f"{layer}.{name}"], matrix) for name, matrix in matrices.items())
                found.append(layer)
        return found

    def settle(self) -> None:
        """Wait for what is being read."""
        for slot in self.streamed._slots:
            if slot.read is not None:
                slot.read.result()


def test_the_block_in_use_is_there_and_no_other(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(40):
        order = rng.integers(5, size=rng.integers(6)).tolist()
        streams.streamed.expect(order)
        asked = order if rng.random() < 0.5 else rng.integers(5, size=4).tolist()  # as said, or something else
        for layer in asked:
            streams.streamed.use(int(layer))
            assert streams.there() == [layer]
    streams.streamed.release()
    assert streams.there() == []


def test_what_is_expected_is_read_once_and_ahead(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    order = [0, 2, 3, 0, 4]
    streams.streamed.expect(order)
    for position, layer in enumerate(order):
        streams.settle()
        read = sum(streams.streamed.bytes_of(layer) for layer in order[: position + 1])
        assert streams.streamed.bytes_read == read, "the next block is there before it is asked for, and no more"
        streams.streamed.use(layer)
        streams.streamed.use(layer)
    streams.settle()
    assert streams.streamed.bytes_read == sum(map(streams.streamed.bytes_of, order))


def test_siblings_stand_behind_each_other(tmp_path: Path) -> None:
    """So that queries, keys and values are one matrix without a copy, in either piece of memory."""
    streams = Streams(tmp_path)
    for layer in (0, 1, 2):
        streams.streamed.use(layer)
        q, k, v = (streams.blocks[layer].mix[name].weight for name in "qkv")
        assert q.data_ptr() % 64 == 0
        assert k.data_ptr() == q.data_ptr() + q.nbytes
        assert v.data_ptr() == k.data_ptr() + k.nbytes
        assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


def test_waiting_is_a_span(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    with Spans() as spans:
        streams.streamed.use(3)
    assert spans.seconds[READING] > 0
    assert streams.streamed.bytes_a_second > 0


def test_the_speed_can_be_asked_while_something_is_read(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    streams.streamed._timed = deque([(1, 0.5)] * 50_000, maxlen=50_000)  # a model so deep that a read ends meanwhile
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            streams.streamed._timed.append((1, 0.5))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert {streams.streamed.bytes_a_second for _ in range(10)} == {2.0}
    finally:
        over.set()
        reader.join()
        sys.setswitchinterval(interval)


def test_a_failed_read_is_told_and_tried_again(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(len(whole) // 2)
    with pytest.raises(RunError, match="cut short"):
        for layer in range(5):
            streams.streamed.use(layer)
    with file.open("r+b") as opened:
        opened.write(whole)
    for layer in range(5):
        streams.streamed.use(layer)
        assert streams.there() == [layer]


def test_every_matrix_is_marked_once_it_was_there(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
    streams.streamed.use(2)
    before = streams.streamed.bytes_read
    assert streams.streamed.marks().keys() == streams.truth.keys()
    streams.settle()
    assert streams.streamed.bytes_read - before == sum(streams.streamed.bytes_of(layer) for layer in (0, 1, 3, 4))


@pytest.mark.parametrize(("players", "states"), [(4, 100), (4, 2), (8, 100), (8, 3)])
def test_visits_to_layers_are_the_plans_steps(players: int, states: int) -> None:
    plan = build_plan(np.random.default_rng(0).random((30, players)) < 0.5, states)
    layers, visit = layer_visits(plan, 4)
    expected: list[int] = []
    numbers = []
    for step in plan.steps():
        layer = step.player * 4 // players
        if step.player >= 0 and (not expected or expected[-1] != layer):
            expected.append(layer)
        numbers.append(max(len(expected) - 1, 0))
    assert layers.tolist() == expected
    assert visit.tolist() == numbers

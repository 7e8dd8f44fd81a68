"""The general executor says what the exported checkpoint says under plain transformers, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.config import nearest_exportable
from layercoop_fast.runtime.executor import Chunk, Executor
from layercoop_fast.runtime.general import GeneralExecutor
from layercoop_fast.runtime.sequences import TokenSequence

N_LAYERS = 6
PROMPT = torch.randint(3, 259, (1, 25), generator=torch.Generator().manual_seed(5))
BUDGET = 2**22


def generated(executor: Executor, sequences: list[TokenSequence], n_new: int, first: int) -> list[list[int]]:
    """Greedy tokens, the prompt cut into a first chunk and the rest."""
    prompt = PROMPT[0].tolist()
    executor.run([Chunk(sequence, prompt[:first], wanted=0) for sequence in sequences])
    found = [executor.best([Chunk(sequence, prompt[first:]) for sequence in sequences]).tolist()]
    while len(found) < n_new:
        found.append(executor.best([Chunk(s, [word]) for s, word in zip(sequences, found[-1], strict=True)]).tolist())
    return [list(words) for words in zip(*found, strict=True)]


@pytest.mark.parametrize("family", [*FAMILIES, "rwkv", "falcon_h1", "gpt_oss"])
def test_tokens_are_those_of_the_exported_checkpoint(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, N_LAYERS)
    mask = np.array([True, True, False, True, False, True])
    if family == "jamba":
        mask = nearest_exportable(model.config, mask, 4)
        assert mask is not None
    skeleton = Skeleton(model)
    export_checkpoint(model, np.flatnonzero(mask).tolist(), tmp_path / "pruned", blocks_path=skeleton.blocks_path)
    executor = GeneralExecutor(skeleton, BUDGET)
    sequences = [executor.sequence(mask), executor.sequence(), executor.sequence(mask)]
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    attends = torch.ones_like(PROMPT)
    n_new = 9  # across the border of a page, and of every sliding window
    with torch.inference_mode():
        expected = pruned.generate(PROMPT, attention_mask=attends, max_new_tokens=n_new, do_sample=False)[0, 25:]
        whole = model.generate(PROMPT, attention_mask=attends, max_new_tokens=n_new, do_sample=False)[0, 25:]
    found = generated(executor, sequences, n_new, first=11)
    assert found[0][: len(expected)] == found[2][: len(expected)] == expected.tolist()
    assert found[1][: len(whole)] == whole.tolist()
    assert executor.computed < (len(PROMPT[0]) + n_new - 1) * int(mask.sum() + N_LAYERS)
    # Some of these say one word over and over; their logits tell masks apart.
    logits = executor.run([Chunk(sequence, [words[-1]]) for sequence, words in zip(sequences, found, strict=True)])
    text = torch.cat([PROMPT, torch.tensor(found[:1])], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(logits[0], pruned(text, use_cache=False).logits[0, -1], rtol=0, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert torch.equal(logits[0], logits[2])
    if executor.rewindable:
        sequences[1].truncate(20)
        again = executor.run([Chunk(sequences[1], PROMPT[0, 20:].tolist())])
        assert int(again.argmax()) == whole[0]
    for sequence in sequences:
        sequence.release()
    assert executor.pool.used == 0


def test_a_recurrent_state_has_no_way_back() -> None:
    executor = GeneralExecutor(Skeleton(tiny_model("mamba", 2)), BUDGET)
    sequence = executor.sequence()
    executor.run([Chunk(sequence, [5, 6, 7])])
    with pytest.raises(RequestError, match="cannot be wound back"):
        sequence.truncate(2)
    sequence.truncate(0)
    assert not sequence.states


def test_halves_of_blocks_run_alone() -> None:
    model = tiny_model("llama", 3)
    skeleton = Skeleton(model)
    executor = GeneralExecutor(skeleton, BUDGET)
    mask = np.array([True, False, False, True, True, True])  # block 0 without MLP, block 1 without attention
    sequence = executor.sequence(mask)
    logits = executor.run([Chunk(sequence, PROMPT[0, :9].tolist()), Chunk(executor.sequence(), [1])])
    assert executor.pool.used == 2 + 3
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        expected = model(PROMPT[:, :9]).logits[0, -1]
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-5)


def test_a_budget_that_holds_nothing_is_refused() -> None:
    skeleton = Skeleton(tiny_model("llama", 2))
    with pytest.raises(RequestError, match=r"the smallest that works is 4096 bytes \(16 tokens\)"):
        GeneralExecutor(skeleton, 100)

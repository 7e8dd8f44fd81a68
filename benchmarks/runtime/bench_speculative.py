"""Self-speculative decoding against the model alone: greedy, the same prompts, one run.

    python benchmarks/runtime/bench_speculative.py [--dtype int8] [--threads 2] [--tokens 256] [--draft 9,11,14-17]

draft     the mask of the draft, searched on what the model writes after some prompts, and the predicted speed-up
prompts   other prompts: tokens a second alone and with drafts, alternating (medians of some repeats, ratios of
          neighbours), what was expected before every round, and whether the tokens are the same
off       the same prompts with a draft that is never right (the first blocks are gone): what trying it costs

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine
from small_model import small_model

from layercoop_fast import _C
from layercoop_fast.masks.text import mask_of, text_of
from layercoop_fast.runtime.draft import Draft, find_draft
from layercoop_fast.runtime.model import LayerSkipModel
from layercoop_fast.runtime.requests import Generation
from layercoop_fast.runtime.speculative import Speculator

SEARCHED = [
    "Write a short story about a lighthouse keeper.",
    "What is photosynthesis?",
    "Give me advice for learning to play the piano.",
    "Write a Python function that reverses a string.",
]
PROMPTS = [
    "Explain how a bicycle stays upright.",
    "Tell me about the history of bread.",
    "Write a Python function that counts the words of a text.",
]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; default the small real model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--draft", help="blocks that the draft leaves out, instead of a search")
    parser.add_argument("--budget", type=int, help="masks that the search may measure")
    arguments = parser.parse_args()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
        _C.set_num_threads(arguments.threads)
    model = LayerSkipModel.from_pretrained(
        arguments.model or str(small_model()), arguments.dtype, executor=arguments.executor
    )
    found = None
    if arguments.draft:
        mask = mask_of(arguments.draft, model.n_layers) > 0
    else:
        found = find_draft(model.executor, [asked(model, text) for text in SEARCHED], budget=arguments.budget)
        mask = found.mask
    never = np.ones(model.n_layers, dtype=bool)
    never[: model.n_layers // 2] = False
    rows = [compare(model, prompt, mask, never, arguments.tokens, arguments.repeats) for prompt in PROMPTS]
    result = {
        "benchmark": "runtime/speculative",
        "machine": machine(),
        "threads": arguments.threads or _C.num_threads(),
        "executor": model.executor.name,
        "dtype": arguments.dtype,
        "tokens": arguments.tokens,
        "draft": {"removed": text_of(model.mask(mask)), **({} if found is None else figures(found))},
        "prompts": rows,
        "median": {
            name: statistics.median(row[name] for row in rows)
            for name in ("speed_up", "measured_over_expected", "off_cost")
        },
    }
    sys.stdout.write(json.dumps(result) + "\n")


def figures(found: Draft) -> dict[str, Any]:
    """What the search says of its draft."""
    return {
        "acceptance": found.acceptance,
        "share_of_a_step": found.share,
        "speed_up_foretold": found.speed_up,
        "length": found.length,
        "masks": found.n_masks,
    }


def compare(
    model: LayerSkipModel, prompt: str, mask: np.ndarray, never: np.ndarray, tokens: int, repeats: int
) -> dict[str, Any]:
    """One prompt alone, with the draft, and with one that is never right, alternating."""
    ids = asked(model, prompt)
    rates: dict[str, list[float]] = {"alone": [], "draft": [], "never": []}
    answers: dict[str, list[int]] = {}
    expected, drafts = [], {}
    for _ in range(repeats):
        for name, draft in (("alone", None), ("draft", mask), ("never", never)):
            model.forget()
            model.batcher.speculators.latest.clear()
            answer = model.generate(ids, max_new_tokens=tokens, ignore_eos=True, draft=draft)
            assert isinstance(answer, Generation)
            answers[name] = answer.tokens
            measured = (tokens - 1) / (answer.seconds - answer.first_token_seconds)
            rates[name].append(measured)
            if name == "draft":
                lengths = speculator(model).draft_length
                expected.append(measured / (lengths.expected_tokens / lengths.expected_seconds))
                drafts = {
                    **model.drafting(),
                    "step_ms": 1e3 * lengths.step_seconds,
                    "draft_ms": 1e3 * lengths.draft_seconds,
                    "verify_ms": {rows: 1e3 * lengths.verify_seconds(rows) for rows in (2, 5, 9)},
                }
    return {
        "prompt": prompt,
        "same_tokens": answers["alone"] == answers["draft"] == answers["never"],
        "alone_tok_s": statistics.median(rates["alone"]),
        "draft_tok_s": statistics.median(rates["draft"]),
        "speed_up": statistics.median(np.divide(rates["draft"], rates["alone"])),
        "measured_over_expected": statistics.median(expected),
        "off_cost": statistics.median(np.divide(rates["alone"], rates["never"])) - 1,
        **drafts,
    }


def speculator(model: LayerSkipModel) -> Speculator:
    """The one that wrote."""
    (found,) = model.batcher.speculators.latest.values()
    return found


def asked(model: LayerSkipModel, text: str) -> list[int]:
    """A question in the model's chat template."""
    from layercoop_fast.runtime.conversation import Conversation

    return Conversation(model).tokens([{"role": "user", "content": text}])


if __name__ == "__main__":
    main()

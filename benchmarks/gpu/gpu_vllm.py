"""Tokens a second of vLLM on a llama of 8B with weights that it makes up itself; no rows where it is not installed."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from chips import Bench, wall
from gpu_decode import NEW, PROMPT
from gpu_models import config_of
from parts import Rows


def rows(bench: Bench) -> Rows:
    """One request, and eight at once."""
    if bench.tiny or importlib.util.find_spec("vllm") is None:
        return
    engine: list[Any] = []
    for requests in (1, 8):
        yield f"vLLM, {requests} requests" if requests > 1 else "vLLM", partial(_speed, engine, requests)


def _speed(engine: list[Any], requests: int) -> dict[str, Any]:
    import vllm

    if not engine:
        with tempfile.TemporaryDirectory() as folder:
            config = config_of("8b")
            config.architectures = ["LlamaForCausalLM"]
            config.torch_dtype = "bfloat16"
            config.save_pretrained(Path(folder))
            engine.append(
                vllm.LLM(
                    model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048
                )
            )
    settings = vllm.SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(range(3 + i, 3 + i + PROMPT))} for i in range(requests)]

    def generate() -> object:
        return engine[0].generate(prompts, settings, use_tqdm=False)

    generate()
    return {"tokens a second": requests * NEW / min(wall(generate) for _ in range(3))}

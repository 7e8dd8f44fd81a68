"""llama.cpp on a GGUF file, for bench_decode.py, in an environment of its own that has llama-cpp-py-sync and numpy.

    python llama_cpp_runner.py requantise MODEL.gguf OUT.gguf f32|bf16|q8_0      # from whatever MODEL is, once
    python llama_cpp_runner.py run MODEL.gguf '{"prompt": [..], "long": [..], "new": [64, 512], "threads": 2}'

`run` ends in a JSON line: seconds of reading `long`, tokens a second of greedy answers to `prompt`, and the answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {"f32": 0, "q8_0": 7, "bf16": 32}


def main() -> None:
    """Do what the first argument says."""
    what, *rest = sys.argv[1:]
    if what == "requantise":
        requantise(*rest)
    else:
        sys.stdout.write(json.dumps(run(rest[0], json.loads(rest[1]))) + "\n")


def requantise(model: str, out: str, kind: str) -> None:
    """Write the model in another type, from the numbers that it has now."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    lib = get_lib()
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[kind]
    parameters.allow_requantize = True
    pointer = get_ffi().new("llama_model_quantize_params *", parameters)
    if lib.llama_model_quantize(model.encode(), f"{out}.part".encode(), pointer) != 0:
        raise SystemExit(f"llama.cpp could not write {out}")
    Path(f"{out}.part").rename(out)


def run(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Time reading and answering."""
    import llama_cpp_py_sync

    llama = llama_cpp_py_sync.Llama(
        model, n_ctx=1024, n_batch=512, n_threads=asked["threads"], n_gpu_layers=0, verbose=False
    )
    read(llama, asked["prompt"], 0)
    seconds = []
    for _ in range(3):
        llama._clear_context_state()
        started = time.perf_counter()
        read(llama, asked["long"], 0)
        seconds.append(time.perf_counter() - started)
    rates, answers = {}, {}
    for count in asked["new"]:
        tried = []
        for _ in range(2):
            llama._clear_context_state()
            token = read(llama, asked["prompt"], 0)
            answer = [token]
            started = time.perf_counter()
            for at in range(count):
                token = read(llama, [token], len(asked["prompt"]) + at)
                answer.append(token)
            tried.append(count / (time.perf_counter() - started))
        rates[count], answers[count] = max(tried), answer
    return {
        "file_bytes": os.path.getsize(model),
        "prefill_tok_s": len(asked["long"]) / min(seconds),
        "decode_tok_s": rates,
        "answer": answers[asked["new"][0]],
    }


def read(llama: Any, tokens: list[int], behind: int) -> int:
    """Read tokens, and return the likeliest one after them."""
    llama._eval_tokens(tokens, behind)
    logits = llama._lib.llama_get_logits_ith(llama._ctx, -1)
    return int(np.frombuffer(llama._ffi.buffer(logits, 4 * llama.n_vocab), np.float32).argmax())


if __name__ == "__main__":
    main()

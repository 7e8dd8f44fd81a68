"""llama.cpp on a GGUF file, for bench_decode.py, in an environment of its own that has llama-cpp-python.

    python llama_cpp_runner.py requantise MODEL.gguf OUT.gguf f32|bf16|q8_0      # from whatever MODEL is, once
    python llama_cpp_runner.py serve MODEL.gguf '{"prompt": [..], "long": [..], "threads": 2}'

`serve` answers lines of JSON until its input ends: {"do": "read"} reads `long`, {"do": "begin"} and then
{"do": "go", "count": 32} answer `prompt` greedily, {"do": "perplexity", "windows": [[..], ..]} and {"do": "version"}
say what their names say. Calls go to the library's own functions, so that Python takes little of the time.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

FILE_TYPES = {"f32": 0, "q8_0": 7, "bf16": 32}
CONTEXT = 1024


def main() -> None:
    """Do what the first argument says."""
    what, *rest = sys.argv[1:]
    if what == "requantise":
        requantise(*rest)
        return
    server = Server(rest[0], json.loads(rest[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(getattr(server, asked.pop("do"))(**asked)) + "\n")
        sys.stdout.flush()


def requantise(model: str, out: str, kind: str) -> None:
    """Write the model in another type, from the numbers that it has now."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[kind]
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(model.encode(), f"{out}.part".encode(), ctypes.byref(parameters)) != 0:
        raise SystemExit(f"llama.cpp could not write {out}")
    Path(f"{out}.part").rename(out)


class Server:
    """A model and its context."""

    def __init__(self, model: str, asked: dict[str, Any]) -> None:
        threads = asked["threads"]
        self.prompt, self.long = asked["prompt"], asked["long"]
        self.llama = llama_cpp.Llama(
            model, n_ctx=CONTEXT, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
            verbose=False,
        )  # fmt: skip
        self.words = self.llama.n_vocab()
        self.read()

    def version(self) -> dict[str, Any]:
        """Which llama-cpp-python, and what the library was built for."""
        return {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode()}

    def read(self) -> dict[str, Any]:
        """Read the long prompt."""
        self._clear()
        started = time.perf_counter()
        self._likeliest(self.long)
        return {"seconds": time.perf_counter() - started}

    def begin(self) -> dict[str, Any]:
        """Read the short one; the first token of its answer."""
        self._clear()
        self.last = self._likeliest(self.prompt)
        return {"answer": [self.last]}

    def go(self, count: int) -> dict[str, Any]:
        """So many more tokens, greedily, and the seconds that they took."""
        found = []
        started = time.perf_counter()
        for _ in range(count):
            self.last = self._likeliest([self.last])
            found.append(self.last)
        return {"seconds": time.perf_counter() - started, "answer": found}

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """Of every token but the first of each window."""
        losses = []
        for window in windows:
            self._clear()
            count = len(window) - 1
            batch = llama_cpp.llama_batch_init(count, 0, 1)
            batch.n_tokens = count
            for at, token in enumerate(window[:-1]):
                batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, at, 1, 0
                batch.logits[at] = True
            if llama_cpp.llama_decode(self.llama.ctx, batch) != 0:
                raise SystemExit("llama.cpp could not read a window")
            logits = llama_cpp.llama_get_logits(self.llama.ctx)
            rows = np.ctypeslib.as_array(logits, (count, self.words)).astype(np.float64)
            llama_cpp.llama_batch_free(batch)
            rows -= rows.max(axis=1, keepdims=True)
            losses.append(float((np.log(np.exp(rows).sum(1)) - rows[np.arange(count), window[1:]]).mean()))
        return {"perplexity": float(np.exp(np.mean(losses)))}

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)

    def _likeliest(self, tokens: list[int]) -> int:
        """Read tokens, and return the likeliest one after them."""
        held = (ctypes.c_int32 * len(tokens))(*tokens)  # the batch has its address, and nothing else holds it
        batch = llama_cpp.llama_batch_get_one(held, len(tokens))
        if llama_cpp.llama_decode(self.llama.ctx, batch) != 0:
            raise SystemExit("llama.cpp could not read tokens")
        logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.words,)).argmax())


if __name__ == "__main__":
    main()

"""Does llama.cpp run what `cut` writes? Its logits for cut files, against those for the same model with zeros.

    pip install llama-cpp-py-sync          # llama.cpp itself, in an environment of its own
    python benchmarks/export/check_llama_cpp.py MODEL.gguf TEXT.txt [--tokens 256] [--save FILE.npz]

MODEL is a GGUF file of the architecture llama. For every mask two files are made: the cut one, and one of all blocks in
which the output projections of the removed halves are zeros. llama.cpp must give the same logits for both. The last
line is JSON; `--save` keeps tokens and logits of the cut files, to hold against another program's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from layercoop_fast.export.gguf import cut_gguf
from layercoop_fast.export.gguf_file import read_gguf, write_gguf
from layercoop_fast.masks.text import RemovedHalves, parse_removed

MASKS = {
    "blocks": "13-18",
    "joined halves": "20.mlp,21.attn",
    "no attention": "12.attn",
    "no mlp": "13.mlp",
    "first attention, last mlp": "0.attn,29.mlp",
    "many": "0.attn,3,7.mlp,8.mlp,12.attn,13.attn,17.mlp,20.mlp,21.attn,29.mlp",
}
CONTEXT, GREEDY = 512, 24


def main() -> None:
    """Compare every mask and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    with Runner(asked.model) as full:
        tokens = full.tokenize(asked.text.read_text(encoding="utf-8")[: 8 * asked.tokens])[: asked.tokens]
        report: dict[str, Any] = {
            "full": {"nll": nll(full.logits(tokens), tokens), "bytes": asked.model.stat().st_size}
        }
    kept: dict[str, Any] = {"tokens": np.array(tokens)}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in MASKS.items():
            cut = cut_gguf(asked.model, parse_removed(text), Path(folder) / "cut.gguf", force=True)
            zeroed = Path(folder) / "zeroed.gguf"
            write_zeroed(asked.model, parse_removed(text), zeroed)
            with Runner(cut.out) as run:
                logits, greedy = run.logits(tokens), run.greedy(tokens[:32])
            with Runner(zeroed) as run:
                expected, expected_greedy = run.logits(tokens), run.greedy(tokens[:32])
            report[name] = {
                "removed": text,
                "architecture": cut.architecture,
                "bytes": cut.file_bytes["pruned"],
                "largest_difference": float(np.abs(logits - expected).max()),
                "same_greedy_tokens": greedy == expected_greedy,
                "nll": nll(logits, tokens),
            }
            kept[name] = logits
    if asked.save is not None:
        np.savez(asked.save, **kept)
    sys.stdout.write(json.dumps(report) + "\n")


def write_zeroed(model: Path, removed: RemovedHalves, out: Path) -> None:
    """Write the model with all its blocks, those of `removed` adding zeros."""
    source = read_gguf(model)
    outputs = {f"blk.{block}.{'attn_output' if part == 'attn' else 'ffn_down'}.weight" for block, part in removed}
    tensors = [replace(tensor, offset=None) if tensor.name in outputs else tensor for tensor in source.tensors]
    write_gguf(out, source, source.values, tensors, force=True)


def nll(logits: np.ndarray[Any, Any], tokens: list[int]) -> float:
    """Mean NLL of the tokens but the first, in nats; logits float32 [T, V]."""
    wide = logits[:-1].astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(wide)), tokens[1:]]
    return float((np.log(np.exp(wide).sum(axis=1)) - chosen).mean())


class Runner:
    """A model in llama.cpp, on one thread of the CPU. A context manager; it is freed at the end."""

    def __init__(self, path: Path) -> None:
        try:
            from llama_cpp_py_sync import Llama
        except ImportError:
            raise SystemExit("llama.cpp is not here: pip install llama-cpp-py-sync") from None
        self._llama = Llama(str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=1, n_gpu_layers=0)
        self._lib, self._ffi = self._llama._lib, self._llama._ffi

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self._llama.tokenize(text))

    def logits(self, tokens: list[int], n_past: int = 0) -> np.ndarray[Any, Any]:
        """Logits float32 [T, V] of these tokens, behind `n_past` others that went before."""
        if n_past == 0:
            self._llama._clear_context_state()
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, n_past + i, 1, 1
                batch.seq_id[i][0] = 0
            if self._lib.llama_decode(self._llama._ctx, batch) != 0:
                raise SystemExit("llama.cpp could not decode")
            words = self._llama.n_vocab
            size = len(tokens) * words * 4
            raw = self._ffi.buffer(self._lib.llama_get_logits(self._llama._ctx), size)
            return np.frombuffer(bytes(raw), np.float32).reshape(len(tokens), words)
        finally:
            self._lib.llama_batch_free(batch)

    def greedy(self, prompt: list[int]) -> list[int]:
        """The tokens that follow, the most probable each time, with the cache of keys and values."""
        tokens = list(prompt)
        logits = self.logits(tokens)
        for _ in range(GREEDY):
            tokens.append(int(logits[-1].argmax()))
            logits = self.logits(tokens[-1:], len(tokens) - 1)
        return tokens[len(prompt) :]


if __name__ == "__main__":
    main()

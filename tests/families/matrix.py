"""The family matrix: what works for a family, found by running it on a tiny random model.

    python tests/families/write_page.py        # writes docs/models.md anew

`examine(family)` runs everything and raises `AssertionError` where something that must work does not; what it returns
is the family's row. The tests compare each row with the one in docs/models.md, so the page is what the tests saw.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import astuple, dataclass, fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_configs import CORE, MORE
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from layercoop_fast.engine.loading import Checkpoint, quiet_transformers
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.sublayers import Sublayers
from layercoop_fast.errors import RequestError
from layercoop_fast.export.checkpoint import export_checkpoint
from layercoop_fast.export.config import exportable, prune_config
from layercoop_fast.export.quantising import left_whole
from layercoop_fast.game.model_game import ModelGame
from layercoop_fast.masked.unit_choice import make_units
from layercoop_fast.masked.windows import Windows
from layercoop_fast.texts.calibration import Calibration

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
FOUR_BIT = find_spec("bitsandbytes") is not None
NEW_TOKENS = 4

# What the page calls a family, in its order: (family of tiny_models, arguments that make it this one).
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2, Vicuna": ("llama", {}),
    "Llama 3": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mixtral": ("mixtral", {}),
    "Qwen2": ("qwen2", {"use_sliding_window": False}),
    "Qwen2-MoE": ("qwen2_moe", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "Gemma 2": ("gemma2", {}),
    "Gemma 3 (text)": ("gemma3", {"sliding_window_pattern": 2}),
    "Gemma 4 (text)": ("gemma4", {"layer_types": ["sliding_attention", "full_attention"]}),
    "Phi-3": ("phi3", {}),
    "GPT-2": ("gpt2", {}),
    "OPT": ("opt", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-J": ("gptj", {}),
    "Falcon": ("falcon", {}),
    "BLOOM": ("bloom", {}),
    "OLMo 2": ("olmo2", {}),
    "Granite": ("granite", {}),
    "SmolLM3": ("smollm3", {"no_rope_layer_interval": 2}),
    "DeepSeek-V3 (MLA)": ("deepseek_v3", {"first_k_dense_replace": 1}),
    "GPT-OSS": ("gpt_oss", {}),
    "Mamba": ("mamba", {}),
    "Mamba-2": ("mamba2", {}),
    "FalconMamba": ("falcon_mamba", {}),
    "RWKV": ("rwkv", {"rescale_every": 1}),
    "Jamba": ("jamba", {"attn_layer_period": 2}),
    "Bamba": ("bamba", {"attn_layer_indices": [1]}),
    "LFM2": ("lfm2", {"full_attn_idxs": [1]}),
    "Falcon-H1": ("falcon_h1", {}),
    "Qwen3-Next": ("qwen3_next", {}),
    "Qwen3.5 (text)": ("qwen3_5", {}),
}
assert {family for family, _ in ROWS.values()} == {*CORE, *MORE}

# Shapes that bitsandbytes' kernels take on every processor: outputs in multiples of 32, inputs in multiples of 64.
_ATTENTION_4BIT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
_ONE_WIDTH_4BIT: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2}
_MAMBA2_4BIT: dict[str, Any] = {"mamba_n_heads": 32, "mamba_d_head": 4, "mamba_d_state": 16}
_LINEAR_4BIT: dict[str, Any] = {
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 4,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 4,
    "shared_expert_intermediate_size": 64,
}
_SHAPES_4BIT: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128, "n_head": 2},
    "gptj": {"n_embd": 128, "n_head": 2},
    "bloom": {"hidden_size": 128, "n_head": 2},
    "opt": {**_ONE_WIDTH_4BIT, "ffn_dim": 128},
    "gpt_neox": {**_ONE_WIDTH_4BIT, "intermediate_size": 128},
    "falcon": _ONE_WIDTH_4BIT,
    "mamba": {"hidden_size": 64, "time_step_rank": 16},
    "falcon_mamba": {"hidden_size": 64, "intermediate_size": 128, "time_step_rank": 16},
    "mamba2": {"hidden_size": 64, "num_heads": 32, "head_dim": 4},
    "rwkv": {"hidden_size": 64, "attention_hidden_size": 64, "intermediate_size": 128},
    "qwen2_moe": {**_ATTENTION_4BIT, "shared_expert_intermediate_size": 64},
    "gemma4": {**_ATTENTION_4BIT, "global_head_dim": 64, "num_global_key_value_heads": 2},
    "deepseek_v3": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 64,
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
    "jamba": {**_ATTENTION_4BIT, "mamba_dt_rank": 16},
    "bamba": {**_ATTENTION_4BIT, **_MAMBA2_4BIT},
    "falcon_h1": {**_ATTENTION_4BIT, **_MAMBA2_4BIT, "mamba_d_ssm": 128},
    "qwen3_next": {**_ATTENTION_4BIT, **_LINEAR_4BIT},
    "qwen3_5": {**_ATTENTION_4BIT, **{name: _LINEAR_4BIT[name] for name in _LINEAR_4BIT if name[0] == "l"}},
}
# Experts, and attention by chunks, sum in another order where memory is laid out otherwise: fp32 rounding, no more.
_GROUPED = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "jamba", "qwen3_next"}
_TOLERANCE = 2e-5


@dataclass(frozen=True)
class Row:
    """One line of docs/models.md."""

    family: str
    masked: str
    path: str
    export: str
    generate: str
    sublayers: str
    sharing: str
    four_bit: str


HEADINGS = (
    "family", "masked = removed", "blocks on the CPU", "export", "generate", "sublayers", "sharing", "4-bit",
)  # fmt: skip


def examine(name: str, *, four_bit: bool = FOUR_BIT) -> Row:
    """Run everything for one family; see the module."""
    family, arguments = ROWS[name]
    blocks = 3 if family == "rwkv" else 2  # transformers opens no RWKV of one block
    model = tiny_model(family, blocks, **arguments)
    tolerance = _TOLERANCE if family in _GROUPED else 0.0
    skeleton = Skeleton(model)
    every = list(range(blocks))
    masks = [kept for kept in (every[1:], every[:-1]) if exportable(model.config, np.isin(every, kept)) is None]
    assert masks, "no block can go"
    for kept in masks:
        for batch, tokens in ((1, 17), (2, 12)):
            _masked_is_removed(skeleton, kept, _ids(batch, tokens), tolerance)
    with tempfile.TemporaryDirectory() as folder:
        for kept in masks:
            _exported_is_masked(skeleton, kept, Path(folder) / str(kept[0]), tolerance)
        if four_bit:
            wide = tiny_model(family, blocks, **{**arguments, **_SHAPES_4BIT.get(family, _ATTENTION_4BIT)})
            quantised = _four_bit(wide, Path(folder), tolerance)
        else:
            quantised = ""
    return Row(
        name,
        "to 2e-5" if tolerance else "bit for bit",
        _path(skeleton),
        "yes" if len(masks) == 2 else "yes, with attention",
        "yes",
        _sublayers(skeleton, tolerance),
        _sharing(model, tolerance),
        quantised,
    )


def _ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def _close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def masked_logits(skeleton: Skeleton, ids: torch.Tensor, kept: list[int]) -> torch.Tensor:
    context = skeleton.context(ids)
    hidden = context.embedding
    for layer in kept:
        hidden = context.run(layer, hidden)
    return context.logits(hidden)


def physically_removed(model: PreTrainedModel, path: str, kept: list[int]) -> PreTrainedModel:
    """The same model with the other blocks really taken out of its module list, and out of its config's lists."""
    smaller = copy.deepcopy(model)
    parent, _, attribute = path.rpartition(".")
    blocks = getattr(smaller.get_submodule(parent), attribute)
    if hasattr(blocks[0], "pre_ln"):  # RWKV's norm of the embedding, in whichever block is the first
        blocks[kept[0]].pre_ln, blocks[kept[0]].layer_id = blocks[0].pre_ln, 0
    setattr(smaller.get_submodule(parent), attribute, nn.ModuleList([blocks[layer] for layer in kept]))
    config = prune_config(model.config, kept)
    for module in smaller.modules():
        if getattr(module, "config", None) is not None:
            module.config = config
    return smaller


@torch.inference_mode()
def _masked_is_removed(skeleton: Skeleton, kept: list[int], ids: torch.Tensor, tolerance: float) -> None:
    full = masked_logits(skeleton, ids, list(range(skeleton.n_layers)))
    _close(full, skeleton.model(input_ids=ids, use_cache=False).logits, tolerance)
    removed = physically_removed(skeleton.model, skeleton.blocks_path, kept)
    got = masked_logits(skeleton, ids, kept)
    _close(got, removed(input_ids=ids, use_cache=False).logits, tolerance)
    assert (got - full).abs().max() > 1e-2, "removing a block must be visible, or this sees nothing"


@torch.inference_mode()
def _exported_is_masked(
    skeleton: Skeleton, kept: list[int], out: Path, tolerance: float, slack: float = 0.0
) -> PreTrainedModel:
    """Written, opened by plain transformers, the same logits, and generating with its cache as without.

    With its cache a token may be another one whose logit is as large but for `slack`, a share of the largest.
    """
    export_checkpoint(skeleton.model, kept, out, blocks_path=skeleton.blocks_path)
    ids = _ids(2, 12)
    with quiet_transformers():
        pruned = AutoModelForCausalLM.from_pretrained(out).eval()
    _close(pruned(input_ids=ids, use_cache=False).logits, masked_logits(skeleton, ids, kept), tolerance)
    prompt = ids[:1]
    for use_cache in (True, False):
        tokens = pruned.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
        )
        for at in range(prompt.shape[1], tokens.shape[1]):
            row = masked_logits(skeleton, tokens[:, :at], kept)[0, -1]
            allowed = slack * row.abs().max() if use_cache else 0.0
            assert row.max() - row[tokens[0, at]] <= allowed, f"use_cache={use_cache}: token {at}"
        assert tokens.shape[1] == prompt.shape[1] + NEW_TOKENS
    return pruned


def _path(skeleton: Skeleton) -> str:
    path = make_units(Windows(skeleton, _ids(2, 17))).path
    return {"hf": "model's own", "fast": "fast"}.get(path, "fast in part")


@torch.inference_mode()
def _sublayers(skeleton: Skeleton, tolerance: float) -> str:
    """Halves in a row are the blocks, and a silenced half can be written; else why there are none."""
    try:
        sublayers = Sublayers(skeleton)
    except RequestError:
        return _why_whole(skeleton)
    ids = _ids(2, 12)
    context = skeleton.context(ids)
    hidden = context.embedding
    for unit in range(sublayers.n_units):
        hidden = sublayers.run(context, unit, hidden)
    _close(context.logits(hidden), skeleton.model(input_ids=ids, use_cache=False).logits, tolerance)
    halves = sublayers.halves[0]
    try:
        for unit in range(sublayers.n_units):
            sublayers.silencing_parameters(unit)
    except RequestError:
        return f"{halves.attn} + {halves.mlp}, measured only"
    return f"{halves.attn} + {halves.mlp}"


def _why_whole(skeleton: Skeleton) -> str:
    """The two sorts of blocks that have no halves: state-space ones, and such as do both at once."""
    children = [name for name, _ in skeleton.blocks[0].named_children()]
    if "mixer" in children:
        return "no: state-space, one part"
    if "mamba" in children and "self_attn" in children:
        return "no: parallel mixers"
    return "no: parallel"


def _game(model: PreTrainedModel, **options: Any) -> ModelGame:
    return ModelGame(Checkpoint(model, tiny_tokenizer(), "tiny"), Calibration(_ids(3, 24), "t"), **options)


def _sharing(model: PreTrainedModel, tolerance: float) -> str:
    """Losses of all masks, computed together and each by itself."""
    together = _game(model)
    masks = np.array(list(product([True, False], repeat=together.n_players)))
    worths = together.evaluate(masks)
    alone = [_game(model).evaluate(mask[None]) for mask in masks]
    nll = np.concatenate([one.window_nll for one in alone])
    np.testing.assert_allclose(worths.window_nll, nll, rtol=tolerance)
    assert together.evaluations.layer_evals < together.evaluations.layer_evals_naive
    return "to 2e-5" if tolerance else "bit for bit"


def _four_bit(model: PreTrainedModel, folder: Path, tolerance: float) -> str:
    """Quantised to nf4 as it is opened: measured, exported still quantised, and opened again; or why not."""
    from transformers import BitsAndBytesConfig

    left = sorted({name.rpartition(".")[2] for name in left_whole(model)})
    with quiet_transformers():
        model.save_pretrained(folder / "plain")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[*left, "lm_head"] if left else None,
    )
    with quiet_transformers():
        quantised = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config).eval()
    if not _codes(quantised):
        return "no: none of its layers is one that the library replaces"
    skeleton = Skeleton(quantised)
    kept = list(range(1, skeleton.n_layers))
    # On processors with AVX512-BF16 bitsandbytes rounds to bf16, and one row by itself otherwise than among others.
    pruned = _exported_is_masked(skeleton, kept, folder / "four-bit", tolerance, slack=3e-2)
    codes = _codes(pruned)
    assert 0 < codes < _codes(quantised)
    assert (masked_logits(skeleton, _ids(1, 12), kept) - _plain_logits(model, kept)).abs().max() > 1e-4
    return f"nf4 but for {' and '.join(left)}" if left else "nf4"


def _plain_logits(model: PreTrainedModel, kept: list[int]) -> torch.Tensor:
    return masked_logits(Skeleton(model), _ids(1, 12), kept)


def _codes(model: PreTrainedModel) -> int:
    """Bytes of 4-bit codes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dtype == torch.uint8)


# The page

_BEFORE = """# Models

What works for which family. Written by `python tests/families/write_page.py` from what the tests run; each family's
test compares its row with the one here. Tiny random models of two blocks (RWKV three), fp32, CPU, transformers 5.

"""
_AFTER = """
- **masked = removed**: the masked pass gives the logits of the model with the other blocks physically removed. Where
  experts are grouped, sums change their order with the layout of memory: equal to 2e-5 there.
- **blocks on the CPU**: *fast*, on joint products and C++ kernels where a block agrees with the model's own at
  start-up; else the model's own modules run, with the same sharing. *In part*: all but the blocks with experts. Sliding
  windows, soft caps, layers without positions, fused projections and norms behind halves are fast too.
- **export**: the checkpoint of the mask, opened by plain `from_pretrained`, gives the masked logits. *With attention*:
  of a hybrid one attention layer has to stay, since transformers cannot generate with a cache beside none.
- **generate**: greedy tokens of that checkpoint, with its cache and without, are those of the masked model.
- **sublayers**: the two parts that can be players, one after the other. *Measured only*: experts have no single output
  projection whose zeros would write the mask. A state-space block is one part; parallel ones read the same stream.
- **sharing**: a worth does not depend on the masks that it is computed with.
- **4-bit**: opened with bitsandbytes nf4, measured, exported still quantised, opened again: the same logits and tokens.
  32 of the 33 families: Falcon's linear layers are a class of its own, which transformers does not replace.
  On processors with AVX512-BF16 bitsandbytes multiplies in bf16, takes only weights with outputs divisible by 32 and
  inputs by its block of 64, and reads a transposed input wrongly (0.50). So gates with one output and three
  projections of Mamba stay as they are, one of which transformers reads without calling it (`layercoop-fast quantise`
  sees to it). A Mamba that was quantised whole is wrong there in plain transformers too. The exported model equals the
  masked one bit for bit there as elsewhere.

## What an export is held to

`prune`, `quantise` and `export_checkpoint` open what they wrote by transformers and compare logits on 48 tokens with
the masked pass; the tolerance is a share of the largest logit. `prune` also compares the NLL of the calibration text,
which the game may have measured on its fast blocks; above 1 nat its tolerance grows with it. The table says what is
allowed, not what was seen.

| model | logits, CPU | logits, GPU | NLL of the text |
|---|---|---|---|
| dense, fp32, fp64 | bit for bit | 2e-5 | 1e-3 nats |
| dense, fp16 | bit for bit | 4e-3 | 2e-2 |
| dense, bf16 | bit for bit | 3e-2 | 5e-2 |
| dense, quantised (bitsandbytes, torchao, GPTQ, AWQ) | bit for bit | by the dtype | 5e-2 |
| with experts | by the dtype, as on a GPU | by the dtype | by the dtype |

By the dtype too: a GPT-2 with `scale_attn_by_inverse_layer_idx`, whose factors are folded into weights, and a model
whose rotary frequencies were converted with its weights (`model.bfloat16()`), which `from_pretrained` makes in fp32.
The table is `ROUNDING` and `tolerance` in `export/proof.py`. Without the memory to open the folder the checkpoint is
written all the same, and a warning and `verified` in `layercoop.json` say that nothing was compared.


RWKV keeps at least two blocks, since transformers cannot open one with fewer. It runs on its weights as they are stored
(`rescale_every = 0`; half precision may then overflow in deep models), and the norm of the embedding that its first
block holds goes to whichever block is first. Vicuna is a Llama with a chat template of its own, which `--chat` uses.
`layercoop-fast doctor MODEL` says all of this for one model.

Recurrent blocks run on their fast kernels (`mamba-ssm`, `causal-conv1d`, `flash-linear-attention`) where those are
installed beside a GPU: transformers puts them under its modules' names as it is imported, a masked pass calls those
modules, and RWKV's kernel it takes from its hub (package `kernels`); else it loops over tokens. GPTQ and AWQ
checkpoints run on the modules of `gptqmodel`, which repacks the codes for the machine, so a pruned one is
copied from the files. Seen once with gptqmodel 7.6 on a CPU of two cores, with a tiny GPTQ Llama: the exported model's
logits are the masked ones bit for bit, and it generates (`pip install gptqmodel optimum` builds from source; to
quantise with it on two cores set `GPTQMODEL_CPU_WORKERS=2`). AWQ goes the same way and was not tried.
"""


def line(row: Row) -> str:
    return "| " + " | ".join(astuple(row)) + " |"


def page(rows: list[Row]) -> str:
    assert len(HEADINGS) == len(fields(Row))
    head = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return _BEFORE + "\n".join([*head, *map(line, rows)]) + "\n" + _AFTER


def page_rows() -> dict[str, str]:
    """The lines of the page by family."""
    table = PAGE.read_text().split("\n- **", 1)[0]  # other tables follow
    lines = [text for text in table.splitlines() if text.startswith("| ")][1:]
    return {text.split(" | ")[0].removeprefix("| "): text for text in lines}

"""The logits of a cut GGUF file against the masked pass on its source, both read by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from layercoop_fast.engine.loading import quiet_transformers
from layercoop_fast.engine.quantised import drop_weights
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.gguf_file import GGUF, read_gguf
from layercoop_fast.export.gguf_rules import architecture
from layercoop_fast.export.proof import Written, masked_reference, probe_ids
from layercoop_fast.inputs.libraries import first_line, library_reads
from layercoop_fast.masked.forward import free_memory
from layercoop_fast.masked.players import make_players

# transformers unpacks to fp32, and holds a tensor packed and unpacked while it reads.
_BYTES_PER_PARAMETER = 8


def compare(made: Path, source: GGUF, removed: frozenset[tuple[int, str]]) -> dict[str, Any]:
    """As `gguf_proof.compare_logits`, where all required libraries are installed."""
    for name in (architecture(source.values), architecture(read_gguf(made).values)):
        if name not in GGUF_SUPPORTED_ARCHITECTURES:
            return {"done": False, "reason": f"transformers {transformers.__version__} does not read {name} files"}
    needed = _BYTES_PER_PARAMETER * sum(tensor.n_parameters for tensor in source.tensors)
    if needed > (free := free_memory(torch.device("cpu"))):
        return {"done": False, "reason": f"opening the source takes about {needed:,} bytes, and {free:,} are free"}
    try:
        model = _opened(source.path)
    except _Unread as refused:
        return {"done": False, "reason": str(refused)}
    skeleton = Skeleton(model)
    whole = all((block, "attn") in removed and (block, "mlp") in removed for block, _ in removed)
    players = make_players("layers" if whole else "sublayers", skeleton)
    if whole:
        units = [layer for layer in range(skeleton.n_layers) if (layer, "attn") not in removed]
    else:
        units = [unit for unit in range(players.n_units) if (unit // 2, ("attn", "mlp")[unit % 2]) not in removed]
    reference = masked_reference(players, units, probe_ids(skeleton))
    drop_weights(model)
    try:
        written = Written(_opened(made))
    except _Unread as refused:
        if architecture(read_gguf(made).values) == architecture(source.values):
            raise RunError(f"the written file cannot be opened: {refused}; nothing was written") from refused
        return {"done": False, "reason": str(refused)}
    return reference.check(written)


class _Unread(Exception):
    """transformers cannot read a file; the message says why."""


def _opened(file: Path) -> PreTrainedModel:
    """The model of a GGUF file, unpacked. Raises `_Unread` where transformers cannot read it."""
    # Newer versions of transformers keep weights packed by default; older ones always unpack.
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    try:
        with quiet_transformers(), library_reads(file.name):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, **options
            )
    except RequestError as error:
        first = first_line(error.__cause__ or error).split(". ", 1)[0]
        raise _Unread(f"transformers {transformers.__version__} does not read it ({first})") from error
    model.hf_quantizer = None  # the weights are plain numbers now
    return model.eval()

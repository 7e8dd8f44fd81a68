"""The LM Evaluation Harness's model `layercoop`: a checkpoint under one mask.

    python -m layercoop_fast.tasks run --model layercoop --model_args pretrained=MODEL,mask=13-18 --tasks arc_easy

The harness (0.4.13) looks for no entry points of other packages, so the command `lm_eval` cannot find this model.
`python -m layercoop_fast.tasks` is that command with the model registered; programs call `register()`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from lm_eval.api.registry import register_model

from layercoop_fast.errors import RequestError
from layercoop_fast.tasks.harness import MaskedLM
from layercoop_fast.tasks.options import EngineOptions


class LayerCoopLM(MaskedLM):
    """The harness's model `layercoop`: one mask.

    Args:
        pretrained: the checkpoint's folder.
        mask: what goes, as `masks.text.mask_of` reads it: "13-18", "12.attn", a folder that `prune` wrote, "DIR@3". A
            text with commas has to come in JSON arguments, since the harness cuts others at commas.
        dtype, device, memory, block_path, trust_remote_code: as in `EngineOptions`.
        max_length, add_bos_token, prefix_token_id: as in `MaskedLM`.
        batch_size, max_batch_size: taken and without effect; requests are packed by their tokens.

    Raises `RequestError` for other arguments.
    """

    def __init__(
        self,
        pretrained: str,
        mask: str | int = "full",
        *,
        dtype: str = "auto",
        device: str = "cpu",
        memory: int | None = None,
        block_path: str = "auto",
        trust_remote_code: bool = False,
        max_length: int | None = None,
        **others: Any,
    ) -> None:
        # The harness names cuda:0 by itself; as its own model, this one then runs where it can.
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        options = EngineOptions(
            dtype=dtype, device=device, memory=memory, block_path=block_path, trust_remote_code=trust_remote_code
        )
        tokens = {name: others.pop(name) for name in ("add_bos_token", "prefix_token_id") if name in others}
        unknown = sorted(others.keys() - {"batch_size", "max_batch_size"})
        if unknown:
            raise RequestError(
                f"the model layercoop takes no {unknown[0]}=: it takes pretrained, mask, dtype, device, memory, "
                "block_path, trust_remote_code, max_length, add_bos_token and prefix_token_id"
            )
        # The harness makes a number of `mask=13`.
        super().__init__(str(pretrained), {"": str(mask)}, options, max_length=max_length, **tokens)


def register() -> None:
    """Make the name `layercoop` known to the harness, in this process."""
    import_module("lm_eval.models")  # its own names come first: it registers them only into an empty list
    register_model("layercoop")(LayerCoopLM)

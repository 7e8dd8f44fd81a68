"""What a model makes of a batch of windows: its states before the output projection, and that projection as a `Head`.

Everything around the projection is the model's own code; the projection alone is left out, so that logits of all
positions are never in memory (`kernels/linear_divergence.py`). On the CPU the teacher's blocks run in their fast form
(`llama/fast_blocks.py`), where they have one and are dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layercoop_fast.engine.calls import BlockCall, Returned, replaced_forward
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.linear_divergence import Head
from layercoop_fast.kernels.memory import is_native
from layercoop_fast.llama.cpu_block import FastBlock, Workspace
from layercoop_fast.llama.fast_blocks import fast_block

_PROBE = 64.0


class Reader:
    """A model without its output projection.

    Args:
        model: a causal language model.

    Attributes:
        model: the model.
        projection: its output projection.

    Raises `RequestError` where the model does more to its logits than to scale or softly cap them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        found = model.get_output_embeddings()
        if type(found) is not nn.Linear:
            raise RequestError(f"healing needs a head that is a linear map, and it is a {type(found).__name__}")
        self.projection: nn.Linear = found
        self._scale, self._soft_cap = _ending(model, found)

    @property
    def head(self) -> Head:
        """The projection and what follows it; its tensors are the model's own."""
        return Head(self.projection.weight, self.projection.bias, self._scale, self._soft_cap)

    def states(self, ids: Tensor) -> Tensor:
        """What the projection would be handed for tokens int64 [B, T]: [B · T, H]; gradients flow where enabled."""
        states = _without(self.model, self.projection, ids)[0]
        return states.reshape(-1, states.shape[-1])


class FastReader(Reader):
    """The same, by the fast forms of all blocks; never for gradients.

    Args:
        skeleton: of the model.
        blocks: the fast form of every block, for windows of one length.
    """

    def __init__(self, skeleton: Skeleton, blocks: Sequence[FastBlock]) -> None:
        super().__init__(skeleton.model)
        self._skeleton = skeleton
        self._blocks = blocks

    def states(self, ids: Tensor) -> Tensor:
        """As `Reader.states`: int64 [B, T] → [B · T, H]."""
        convention = self._skeleton.convention

        def stand_in(index: int) -> Callable[..., Returned]:
            def forward(*args: Any, **kwargs: Any) -> Returned:
                hidden = BlockCall(args, kwargs).hidden(convention.takes)
                if index == 0:
                    hidden = hidden.clone()
                    for block in self._blocks:
                        block.run([hidden], [hidden])
                return convention.wrap(hidden)

            return forward

        # The fast blocks' memory was made in inference mode, and is written to in that mode alone.
        with torch.inference_mode(), replaced_forward(self._skeleton.blocks, stand_in):
            return super().states(ids)


def teacher_reader(skeleton: Skeleton, window: int) -> Reader:
    """The fastest reader of a model that is not trained, for windows of so many tokens."""
    parameters = list(skeleton.model.parameters())
    ids = torch.arange(window, device=skeleton.device)[None] % skeleton.vocab_size
    if window > 1 and all(is_native(parameter) for parameter in parameters):
        context, workspace = skeleton.context(ids), Workspace()
        made: list[FastBlock] = []
        for layer in range(skeleton.n_layers):
            fast = fast_block(skeleton.block(layer), context.call(layer), skeleton.convention, workspace)
            if fast is None:
                break
            made.append(fast)
        if len(made) == skeleton.n_layers and all(block.holds for block in made):
            return FastReader(skeleton, made)
    return Reader(skeleton.model)


def _without(
    model: PreTrainedModel, projection: nn.Module, ids: Tensor, answer: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The model with `answer` in place of its projection: what the projection is handed, and what the model returns."""
    seen: list[Tensor] = []

    def stand_in(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden.new_zeros((*hidden.shape[:-1], 1)) if answer is None else answer(hidden)

    with replaced_forward([projection], lambda _: stand_in):
        logits = model(input_ids=ids, use_cache=False).logits
    if len(seen) != 1 or seen[0].shape[:2] != ids.shape:
        raise RequestError("healing needs a head that is applied once, to every position, and this model's is not")
    return seen[0], logits


@torch.no_grad()
def _ending(model: PreTrainedModel, projection: nn.Linear) -> tuple[float, float | None]:
    """Scale and soft cap of what the model does to its logits. `RequestError` where it does something else."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device=projection.weight.device)
    given = torch.linspace(-_PROBE, _PROBE, 129, device=ids.device)  # fp32, so that constants come back exactly
    found = _without(model, projection, ids, lambda hidden: given.expand(*hidden.shape[:-1], -1))[1][0, 0].double()
    wide = given.double()
    scale = float(found[-1] / wide[-1])
    if scale > 0 and torch.allclose(found, scale * wide, rtol=1e-6, atol=0):
        return scale, None
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    if isinstance(cap, (int, float)) and cap > 0 and torch.allclose(found, cap * (wide / cap).tanh(), rtol=1e-5):
        return 1.0, float(cap)
    raise RequestError(f"healing does not know what {type(model).__name__} does to its logits")

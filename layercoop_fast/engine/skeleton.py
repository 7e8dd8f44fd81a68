"""Any Hugging Face causal language model as embed → blocks → head, without a line of its code copied.

    skeleton = Skeleton(model)
    context = skeleton.context(ids)                # ids int64 [B, T]
    hidden = context.embedding                     # [B, T, H], what block 0 receives
    for layer in kept:
        hidden = context.run(layer, hidden)        # the model's own block, on the model's own arguments
    logits = context.logits(hidden)                # [B, T, V], the model's own final norm, head, scale and soft cap

Played over all layers this is the model's own forward pass, bit for bit; played over some, it is that of the same model
with the other blocks physically removed. A context belongs to one batch: positions and attention masks are captured
anew for every batch shape, never repeated by guess, since some families make them batch-sized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layercoop_fast.engine.calls import (
    BlockCall,
    Convention,
    Returned,
    learn_convention,
    refuse_caches,
    replaced_forward,
)
from layercoop_fast.engine.first_block import find_entry, only_in_first, standing_aside, stop_rescaling
from layercoop_fast.engine.quantised import protect_scales
from layercoop_fast.engine.streamed import StreamedBlocks
from layercoop_fast.engine.structure import find_blocks
from layercoop_fast.errors import RunError

_PROBE_TOKENS = 16


class Skeleton:
    """A causal language model seen as embed, blocks and head.

    Args:
        model: a `PreTrainedModel` with a language-model head; it is put in evaluation mode, an RWKV is set to run on
            its weights as they are stored (`engine/first_block.py`), the scales of a bitsandbytes model are kept for
            `state_dict()` (`engine/quantised.py`), and it is otherwise unchanged.
        blocks: dotted path of the block list, where it is not found by itself.
        streamed: the matrices of the blocks, where those are read when a block is used.

    Raises `RequestError` when the model cannot be seen so (see `find_blocks` and `learn_convention`).
    """

    def __init__(
        self, model: PreTrainedModel, blocks: str | None = None, streamed: StreamedBlocks | None = None
    ) -> None:
        self.model = model.eval()
        stop_rescaling(model)
        protect_scales(model)
        self.streamed = streamed
        found = find_blocks(model, blocks)
        self.blocks_path = found.path
        self.blocks = found.blocks
        ids = torch.zeros(
            1, min(_PROBE_TOKENS, self.max_tokens or _PROBE_TOKENS), dtype=torch.int64, device=self.device
        )
        # A probe of all-equal tokens would make unlike tensors equal by chance; the first few words do not.
        ids += torch.arange(ids.shape[1], device=self.device) % self.vocab_size
        with torch.inference_mode(), self._whole():
            self.convention: Convention = learn_convention(self.blocks, lambda: self._forward(ids))
        self.entry: nn.Module | None = None
        if only_in_first(self.blocks):
            context = self.context(ids)
            self.entry = find_entry(self.blocks, lambda hidden: context.run(0, hidden), context.embedding)

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """The device of the model's input embedding."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def one_device(self) -> bool:
        """Whether all of the model lies on one device, but for matrices that are read when they are used."""
        return len({str(parameter.device) for parameter in self.model.parameters()} - {"meta"}) == 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def vocab_size(self) -> int:
        """Number of rows of the input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_tokens(self) -> int | None:
        """The longest window the model has positions for, or None where it states none."""
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    def context(self, ids: Tensor, **arguments: Tensor) -> Context:
        """Capture what every block is handed for this batch (`ids` int64 [B, T]); no block is computed.

        `arguments` are passed on to the model's forward: positions and a mask of another arrangement than plain text.
        """
        return Context(self, ids, arguments)

    @torch.inference_mode()
    def head(self, ids: Tensor, hidden: Tensor, **arguments: Tensor) -> Tensor:
        """Final norm and head on states behind the last block: `ids` int64 [B, T], [B, T, H] → [B, T, V].

        The model's own forward runs with its blocks standing aside and the state put in behind the last of them.
        """
        convention = self.convention
        last = self.n_layers - 1

        def stand_in(index: int) -> Callable[..., Returned]:
            if index == last:
                return lambda *args, **kwargs: convention.wrap(hidden)
            return lambda *args, **kwargs: convention.wrap(BlockCall(args, kwargs).hidden(convention.takes))

        with replaced_forward(self.blocks, stand_in):
            return self._forward(ids, **arguments)

    def block(self, layer: int) -> nn.Module:
        """Block `layer` with its weights; where blocks are streamed, until the next one is asked for."""
        if self.streamed is not None:
            self.streamed.use(layer)
        return self.blocks[layer]

    def expect(self, layers: Iterable[int]) -> None:
        """Say which blocks will be asked for next, so that streamed ones are read ahead."""
        if self.streamed is not None:
            self.streamed.expect(layers)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Within the block the model's own forward pass finds every block's weights."""

        def before(layer: int) -> Callable[..., None]:
            def read(*_: Any) -> None:
                self.block(layer)

            return read

        handles = [block.register_forward_pre_hook(before(layer)) for layer, block in enumerate(self.blocks)]
        self.expect(range(len(self.blocks)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, ids: Tensor, **arguments: Tensor) -> Tensor:
        """The model's own forward pass without a cache: logits [B, T, V]."""
        logits = self.model(input_ids=ids, use_cache=False, **arguments).logits
        if not isinstance(logits, Tensor):
            raise RunError(f"{type(self.model).__name__} returned no logits")
        return logits


class Context:
    """The calls of all blocks for one batch of token windows.

    Attributes:
        ids: int64 [B, T].
        embedding: [B, T, H], what block 0 receives, behind a norm of it that block 0 holds for the whole model.
    """

    def __init__(self, skeleton: Skeleton, ids: Tensor, arguments: dict[str, Tensor] | None = None) -> None:
        self.skeleton = skeleton
        self.ids = ids
        self._arguments = arguments or {}
        convention = skeleton.convention
        captured: dict[int, BlockCall] = {}

        def recorder(index: int) -> Callable[..., Returned]:
            def record(*args: Any, **kwargs: Any) -> Returned:
                call = BlockCall(args, kwargs)
                captured[index] = call
                return convention.wrap(call.hidden(convention.takes))

            return record

        with torch.inference_mode():
            with replaced_forward(skeleton.blocks, recorder):
                skeleton._forward(ids, **self._arguments)
            for index, call in captured.items():
                refuse_caches(index, call)
            self.embedding = captured[0].hidden(convention.takes)
            if skeleton.entry is not None:
                self.embedding = skeleton.entry(self.embedding)
        self._calls = [captured[index].with_hidden(convention.takes, None) for index in range(skeleton.n_layers)]

    @torch.inference_mode()
    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """Block `layer` on `hidden` [B, T, H] → [B, T, H]."""
        convention = self.skeleton.convention
        call = self._calls[layer].with_hidden(convention.takes, hidden)
        with standing_aside(self.skeleton.entry if layer == 0 else None):
            return convention.unwrap(self.skeleton.block(layer)(*call.args, **call.kwargs))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head on the state after the last block: [B, T, H] → [B, T, V].

        See `Skeleton.head`.
        """
        return self.skeleton.head(self.ids, hidden, **self._arguments)

    def call(self, layer: int) -> BlockCall:
        """What block `layer` is handed, the place of the hidden state left empty."""
        return self._calls[layer]

    def describe(self, layer: int) -> list[str]:
        """What block `layer` is handed besides the hidden state, for people to read."""
        return [f"{where}: {_described(value)}" for where, value in self._calls[layer].arguments() if value is not None]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_described(item) for item in value) + ")"
    return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__

"""Any Hugging Face causal language model as embedding → blocks → head, without copying its code.

    skeleton = Skeleton(model)
    context = skeleton.context(ids)                # ids int64 [B, T]
    hidden = context.embedding                     # [B, T, H], what block 0 receives
    for layer in kept:
        hidden = context.run(layer, hidden)        # the model's own block, on the model's own arguments
    logits = context.logits(hidden)                # [B, T, V], the model's own final norm, head, scale and soft cap

Run over all layers this is the model's own forward pass, bit for bit. Run over some of them, it is the forward pass of
the same model with the other blocks physically removed. A context belongs to one batch: positions and attention masks
are captured for each batch and never expanded to another batch size, since some families make them of the batch's size.
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
from layercoop_fast.engine.first_block import find_embedding_norm, only_in_first, passed_through, stop_rescaling
from layercoop_fast.engine.quantised import protect_scales
from layercoop_fast.engine.streamed import StreamedBlocks
from layercoop_fast.engine.structure import find_blocks
from layercoop_fast.errors import RunError

_PROBE_TOKENS = 16


class Skeleton:
    """A causal language model seen as embedding, blocks and head.

    Args:
        model: a `PreTrainedModel` with a language-model head. It is put in evaluation mode, an RWKV is set to run on
            its weights as they are stored (`engine/first_block.py`), and the scales of a bitsandbytes model are kept
            for `state_dict()` (`engine/quantised.py`). Nothing else of it is changed.
        blocks: dotted path of the block list, where it is not found by itself.
        streamed: the matrices of the blocks, where they are read when a block is used.

    Attributes:
        blocks: the model's own modules, in order.
        blocks_path: dotted path of their list.
        convention: how the blocks are called.
        embedding_norm: the child of the first block that belongs to the embedding (RWKV), or None.

    Raises `RequestError` where the model does not have this structure (see `find_blocks` and `learn_convention`).

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> from layercoop_fast import Skeleton
        >>> skeleton = Skeleton(AutoModelForCausalLM.from_pretrained("my-model"))
        >>> skeleton.n_layers, skeleton.blocks_path
        (4, 'model.layers')
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
        # A probe of equal tokens could make different tensors equal by chance; the first few token ids do not.
        ids += torch.arange(ids.shape[1], device=self.device) % self.vocab_size
        with torch.inference_mode(), self._whole():
            self.convention: Convention = learn_convention(self.blocks, lambda: self._forward(ids))
        self.embedding_norm: nn.Module | None = None
        if only_in_first(self.blocks):
            context = self.context(ids)
            self.embedding_norm = find_embedding_norm(
                self.blocks, lambda hidden: context.run(0, hidden), context.embedding
            )

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
        """Whether all of the model is on one device, apart from matrices that are read when they are used."""
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
        """Capture the arguments of every block for this batch (`ids` int64 [B, T]); no block is computed.

        `arguments` are passed to the model's forward: position ids and an attention mask that differ from plain text's.
        """
        return Context(self, ids, arguments)

    @torch.inference_mode()
    def head(self, ids: Tensor, hidden: Tensor, **arguments: Tensor) -> Tensor:
        """Final norm and head on the output of the last block: `ids` int64 [B, T], [B, T, H] → [B, T, V].

        The model's own forward pass runs with blocks that return their input, and `hidden` as the output of the last.
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
        """Block `layer` with its weights; where blocks are streamed, they are valid until the next call."""
        if self.streamed is not None:
            self.streamed.use(layer)
        return self.blocks[layer]

    def expect(self, layers: Iterable[int]) -> None:
        """Announce the blocks that will be used next, so that streamed ones are read ahead."""
        if self.streamed is not None:
            self.streamed.expect(layers)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Within the `with` block the model's own forward pass reads each block's weights where they are streamed."""

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
        skeleton: of the model.
        ids: int64 [B, T].
        embedding: [B, T, H], what block 0 receives, after the skeleton's `embedding_norm`.
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
            if skeleton.embedding_norm is not None:
                self.embedding = skeleton.embedding_norm(self.embedding)
        self._calls = [captured[index].with_hidden(convention.takes, None) for index in range(skeleton.n_layers)]

    @torch.inference_mode()
    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """Block `layer` on `hidden` [B, T, H] → [B, T, H]."""
        convention = self.skeleton.convention
        call = self._calls[layer].with_hidden(convention.takes, hidden)
        with passed_through(self.skeleton.embedding_norm if layer == 0 else None):
            return convention.unwrap(self.skeleton.block(layer)(*call.args, **call.kwargs))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head on the output of the last block, as `Skeleton.head`: [B, T, H] → [B, T, V]."""
        return self.skeleton.head(self.ids, hidden, **self._arguments)

    def call(self, layer: int) -> BlockCall:
        """The arguments of block `layer`, with the place of the hidden state empty."""
        return self._calls[layer]

    def describe(self, layer: int) -> list[str]:
        """The arguments of block `layer` besides the hidden state, as text for people."""
        return [f"{where}: {_described(value)}" for where, value in self._calls[layer].arguments() if value is not None]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_described(item) for item in value) + ")"
    return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__

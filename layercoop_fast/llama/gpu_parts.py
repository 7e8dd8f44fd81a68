"""What a step of generation on a GPU is made of: blocks, the embedding before them and the head after them."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.kernels.reference.attention import PagePlaces
from layercoop_fast.kernels.rms_norm import rms_norm
from layercoop_fast.llama.block import BlockParts, UnfitError, let_go
from layercoop_fast.llama.fused_head import FusedHead
from layercoop_fast.llama.gpu_quantised import QuantisedMap, norm_on
from layercoop_fast.llama.steps import Added


class DecodeBlock(Protocol):
    """A block in generation: `PoolBlock`, or `QuantisedBlock`."""

    parts: BlockParts

    def normed_heads(
        self, hidden: Tensor, added: Added | None, cos: Tensor, sin: Tensor, into: PagePlaces
    ) -> tuple[Tensor, Tensor]:
        """States [R, H] with what is to be added; of their norm queries and keys, rotated, and values.

        The latter are [R, (heads + 2·kv_heads)·D]; keys and values are written `into` pages too.
        """

    def behind_attention(self, mixed: Tensor) -> Tensor:
        """What attention adds: [R, heads·D] → [R, H]."""

    def normed_mlp(self, hidden: Tensor, added: Added | None = None) -> tuple[Tensor, Tensor]:
        """States [R, H] with what is to be added, and what the MLP adds to those: [R, H]."""


class Ends(Protocol):
    """The embedding before the first block and the head after the last."""

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [N] → [N, H]."""

    def score(self, hidden: Tensor) -> Tensor:
        """States [N, H] → logits float32 [N, V]."""


class PlainEnds:
    """Embedding and head of the model itself."""

    def __init__(self, skeleton: Skeleton, head: FusedHead) -> None:
        self._embedding, self._head = skeleton.model.get_input_embeddings(), head

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [N] → [N, H]."""
        found: Tensor = self._embedding(tokens)
        return found

    def score(self, hidden: Tensor) -> Tensor:
        """States [N, H] → logits float32 [N, V]."""
        norm, projection = self._head.norm, self._head.projection
        assert norm is not None
        normed = rms_norm(hidden, norm.weight, norm.eps, gemma=norm.gemma)
        return _finished(F.linear(normed, projection.weight, projection.bias), self._head)


class QuantisedEnds:
    """Embedding and head in int8, one matrix where they are tied; the model's own are let go of."""

    def __init__(self, skeleton: Skeleton, head: FusedHead, device: torch.device) -> None:
        assert head.norm is not None
        embedding = skeleton.model.get_input_embeddings()
        if type(embedding) is not nn.Embedding:  # one that scales, such as Gemma's
            raise UnfitError(f"its embedding is a {type(embedding).__name__}, not a plain Embedding")
        tied = embedding.weight.data_ptr() == head.projection.weight.data_ptr()
        self._dtype, self._head, self._norm = skeleton.dtype, head, norm_on(head.norm, device)
        self._projection = QuantisedMap([head.projection], 8, device)
        self._embedding = self._projection
        if not tied:
            table = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False, device="meta")
            table.weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)
            self._embedding = QuantisedMap([table], 8, device)
        self.nbytes = self._projection.nbytes + (0 if tied else self._embedding.nbytes)
        let_go([head.projection])
        embedding.weight.data = torch.empty(0)

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [N] → [N, H]."""
        return self._embedding.embed(tokens, self._dtype)

    def score(self, hidden: Tensor) -> Tensor:
        """States [N, H] → logits float32 [N, V]."""
        return _finished(self._projection(hidden, self._norm), self._head)


def _finished(logits: Tensor, head: FusedHead) -> Tensor:
    logits = logits.float()
    logits = logits * head.scale if head.scale != 1 else logits
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)

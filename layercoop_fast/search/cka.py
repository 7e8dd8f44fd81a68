"""A block that hardly changes the geometry of its tokens can go. One pass of the full model, one shot.

Like `shortgpt`, with centred kernel alignment (CKA) of a block's input and output for the mean cosine. It is a
plain relative of topology-aware pruning (arXiv 2604.16502), which is the method `zigzag`: this is three products.
"""

from __future__ import annotations

from layercoop_fast.search.base import one_pass

search = one_pass("cka", "cka_distances")
"""Remove the blocks of least 1 − CKA(input of block i, its output)."""

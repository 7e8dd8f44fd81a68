"""A block that leaves the topology of its tokens alone can go. One pass of the full model, one shot.

Components and loops of the clouds before and behind a block are followed by zigzag persistence (`masked/topology.py`;
arXiv 2410.11042 and, on vision-language models, 2604.16502). `cka` is its plainer relative.
"""

from __future__ import annotations

from layercoop_fast.search.base import one_pass

search = one_pass("zigzag", "zigzag_changes")
"""Remove the blocks across which the largest share of components and loops lives on."""

"""Block influence: a block that hardly turns the residual stream can go. One pass of the full model, one shot.

Source: ShortGPT, arXiv 2403.03853.
"""

from __future__ import annotations

from layercoop_fast.search.base import one_pass

search = one_pass("shortgpt", "block_influence")
"""Remove the blocks of least influence BI_i = 1 − mean over tokens of cos(input of block i, its output)."""

"""The names of the search methods. Nothing here loads numpy: the help of commands lists them."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "coop": "ours: a lazy greedy chain, then masks that a surrogate expects to gain, until the gain is below the noise",
    "official": "the published method: surrogate fitted to stratified masks, least mean marginals removed",
    "shortgpt": "least block influence (1 − cosine of a block's input and output) removed, in one shot",
    "cka": "least change of the stream's geometry (1 − CKA of a block's input and output) removed, in one shot",
    "zigzag": "least change of components and loops (zigzag persistence across a block) removed, in one shot",
    "angular": "the contiguous blocks that turn the residual stream by the least angle removed, in one shot",
    "ppl": "each player is removed alone; those that cost least worth are removed together, in one shot",
    "taylor": "least first-order importance (weight times gradient) removed, in one shot",
    "sleb": "greedy: the player whose removal costs least worth is removed, one after another",
    "finercut": "greedy on the divergence of the output from the full model's, made for sublayers",
    "evopress": "evolution: mutants of the best mask so far race on growing text, by divergence of the output",
    "random": "the best of a few uniformly drawn masks",
    "reverse": "the last players are removed, nothing is measured",
    "exhaustive": "the best of all masks of the size, where there are few enough",
}
"""Name of each method and one line about it.

The module of that name in this package holds `search(asked)`; what `asked` holds is in `search/base.py`.
"""


DEFAULT_METHOD = "coop"

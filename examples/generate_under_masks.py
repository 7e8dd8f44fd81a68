"""Generate under several masks from one copy of the weights, at once and as a stream.

python examples/generate_under_masks.py
python examples/generate_under_masks.py MODEL --mask 13-18 --mask 3,7 --prompt 'Once upon a time'
"""

from __future__ import annotations

import argparse

import numpy as np
from tiny_model import model_or_tiny

from layercoop_fast import LayerSkipModel, Sampling


def blocks(text: str) -> list[int]:
    """Numbers of blocks from text such as 3,7,13-18."""
    ends = [part.split("-") for part in text.split(",")]
    return [number for each in ends for number in range(int(each[0]), int(each[-1]) + 1)]


def main() -> None:
    """Generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--mask", action="append", help="blocks to leave out, 3,7,13-18; may be given several times")
    parser.add_argument("--prompt", default="Once upon a time", help="the text to continue")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of an answer (default 24)")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, int8 or int4")
    arguments = parser.parse_args()

    model = LayerSkipModel.from_pretrained(model_or_tiny(arguments.model), dtype=arguments.dtype)
    masks = []
    for text in arguments.mask or ["1", "2-3"]:
        mask = np.ones(model.n_layers, dtype=bool)  # bool [layers], True = kept
        mask[blocks(text)] = False
        masks.append(mask)

    # One prompt under each mask, in the same calls: blocks that the masks agree on run once. None keeps everything.
    for mask, answer in zip(
        [None, *masks], model.generate(arguments.prompt, [None, *masks], max_new_tokens=arguments.tokens), strict=True
    ):
        left_out = "nothing" if mask is None else np.flatnonzero(~mask).tolist()
        print(f"without {left_out}: {answer.text!r} ({answer.seconds:.2f} s, {answer.finish})")

    # A stream hands out each token as it comes; drawn tokens depend on the seed alone.
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=1)
    for step in model.stream(arguments.prompt, masks[0], sampling=sampling, max_new_tokens=arguments.tokens):
        print(step.text, end="", flush=True)
    print()

    # Nothing was loaded twice: one copy of the weights, and keys and values of kept blocks alone.
    print(f"run by the {model.executor.name} executor; bytes:", model.memory())


if __name__ == "__main__":
    main()

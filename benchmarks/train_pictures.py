"""A small vision-language model, trained here: it says of two shapes in a picture what they are like, and where.

    python benchmarks/train_pictures.py [--steps N] [--seconds S]      # goes on at the next call; prints its folder

LLaVA's shape: a CLIP tower of two blocks sees 32 by 32 pixels as 16 patches, a projector hands these as 16 tokens to a
Llama of ten blocks, about a million parameters in all. Pictures are drawn here, and a caption is one word a token
("large red circle top left and small blue square bottom right"), so minutes on one thread suffice. The checkpoint lies
in `$XDG_CACHE_HOME/layercoop_fast/small-llava`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine
from small_model import cache_folder
from train_small import SPECIAL_TOKENS, Training, model_to_train, write_snapshot

FOLDER = "small-llava"
SIZE, PATCH, BLOCKS = 32, 8, 10
PATCHES = (SIZE // PATCH) ** 2
SIZES = {"small": 3.5, "large": 6.0}  # half the width, in pixels
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "purple": (0.6, 0, 0.8),
    "white": (1, 1, 1),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
WORDS = ["and", *SIZES, *COLOURS, *SHAPES, *dict.fromkeys(" ".join(PLACES).split())]
IMAGE = "<image>"
VOCABULARY = [*SPECIAL_TOKENS, IMAGE, *WORDS]
# Where the words of a kind stand in a caption.
KINDS = {"size": (0, 6), "colour": (1, 7), "shape": (2, 8), "place": (3, 4, 9, 10)}


def drawn(draw: np.random.Generator, pictures: int) -> tuple[Tensor, list[str]]:
    """Pictures, fp32 [pictures, 3, 32, 32] from -1 to 1, and captions of the two shapes in two of its quarters."""
    rows, columns = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    pixels = torch.zeros(pictures, 3, SIZE, SIZE)
    captions = []
    for picture in pixels:
        said = []
        for quarter in sorted(draw.choice(4, 2, replace=False).tolist()):
            size, colour = draw.choice(list(SIZES)), draw.choice(list(COLOURS))
            shape = draw.choice(SHAPES)
            centre = np.array([quarter // 2, quarter % 2]) * SIZE / 2 + SIZE / 4 + draw.uniform(-1.5, 1.5, 2)
            inside = _inside(shape, (rows - centre[0]) / SIZES[size], (columns - centre[1]) / SIZES[size])
            picture[:, inside] = torch.tensor(COLOURS[colour], dtype=torch.float32)[:, None]
            said.append(f"{size} {colour} {shape} {PLACES[quarter]}")
        captions.append(" and ".join(said))
    noise = torch.from_numpy(draw.normal(0, 0.05, pixels.shape)).float()
    return (pixels + noise) * 2 - 1, captions


def _inside(shape: str, down: Tensor, right: Tensor) -> Tensor:
    """Which pixels a shape covers, where both coordinates go from -1 to 1."""
    square = (down.abs() <= 0.85) & (right.abs() <= 0.85)
    if shape == "circle":
        return down**2 + right**2 <= 1
    if shape == "square":
        return square
    if shape == "triangle":
        return square & (right.abs() <= (down + 1) / 2)
    return square & ((down.abs() <= 0.3) | (right.abs() <= 0.3))


def windows(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Ids [pictures, 16 + 12]: the tokens that stand for the picture, then a caption and its end."""
    said = tokenizer([f"{caption} {SPECIAL_TOKENS[1]}" for caption in captions], return_tensors="pt").input_ids
    return torch.cat([torch.full((len(said), PATCHES), VOCABULARY.index(IMAGE)), said], dim=1)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the captions."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=SPECIAL_TOKENS[2]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad)


def new_model(seed: int) -> Any:
    """The model with random weights, fp32."""
    config = AutoConfig.for_model(
        "llava",
        text_config={
            "model_type": "llama",
            "vocab_size": len(VOCABULARY),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        image_token_index=VOCABULARY.index(IMAGE),
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


class PictureTraining(Training):
    """The same training on pictures with captions, drawn again for each step."""

    prefix = PATCHES

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast, **options: Any) -> None:
        super().__init__(model, np.empty(0, np.int64), **options)
        self.tokenizer = tokenizer

    def batch(self, draw: np.random.Generator) -> dict[str, Tensor]:
        """Pictures, and their captions behind the tokens that stand for them."""
        pixels, captions = drawn(draw, self.shape[0])
        return {"input_ids": windows(self.tokenizer, captions), "pixel_values": pixels}


def main() -> None:
    """Train, or go on training, or find that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=64, help="pictures a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long, to go on at the next call")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    folder, began = cache_folder() / FOLDER, time.perf_counter()
    model = model_to_train(folder, AutoModelForImageTextToText, lambda: new_model(arguments.seed))
    if model is None:
        return
    training = PictureTraining(
        model,
        word_tokenizer(),
        steps=arguments.steps,
        shape=(arguments.pictures, PATCHES + 12),
        rate=arguments.rate,
        seed=arguments.seed,
    )
    training.take_up(folder)
    training.run(arguments.seconds)
    said = {
        "benchmark": "train_pictures",
        "machine": machine(),
        "parameters": sum(one.numel() for one in model.parameters()),
        "done": training.done,
        "steps": training.steps,
        "pictures": training.done * arguments.pictures,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_snapshot(folder, training, training.tokenizer, said)


if __name__ == "__main__":
    main()

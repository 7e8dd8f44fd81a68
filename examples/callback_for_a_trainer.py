"""A callback for transformers' `Trainer`: at each evaluation, what it would cost to remove layers of the model now.

It logs the pruned model's perplexity, and writes the pruned checkpoint when training ends. Copy the class.

    python examples/callback_for_a_trainer.py [MODEL] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tiny_model import model_or_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers import default_data_collator as collator

from layercoop_fast import ModelGame, export_checkpoint
from layercoop_fast.engine.loading import Checkpoint
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.search.base import get_method
from layercoop_fast.texts.calibration import load_calibration, read_text


class PrunedPerplexity(TrainerCallback):
    """Measures the model in training without the `remove` layers that matter least, on the text of a SPEC."""

    def __init__(self, remove: int, out: Path, spec: str = "builtin-heldout", windows: int = 4) -> None:
        self.remove, self.out, self.spec, self.windows, self.chosen = remove, out, spec, windows, None

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **_):  # type: ignore[no-untyped-def]
        """Search again, since the weights have changed, and log what was found."""
        training = model.training
        model.eval()
        try:
            skeleton = Skeleton(model)
            text = load_calibration(self.spec, processing_class, skeleton, windows=self.windows, tokens=64)
            game = ModelGame(Checkpoint(model, processing_class, "in training"), text, skeleton=skeleton)
            choice = get_method("sleb")(game, self.remove)
            full, pruned = np.exp(game.evaluate(np.stack([np.ones_like(choice.mask), choice.mask])).nll)
        finally:
            model.train(training)
        self.chosen = {"kept": np.flatnonzero(choice.mask).tolist(), "blocks_path": skeleton.blocks_path}
        state.log_history.append({"step": state.global_step, "full_ppl": full, "pruned_ppl": pruned})
        print(f"step {state.global_step}: perplexity {full:.2f}, without {np.flatnonzero(~choice.mask)} {pruned:.2f}")

    def on_train_end(self, args, state, control, model=None, processing_class=None, **_):  # type: ignore[no-untyped-def]
        """Write the pruned checkpoint that the last evaluation chose, if there was one; one process does."""
        if self.chosen is not None and state.is_world_process_zero:
            training = model.training
            export_checkpoint(model.eval(), out=self.out, **self.chosen, tokenizer=processing_class, force=True)
            model.train(training)
            print("written:", self.out)


def main() -> None:
    """Train for a few steps, with an evaluation after each two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--steps", type=int, default=4, help="steps of training (default 4)")
    parser.add_argument("--out", type=Path, help="folder to write; a temporary one by default")
    arguments = parser.parse_args()
    name, place = model_or_tiny(arguments.model), Path(tempfile.mkdtemp(prefix="trained-"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    ids = tokenizer(read_text("builtin"))["input_ids"][: 16 * 64]
    rows = [{"input_ids": ids[i : i + 64], "labels": ids[i : i + 64]} for i in range(0, len(ids) - 63, 64)]
    trainer = Trainer(
        model,
        TrainingArguments(place, max_steps=arguments.steps, eval_strategy="steps", eval_steps=2, report_to="none",
                          per_device_train_batch_size=4, save_strategy="no", use_cpu=True),
        train_dataset=rows[4:], eval_dataset=rows[:4], processing_class=tokenizer,
        data_collator=collator, callbacks=[PrunedPerplexity(2, arguments.out or place / "pruned")],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main()

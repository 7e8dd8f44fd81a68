"""Prune a model, read the record, and run the smaller checkpoint with plain transformers.

python examples/prune_a_model.py                                   # a tiny random model
python examples/prune_a_model.py MODEL --remove 3 --out pruned     # yours
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tiny_model import model_or_tiny

from layercoop_fast import prune


def main() -> None:
    """Prune, say what it cost and saved, and go on with a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint folder or hub name; a tiny random model by default")
    parser.add_argument("--remove", type=int, default=2, help="how many layers go (default 2)")
    parser.add_argument("--method", default="coop", help="which rule chooses (default coop)")
    parser.add_argument("--calibration", default="builtin", help="the text to measure on: a .txt, builtin, self, ...")
    parser.add_argument("--quick", action="store_true", help="leave out the repair, samples, and costs")
    parser.add_argument("--out", type=Path, help="folder to write; a temporary one by default")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="pruned-")) / "model"

    pruned = prune(
        model_or_tiny(arguments.model),
        out,
        remove=arguments.remove,
        method=arguments.method,
        calibration=arguments.calibration,
        heldout="builtin-heldout",  # a second text, which no search sees
        windows=6,
        tokens=64,
        repair=False if arguments.quick else None,  # None: where it helps
        repair_tokens=4096,  # 65,536 by default
        samples=0 if arguments.quick else 2,
        measure_cost=not arguments.quick,
    )

    # The record is what layercoop.json holds; docs/contracts.md lists its fields.
    record = pruned.record
    print("removed:", record["removed"])
    for text, quality in (("calibration", record), ("held-out", record["heldout"])):
        print(f"perplexity, {text}: {quality['ppl']['full']:.2f} → {quality['ppl']['pruned']:.2f}")
    if not arguments.quick:
        print("repair:", "kept" if record["repair"]["kept"] else record["repair"]["reason"])
        print("bytes:", record["cost"]["full"]["weight_bytes"], "→", record["cost"]["pruned"]["weight_bytes"])
    print("report:", out / "report.html")

    # The folder is a plain checkpoint: nothing of layercoop_fast is needed to run it.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer("Once upon a time", return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=16, do_sample=False)[0]))


if __name__ == "__main__":
    main()

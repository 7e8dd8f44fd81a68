"""Tasks of the harness made from a text and from templates: no data set has to be fetched.

    python benchmarks/tasks/local_tasks.py TEXT.txt FOLDER    # writes FOLDER/*.yaml and their rows

`which_follows`: a stretch of the text and four continuations of equal length, one of them true, the others from
elsewhere in the text (HellaSwag's form). `sums`: word problems with small sums and five worked examples, the answer
behind "####" (GSM8K's form).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

CONTEXT_WORDS, ENDING_WORDS, OPTIONS = 60, 15, 4
SHOTS = 5

CHOICE = """
task: which_follows
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: endings
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATION = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: EXAMPLES}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
num_fewshot: SHOTS
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: " {{answer}}"
generation_kwargs: {until: ["Question:", "\\n\\n"], max_gen_toks: 48, do_sample: false}
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### (\\\\-?[0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["(?s).*#### "]}
"""
_NAMES = ("Tom", "Mia", "Ben", "Ida", "Max", "Eva", "Leo", "Ann")
_THINGS = ("apples", "books", "coins", "stamps", "shells", "pens")


def write_tasks(text: str, folder: Path, *, items: int, sums: int, seed: int = 0) -> None:
    """Write both tasks into a folder, `items` and `sums` documents."""
    write_choices(text, folder, "which_follows", items, seed)
    draw = random.Random(seed)
    _rows(folder / "sums.jsonl", [_sum(draw) for _ in range(sums)])
    _rows(folder / "examples.jsonl", [_sum(draw) for _ in range(SHOTS)])
    files = {"FILE": "sums.jsonl", "EXAMPLES": "examples.jsonl"}
    (folder / "sums.yaml").write_text(_filled(GENERATION, folder, files).replace("SHOTS", str(SHOTS)))


def write_choices(text: str, folder: Path, name: str, items: int, seed: int = 0) -> None:
    """Write the task of continuations alone, under a name."""
    folder.mkdir(parents=True, exist_ok=True)
    _rows(folder / f"{name}.jsonl", _choices(text, items, random.Random(seed)))
    task = _filled(CHOICE, folder, {"FILE": f"{name}.jsonl"}).replace("task: which_follows", f"task: {name}")
    (folder / f"{name}.yaml").write_text(task)


def _choices(text: str, count: int, draw: random.Random) -> list[dict[str, object]]:
    words = text.split()
    length = CONTEXT_WORDS + ENDING_WORDS
    step = (len(words) - length) // count
    if step < length:
        raise SystemExit(f"the text has {len(words)} words: {count} items need {count * length}")
    rows = []
    for first in range(0, step * count, step):
        true = first + CONTEXT_WORDS
        begins = [true]
        while len(begins) < OPTIONS:
            other = draw.randrange(len(words) - ENDING_WORDS)
            if abs(other - first) > 2 * length:
                begins.append(other)
        draw.shuffle(begins)
        rows.append(
            {
                "context": " ".join(words[first:true]),
                "endings": [" ".join(words[begin : begin + ENDING_WORDS]) for begin in begins],
                "label": begins.index(true),
            }
        )
    return rows


def _sum(draw: random.Random) -> dict[str, object]:
    name, thing, one, more = draw.choice(_NAMES), draw.choice(_THINGS), draw.randint(2, 9), draw.randint(1, 9)
    return {
        "question": f"{name} has {one} {thing} and gets {more} more. How many {thing} does {name} have now?",
        "answer": f"{name} has {one} + {more} = {one + more} {thing} now.\n#### {one + more}",
    }


def _rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _filled(task: str, folder: Path, files: dict[str, str]) -> str:
    for name, file in files.items():
        task = task.replace(name, json.dumps(str((folder / file).resolve())))
    return task


if __name__ == "__main__":
    write_tasks(Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]), items=400, sums=100)

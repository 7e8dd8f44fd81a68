"""Tasks of the harness from files of the tests' own, and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import save_tiny

L = 4
WORDS = ("the cat sat", "a dog ran", "birds sing", "rain falls", "we went home", "it was late")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: FILE}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["7", "a"], max_gen_toks: 12, do_sample: false}
filter_list:
  - name: first
    filter:
      - {function: regex, regex_pattern: "^(.{1,2})"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
LAST = """
task: tiny_last
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: NAME
task: MEMBERS
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""
FILES = {
    "choice": CHOICE,
    "rolling": ROLLING,
    "writing": WRITING,
    "last": LAST,
    # The same questions, to which the second or the third answer is always right; and a group of a group of them.
    "two": CHOICE.replace("tiny_choice", "tiny_two").replace("doc_to_target: label", "doc_to_target: 1"),
    "three": CHOICE.replace("tiny_choice", "tiny_three").replace("doc_to_target: label", "doc_to_target: 2"),
    "inner": GROUP.replace("NAME", "tiny_inner").replace("MEMBERS", "[tiny_two, tiny_three]"),
    "outer": GROUP.replace("NAME", "tiny_outer").replace("MEMBERS", "[tiny_inner]"),
    "unsafe": WRITING.replace("tiny_writing", "tiny_code\nunsafe_code: true"),
    "images": WRITING.replace("tiny_writing", "tiny_images\ndoc_to_image: [question]"),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("score") / "model", n_layers=L, seed=3)


@pytest.fixture(scope="session")
def task_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of six documents: options, perplexity, text that is generated; and groups of tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"Q{number}: {words} and then ",
            "choices": ["yes", "no", f"{words} again", "maybe so"],
            "label": number % 4,
            "text": " ".join(WORDS[number:]) * (1 + 3 * number),
            "answer": words[:2],
        }
        for number, words in enumerate(WORDS)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text.replace("FILE", json.dumps(str(data))))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are kept in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))

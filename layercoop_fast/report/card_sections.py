"""The sections of a model card, each from `layercoop.json` (`Record`); a section without figures is empty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from layercoop_fast.files import RECORD
from layercoop_fast.masks.halves import WHOLE
from layercoop_fast.masks.text import blocks_mask, text_of
from layercoop_fast.report.base_model import Base
from layercoop_fast.report.html.record import Record, model_name, spec_name
from layercoop_fast.shown import shown

PAPER = "arXiv:2602.07804"
_TITLE = "Pruning as a Cooperative Game: Surrogate-Assisted Layer Contribution Estimation for Large Language Models"
_AUTHORS = "Ding, Xuan and Tong, Pengyu and Duan, Ranjie and Zhang, Yunjian and Sun, Rui and Zhu, Yao"


def _texts(record: Record) -> list[tuple[str, Record]]:
    """The texts that both models were measured on: what they are, and the part of the record about them."""
    texts = [(f"{spec_name(str(record['calibration']['spec']))} (searched on)", record)]
    return [*texts, ("held-out text", record["heldout"])] if record.get("heldout") else texts


def results(record: Record) -> list[Any]:
    """Perplexities of the pruned model as the hub's evaluation results, of the held-out text where there is one."""
    from huggingface_hub import EvalResult

    text, part = _texts(record)[-1]
    if part["ppl"]["pruned"] is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=shown(text),
            metric_type="perplexity",
            metric_name="perplexity",
            metric_value=round(part["ppl"]["pruned"], 4),
        )
    ]


def summary(record: Record, base: Base) -> str:
    """What was removed from what, and how."""
    model = f"[{base.id}](https://huggingface.co/{base.id})" if base.id else f"`{shown(model_name(record))}`"
    n_layers = 1 + max(int(str(label).split(".")[0]) for label in [*record["removed"], *record["kept"]])
    labels = ",".join(map(str, record["removed"]))
    mask = blocks_mask(labels or "full", n_layers)
    gone, halved = int((mask == 0).sum()), int(((mask > 0) & (mask < WHOLE)).sum())
    counts = [f"{gone} of its {n_layers} layers"] if gone or not halved else []
    counts += [f"one half of {halved} {'more' if gone else f'of its {n_layers} layers'}"] if halved else []
    lines = [
        f"This is {model} without {' and '.join(counts)}, removed by layercoop_fast.",
        "",
        "| | |",
        "|---|---|",
        f"| removed, by their numbers in the base model | {text_of(mask) if labels else 'none'} |",
        f"| method | `{_cell(str(record['method']))}` |",
    ]
    repair = record.get("repair")
    if repair:
        lines.append(
            f"| repair | closed form, on {repair['tokens']:,} tokens |"
            if repair["kept"]
            else f"| repair | none: {_cell(str(repair['reason']))} |"
        )
    healed = record.get("healing")
    if healed:
        lines.append(
            f"| healing | distillation from the base model ({_cell(str(healed['train']))}), "
            f"{healed['tokens']:,} tokens |"
            if healed["kept"]
            else f"| healing | none: {_cell(str(healed['reason']))} |"
        )
    if "quantised" in record:
        lines.append(f"| quantised afterwards | {_cell(str(record['quantised']))} |")
    if halved:
        lines.append("| halves | written as zeros: no plain config leaves out half a layer |")
    return "\n".join(lines)


def quality(record: Record) -> list[str]:
    """Perplexity of both models on each text."""
    names = [name for name in ("full", "unrepaired", "unhealed", "pruned", "unquantised") if name in record["ppl"]]
    if all(part["ppl"].get(name) is None for _, part in _texts(record) for name in names):
        return []
    titles = {"full": "base model", "unrepaired": "before the repair", "pruned": "this model"}
    titles |= {"unhealed": "before healing", "unquantised": "before quantisation"}
    rows = [
        f"| {_cell(text)} | {' | '.join(_number(part['ppl'].get(name)) for name in names)} |"
        for text, part in _texts(record)
    ]
    head = " | ".join(titles[name] for name in names)
    rule = "|---|" + "---:|" * len(names)
    return ["## Quality", "\n".join([f"| perplexity on | {head} |", rule, *rows])]


def healing(record: Record) -> list[str]:
    """What distillation regained, on held-out windows of each text that it read."""
    found = record.get("healing")
    if not found:
        return []
    rows = [
        f"| {_cell(spec_name(str(spec)))} | {_perplexity(one['before'])} | {_perplexity(one['after'])} |"
        for spec, one in found["nll"].items()
    ]
    head = ["| perplexity on held-out windows of | before healing | after |", "|---|---:|---:|"]
    return ["## Healing", "\n".join([*head, *rows])]


def _perplexity(nll: float | None) -> str:
    return "not finite" if nll is None or nll > 700 else _number(math.exp(nll))


_COSTS: Sequence[tuple[str, str, float, str]] = (
    ("params", "parameters", 1.0, ",.0f"),
    ("weight_bytes", "weights, MB", 1e6, ",.0f"),
    ("kv_bytes_per_token", "keys and values a token, bytes", 1.0, ",.0f"),
    ("peak_memory_bytes", "peak memory, MB", 1e6, ",.0f"),
    ("prefill_tok_s", "prefill, tokens/s", 1.0, ",.1f"),
    ("decode_tok_s", "decoding, tokens/s", 1.0, ",.1f"),
)


def cost(record: Record) -> list[str]:
    """Size and speed of both models, as measured on the machine that pruned."""
    cost = record.get("cost")
    if not cost:
        return []
    rows = [
        f"| {title} | {_number(cost['full'].get(name), unit, form)} | {_number(cost['pruned'].get(name), unit, form)} |"
        for name, title, unit, form in _COSTS
    ]
    head = ["| measured on the machine that pruned | base model | this model |", "|---|---:|---:|"]
    return ["## Cost", "\n".join([*head, *rows])]


def loading(record: Record, name: str) -> str:
    """How each host loads it."""
    place = shown(name)
    changed = any(bool(record.get(name) and record[name]["kept"]) for name in ("repair", "healing"))
    gguf = f"    python convert_hf_to_gguf.py {place} --outfile {place}.gguf    # of llama.cpp\n"
    if not changed and "quantised" not in record:
        gguf += f"    layercoop-fast cut BASE.gguf --from {place} --out {place}.gguf    # of any quantisation\n"
    return (
        "## Use it\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{place}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n```\n\n'
        f"    vllm serve {place}\n    python -m sglang.launch_server --model-path {place}\n{gguf}".rstrip()
    )


def hosts(record: Record) -> list[str]:
    """What hosts other than transformers would refuse or misread."""
    problems = record.get("hosts") or []
    if not problems:
        return []
    lines = [
        f"- {one['host']}: {shown(str(one['problem']))}{' (as of the base model)' if one['inherited'] else ''}"
        for one in problems
    ]
    return ["Known limits:", "\n".join(lines)]


def proof(record: Record) -> str:
    """What the written folder was compared with."""
    verified = record.get("verified") or {}
    if not verified.get("done"):
        return ""
    apart = verified["largest_difference"]
    model = "healed model" if record.get("healing") else "masked base model"
    found = "are the same bit for bit" if apart == 0 else f"differ by at most {apart:.3g}"
    return (
        f"The folder was opened by plain transformers and compared with the {model} before it took its place: "
        f"on {verified['tokens']} tokens the logits {found}. `{RECORD}` holds everything that was measured."
    )


def citation() -> str:
    """How to cite the package's paper; CITATION.cff has the same."""
    return (
        "## Cite\n\nlayercoop_fast, and the paper whose method it starts from:\n\n"
        "```bibtex\n@article{ding2026pruning,\n"
        f"  title = {{{_TITLE}}},\n  author = {{{_AUTHORS}}},\n  year = {{2026}},\n"
        f"  journal = {{{PAPER}}},\n  url = {{https://arxiv.org/abs/{PAPER.split(':')[1]}}}\n}}\n```"
    )


def _number(value: float | None, unit: float = 1.0, form: str = ".2f") -> str:
    return "not measured" if value is None else format(value / unit, form)


def _cell(text: str) -> str:
    """A text within a cell of a table."""
    return shown(text).replace("|", "\\|")

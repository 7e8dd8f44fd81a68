"""`layercoop-fast generate`: continue texts, under any mask, with or without drafts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.options import AsJson, DraftOption, Model, check_drawing
from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.options import OUTPUT, REMOVE, TEXT
from layercoop_fast.report.console import say, write_generated
from layercoop_fast.runtime.options import AnswerOptions, RuntimeOptions, Sampling

if TYPE_CHECKING:
    from layercoop_fast.masks.halves import Halves
    from layercoop_fast.runtime.model import LayerSkipModel
    from layercoop_fast.runtime.requests import Generation, Step


@expanded()
def generate(
    model: Model,
    sampling: Sampling,
    runtime: RuntimeOptions,
    limits: AnswerOptions,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Text to continue; give the option once for each text. Without one, or with -: standard input.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Put each prompt into the model's chat template.", rich_help_panel=TEXT),
    ] = False,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Blocks to leave out, for example 3,7,13-18, or halves of blocks like 12.attn, or a folder that "
            "prune wrote.",
            metavar="BLOCKS|DIR[@N]",
            rich_help_panel=REMOVE,
        ),
    ] = None,
    draft: DraftOption = None,
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Print speed and memory at the end, on standard error.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue one text or several; each token is the most likely one unless a temperature is given."""
    check_drawing(sampling)
    prompts = _prompts(prompt)

    from layercoop_fast.masks.text import mask_of, text_of
    from layercoop_fast.runtime.model import LayerSkipModel

    opened = LayerSkipModel.from_pretrained(model, **vars(runtime))
    halves = opened.mask(None if mask is None else mask_of(mask, opened.n_layers))
    texts = [opened.tokens(_as_chat(opened, text) if chat else text) for text in prompts]
    if draft is not None and len(texts) > 1:
        raise RequestError("--draft speeds up one text at a time; several are written together, which is faster still")
    drafted = None if draft is None else draft_of(draft, opened, halves, texts, sampling, quiet=as_json)
    asked: dict[str, Any] = dict(vars(limits))
    if as_json or len(texts) > 1:
        found = opened.generate(texts, halves, sampling=sampling, draft=drafted, **asked)
        answers: list[Generation] = found if isinstance(found, list) else [found]
        if not as_json:
            for number, (text, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
                write_generated(f"[{number}] {text.strip()[:60]!r}\n{answer.text}\n\n")
    else:
        answers = [_streamed(opened.stream(texts[0], halves, sampling=sampling, draft=drafted, **asked), len(texts[0]))]
    if as_json:
        record = {
            "model": model,
            "executor": opened.executor.name,
            "removed": text_of(halves),
            "answers": [_record(text, answer) for text, answer in zip(prompts, answers, strict=True)],
            "memory": opened.memory(),
            "draft": None if drafted is None else {"removed": text_of(drafted), **opened.drafting()},
        }
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
    elif stats:
        say(_stats(opened, answers), err=True)


def draft_of(
    text: str,
    model: LayerSkipModel,
    mask: Halves,
    prompts: list[tuple[int, ...]],
    sampling: Any,
    *,
    quiet: bool,
) -> Halves:
    """The mask of a draft, uint8 [L]: as `text` says, or searched for on what the model writes after the prompts."""
    from layercoop_fast.masks.text import mask_of, text_of

    if text != "search":
        given = model.mask(mask_of(text, model.n_layers, "draft=")) & mask
        if (given == mask).all() or not given.any():
            raise RequestError(f"--draft {text}: a draft leaves out some of the blocks that write, and not all of them")
        return given
    from layercoop_fast.progress import Bars
    from layercoop_fast.runtime.draft import find_draft

    with Bars() as bars:
        found = find_draft(model.executor, prompts, sampling=sampling, progress=bars.update)
    if not quiet:
        pays = f"{found.speed_up:.2f} times the speed" if found.speed_up > 1 else "which does not pay here"
        say(
            f"draft: {found.acceptance:.0%} of its tokens accepted, {pays}; {found.n_masks} masks measured. "
            f"Next time: --draft {text_of(model.mask(found.mask))}",
            err=True,
        )
    return model.mask(found.mask) & mask


def _prompts(given: list[str] | None) -> list[str]:
    """The texts to continue."""
    if given and given != ["-"]:
        found = given
    elif not given and sys.stdin.isatty():
        raise RequestError("nothing to go on with: give --prompt TEXT, or a text on standard input")
    else:
        found = [sys.stdin.read()]
    if not all(found):
        raise RequestError("the prompt is empty: at least one character is needed")
    return found


def _as_chat(model: LayerSkipModel, text: str) -> list[int]:
    """Tokens of a question to the assistant."""
    from layercoop_fast.runtime.conversation import Conversation

    return Conversation(model).tokens([{"role": "user", "content": text}])


def _streamed(steps: Iterator[Step], prompt_tokens: int) -> Generation:
    """Print an answer while it is generated; return it."""
    from layercoop_fast.runtime.requests import Generation

    started, first, come = time.perf_counter(), 0.0, []
    for step in steps:
        write_generated(step.text)
        come.append(step)
        first = first or time.perf_counter() - started
    sys.stdout.write("\n")
    tokens, text = [step.token for step in come], "".join(step.text for step in come)
    return Generation(tokens, text, come[-1].finish or "length", prompt_tokens, 0, first, time.perf_counter() - started)


def _record(prompt: str, answer: Generation) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "reused_tokens": answer.reused_tokens,
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }


def _stats(model: LayerSkipModel, answers: list[Generation]) -> str:
    """One line: tokens, speed, memory."""
    tokens = sum(len(answer.tokens) for answer in answers)
    first = max(answer.first_token_seconds for answer in answers)
    seconds = max(answer.seconds for answer in answers)
    rate = (tokens - len(answers)) / (seconds - first) if seconds > first else 0.0
    memory = model.memory()
    line = (
        f"{tokens} tokens, {rate:.1f} a second; {sum(answer.prompt_tokens for answer in answers)} of prompt, first "
        f"after {first:.2f} s; {model.executor.name}; weights {memory['weights'] / 2**20:.0f} MiB, keys and values "
        f"{memory['kv'] / 2**20:.0f} MiB, process {memory['resident'] / 2**20:.0f} MiB"
    )
    figures = model.drafting()
    if figures["rounds"]:
        line += f"; {figures['drafted']} drafted in {figures['rounds']} rounds, {figures['accepted']} accepted"
    return line

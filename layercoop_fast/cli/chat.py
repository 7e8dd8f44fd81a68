"""`layercoop-fast chat`: talk with a model in the terminal, and change its mask while talking."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from layercoop_fast.cli.expand import expanded
from layercoop_fast.cli.messages import as_typed
from layercoop_fast.cli.options import DraftOption, Model, check_drawing
from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.inputs.options import REMOVE, TEXT, flag_of
from layercoop_fast.report.console import write_generated
from layercoop_fast.runtime.options import AnswerOptions, RuntimeOptions, Sampling
from layercoop_fast.shown import shown

if TYPE_CHECKING:
    from layercoop_fast.runtime.conversation import Conversation

_HELP = """\
/mask NAME       let this mask answer: full, or one that was named
/mask BLOCKS     leave these blocks out: 13-18, or halves like 12.attn
/mask NAME=BLOCKS, /mask NAME=DIR   the same, and give it a name
/mask            list the masks
/draft BLOCKS    write faster with a draft that leaves these out; /draft off
/reset           start a new conversation
/help, /quit
Ctrl-C stops an answer; Ctrl-D leaves."""
# Of the default sampling: without it, answers wander.
_TOP_P = 0.9
_OPTIONS = {
    one.name: (flag_of(one), "")
    for options in (AnswerOptions, Sampling, RuntimeOptions)
    for one in fields(options)
    if one.name != "ignore_eos"  # a conversation has turns, and each ends
}
_MEMORY = {"weights": "weights", "keys and values": "kv", "process": "resident"}


@expanded(only=_OPTIONS, max_new_tokens=512, temperature=0.7, top_p=_TOP_P, seed=None)
def chat(
    model: Model,
    answer: AnswerOptions,
    sampling: Sampling,
    runtime: RuntimeOptions,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.", rich_help_panel=TEXT)
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="A mask to change to with /mask NAME (fast without a name): blocks to leave out, or a folder that "
            "prune wrote; give the option once for each mask.",
            metavar="[NAME=]BLOCKS|DIR[@N]",
            rich_help_panel=REMOVE,
        ),
    ] = None,
    draft: DraftOption = None,
) -> None:
    """Talk with a model in the terminal. /mask fast changes to a mask given with --mask; /help says the rest."""
    if sampling.greedy and sampling.top_p == _TOP_P:
        sampling = replace(sampling, top_p=1.0)  # the default is about drawing
    check_drawing(sampling)

    from layercoop_fast.masks.text import mask_of
    from layercoop_fast.runtime.conversation import Conversation
    from layercoop_fast.runtime.model import LayerSkipModel
    from layercoop_fast.runtime.stops import check_stops

    opened = LayerSkipModel.from_pretrained(model, **vars(runtime))
    talk = Conversation(opened, sampling, answer.max_new_tokens, check_stops(answer.stop), system)
    for given in mask or []:
        name, named, text = given.partition("=")
        talk.masks[name if named else "fast"] = opened.mask(mask_of(text if named else given, opened.n_layers))
    if draft is not None:
        from layercoop_fast.cli.generate import draft_of

        prompt = tuple(talk.tokens([{"role": "user", "content": "Tell me about yourself."}]))
        talk.draft = draft_of(draft, opened, opened.mask(), [prompt], sampling, quiet=False)
    _Terminal(talk).run()


class _Terminal:
    """Reads what the user types, and shows what the model says."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._console = Console(highlight=False)
        self._typed = sys.stdin.isatty()

    def run(self) -> None:
        """Read and answer until the user leaves."""
        if self._typed:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (lines can be edited and recalled)
            self._say(f"{self._talk.model.executor.name}, {self._mask()}. /help says what there is.")
        while True:
            try:
                line = input("> " if self._typed else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("\nCtrl-D or /quit leaves.")
                continue
            if line in ("/quit", "/exit", "/q"):
                return
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._answer(line)
            except LayercoopError as error:
                self._say(as_typed(str(error), _OPTIONS), style="red")

    def _command(self, line: str) -> None:
        talk = self._talk
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/help":
            self._say(_HELP)
        elif name == "/reset":
            talk.reset()
            self._say("forgotten")
        elif name == "/mask" and rest:
            talk.use(rest)
            self._say(f"from now on: {self._mask()}")
        elif name == "/mask":
            from layercoop_fast.masks.text import text_of

            for known, mask in talk.masks.items():
                left = text_of(mask)
                mark = "*" if known == talk.name else " "
                self._say(f"{mark} {known}: leaves out {'nothing' if left == 'full' else left}")
        elif name == "/draft" and rest:
            self._draft(rest)
        else:
            raise RequestError(f"there is no {line.split()[0]} of this form: /help says what there is")

    def _draft(self, text: str) -> None:
        from layercoop_fast.masks.text import mask_of

        talk = self._talk
        talk.draft = None if text == "off" else talk.model.mask(mask_of(text, talk.model.n_layers, "/draft"))
        self._say("no drafts" if talk.draft is None else f"drafts leave out {text}")

    def _answer(self, line: str) -> None:
        talk, stopped = self._talk, False
        parts = talk.say(line)
        try:
            with _interrupts() as pressed:
                for part in parts:
                    write_generated(part)
                    if pressed:
                        stopped = True
                        break
        except KeyboardInterrupt:
            stopped = True
        finally:
            parts.close()
            if talk.answer.tokens:
                sys.stdout.write("\n")
        self._say(self._status(stopped), style="dim")

    def _mask(self) -> str:
        """A description of the mask that answers."""
        mask = self._talk.masks[self._talk.name]
        return f"mask {self._talk.name}, {int((mask > 0).sum())} of {len(mask)} blocks"

    def _status(self, stopped: bool) -> str:
        answer, memory = self._talk.answer, self._talk.model.memory()
        parts = [self._mask(), f"{answer.tokens} tokens{' until stopped' if stopped else ''}"]
        if answer.rate is not None:
            parts.append(f"{answer.rate:.1f} a second")
        parts.append(f"first after {answer.first_seconds:.2f} s")
        sizes = {name: f"{memory[key] / 2**20:,.0f} MiB" for name, key in _MEMORY.items()}
        parts.append(", ".join(f"{name} {size}" for name, size in sizes.items()))
        if answer.forgotten:
            parts.append(f"the first {answer.forgotten} turns no longer fit and are forgotten")
        return " · ".join(parts)

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(shown(text, "\n"), style=style))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in the list that this gives, so that no computation is interrupted; a second one interrupts."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)

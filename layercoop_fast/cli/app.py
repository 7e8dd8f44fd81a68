"""The command line. Each command reads its arguments and calls the library; torch is loaded inside a command only."""

from __future__ import annotations

import typer
from typer.main import get_group

from layercoop_fast.cli.adapter import adapter
from layercoop_fast.cli.bench import bench
from layercoop_fast.cli.card import card
from layercoop_fast.cli.chat import chat as start_chat
from layercoop_fast.cli.compare import compare
from layercoop_fast.cli.cut import cut
from layercoop_fast.cli.doctor import doctor
from layercoop_fast.cli.evaluate import evaluate
from layercoop_fast.cli.generate import generate
from layercoop_fast.cli.heal import heal
from layercoop_fast.cli.mergekit import mergekit
from layercoop_fast.cli.plan import plan
from layercoop_fast.cli.prune import prune
from layercoop_fast.cli.push import push
from layercoop_fast.cli.quantise import quantise
from layercoop_fast.cli.report import report as write_report
from layercoop_fast.cli.score import score
from layercoop_fast.cli.serve import serve
from layercoop_fast.cli.shapley import shapley
from layercoop_fast.cli.store import app as store_app

app = typer.Typer(
    name="layercoop-fast",
    help="Which layers of a language model can go? Layer pruning as a cooperative game.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")
app.command()(bench)
app.command()(compare)
app.command()(cut)
app.command()(card)
app.command()(mergekit)
app.command()(adapter)
app.command()(push)
app.command()(generate)
app.command("chat")(start_chat)
app.command()(quantise)
app.command("report")(write_report)
app.command()(prune)
app.command()(heal)
app.command()(evaluate)
app.command()(shapley)
app.command()(score)
app.command()(serve)
app.command()(doctor)
app.command()(plan)

# Built from their signatures once: a message looks options up again.
commands = get_group(app)

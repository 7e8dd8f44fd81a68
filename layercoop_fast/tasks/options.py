"""What masks are scored with: tasks, their form, and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layercoop_fast.inputs.options import MACHINE, TEXT, option


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the model that is scored runs.

    Attributes:
        dtype: of the weights; a name of `engine.loading.DTYPES`.
        device: any torch device.
        memory: bytes for stored states and activations; None: a quarter of what is free.
        block_path: "auto" or "hf", as in `ModelGame.from_pretrained`.
        trust_remote_code: run Python code from the checkpoint.
    """

    dtype: str = option("auto", MACHINE, "float32, bfloat16, or auto: the checkpoint's own.")
    device: str = option("cpu", MACHINE, "cpu, cuda or cuda:N.")
    memory: int | None = option(
        None, MACHINE, "Memory for stored states, for example 4GiB. Default: a quarter of what is free.", read="size"
    )
    block_path: str = option("auto", MACHINE, "auto: fast blocks where they fit, on the CPU; hf: the model's own only.")
    trust_remote_code: bool = option(False, MACHINE, "Run Python code that comes with the checkpoint.")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which tasks, and how their documents become requests.

    Attributes:
        tasks: names of tasks, groups or tags of the harness, or patterns like "mmlu_*".
        task_path: a folder with task files (YAML) of the user's own, searched before the harness's.
        limit: documents of each task, the first ones; None: all.
        shots: examples before each document; None: as the task says.
        chat: put requests through the model's chat template.
        bootstrap: draws of the standard errors that the harness has no formula for; 0: no standard error of any score.
    """

    tasks: Sequence[str] = option(
        (),
        TEXT,
        "Tasks of the LM Evaluation Harness, for example arc_easy,hellaswag,piqa; groups and patterns too.",
        read="names",
        metavar="NAME,NAME",
        required=True,
    )
    task_path: Path | None = option(
        None, TEXT, "Folder with task files (YAML) of your own; data can be local files.", read="path", metavar="DIR"
    )
    limit: int | None = option(None, TEXT, "Score only the first N documents of each task.", least=1)
    shots: int | None = option(None, TEXT, "Examples before each document. Default: as the task says.", least=0)
    chat: bool = option(False, TEXT, "Put requests into turns through the model's chat template.")
    bootstrap: int = option(
        1000,
        TEXT,
        "Draws of a bootstrap for standard errors of metrics that are no means; 0: no standard errors at all.",
        least=0,
    )

"""Tasks of the harness by name, or one line that says what is wrong with a name or its data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.libraries import first_line
from layercoop_fast.tasks.options import TaskOptions

# What the harness's own command seeds before it builds requests: some tasks draw examples or the order of options.
_SEED, _NUMPY_SEED, _SHOTS_SEED = 0, 1234, 1234
_NEAREST = 3


def require_harness() -> None:
    """Raise `RequestError` that names the extra where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise RequestError(
            "scores on tasks need the LM Evaluation Harness, the extra: pip install 'layercoop-fast[score]'"
        )


def load_tasks(options: TaskOptions) -> dict[str, Any]:
    """The tasks of `options` with their data, as `lm_eval.tasks.TaskManager.load` returns them.

    Raises `RequestError` for an unknown name, with the nearest ones, for data that cannot be loaded, and for tasks that
    run code that a model wrote or need more than text.
    """
    from lm_eval.tasks import TaskManager

    path = options.task_path
    if path is not None and not path.is_dir():
        raise RequestError(f"task_path={path} is not a folder: name one with task files (YAML)")
    manager, names = None, None
    if path is not None:
        # The harness's own list takes seconds to read; a folder that has all that is asked for needs none of it.
        manager = TaskManager(include_path=str(path), include_defaults=False)
        names = _named(options.tasks, manager.all_tasks)
    if manager is None or names is None:
        manager = TaskManager(include_path=None if path is None else str(path))
        names = _named(options.tasks, manager.all_tasks)
    if names is None:
        raise _unknown(options.tasks, manager.all_tasks)
    try:
        loaded: dict[str, Any] = manager.load(names)
    except Exception as error:  # tasks run code of the harness, of `datasets`, and of the user
        raise RequestError(f"the tasks {', '.join(names)} cannot be loaded: {first_line(error)}") from error
    for name, task in loaded["tasks"].items():
        _check_kind(name, task)
        _set_shots(task, options.shots)
    return loaded


def _named(wanted: Sequence[str], known: Sequence[str]) -> list[str] | None:
    """The names that are known, patterns filled in; None where one is unknown."""
    found: list[str] = []
    for name in wanted:
        matching = [name] if name in known else [one for one in known if fnmatch(one, name)]
        if not matching:
            return None
        found += matching
    return list(dict.fromkeys(found))


def _unknown(wanted: Sequence[str], known: Sequence[str]) -> RequestError:
    if not any(wanted):
        return RequestError("tasks= names no task: name one, for example arc_easy")
    name = next(one for one in wanted if not _named([one], known))
    near = get_close_matches(name, known, n=_NEAREST)
    told = f"the nearest are {', '.join(near)}" if near else "`lm_eval ls tasks` lists what there is"
    return RequestError(f"unknown task {name!r}: {told}; tasks of your own are read with task_path=")


def _check_kind(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise RequestError(
            f"the task {name} runs code that the model writes, which is not offered here: use the harness's own "
            "command, `python -m layercoop_fast.tasks run`, where it has to be confirmed"
        )
    if getattr(task, "MULTIMODAL", False):
        raise RequestError(f"the task {name} has images or sound: choose tasks of text alone")


def _set_shots(task: Any, shots: int | None) -> None:
    """Examples as the harness's command sets them: a task that states 0 keeps 0."""
    stated = task.get_config("num_fewshot")
    if shots is not None and stated != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif stated is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SHOTS_SEED)


@contextmanager
def seeded() -> Iterator[None]:
    """The global random states that the harness's command has when it builds requests; put back afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the tasks draw from it
    random.seed(_SEED)
    np.random.seed(_NUMPY_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def keep_requests(task: Any) -> None:
    """Let a task keep its requests when the harness asks it to build them again; their answers are dropped."""

    def again(**_: Any) -> None:
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}

    task.build_all_requests = again

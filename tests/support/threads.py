"""Several calls at once, each in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

SECONDS = 60.0  # a thread that takes longer hangs


def in_threads(*calls: Callable[[], object]) -> None:
    """Run all at once; raises what one of them raises."""
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors[0]

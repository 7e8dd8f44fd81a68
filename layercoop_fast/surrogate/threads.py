"""How many threads torch may use for operations as small as a surrogate's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the operations are so small that two threads would mostly wait for each other.

    On a machine that others use too, waiting was seen to take twenty times the work. It also makes results independent
    of the thread count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

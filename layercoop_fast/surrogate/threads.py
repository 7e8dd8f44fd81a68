"""One thread of torch for operations as small as those of a surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: with such small operations two threads would mostly wait for each other.

    On a machine with other load, waiting was seen to take twenty times as long as the work. One thread also makes
    results independent of the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from close import noise
from torch._subclasses.fake_tensor import FakeTensorMode

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.frame import Config, launch
from layercoop_fast.kernels.pages import MOST_SEQUENCES, paged_attention
from layercoop_fast.kernels.pool import gather_norm
from layercoop_fast.kernels.reference.attention import PagedContext


def test_a_kernel_is_launched_on_its_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --device cuda:1 another one is current, and that is the one that Triton launches on."""
    current: list[object] = []
    ran: list[object] = []

    @contextmanager
    def device(wanted: object):
        current.append(wanted)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *arguments, **constants: ran.append((list(current), grid, constants["num_warps"]))

    monkeypatch.setattr(torch.cuda, "device", device)
    with FakeTensorMode():
        far = torch.empty(3, device="cuda:1")
    launch(Kernel(), (2, 3), None, far, 7, config=Config("one", warps=2))
    launch(Kernel(), (1,), torch.empty(3), 7, config=Config("one", warps=2))
    launch(Kernel(), (2, 0), far, 7, config=Config("one", warps=2))
    assert ran == [([torch.device("cuda:1")], (2, 3), 2), ([], (1,), 2)]


def test_numbers_that_do_not_lie_side_by_side_are_refused(device: str) -> None:
    pool, slots = noise(2, 1, 16).to(device), torch.zeros(1, dtype=torch.int32, device=device)
    every_other = noise(32).to(device)[::2]
    with pytest.raises(RequestError, match=r"weight: expected a contiguous tensor, got strides \[2\]"):
        gather_norm(pool, slots, every_other, 1e-5)


def test_more_sequences_than_cuda_has_programs_side_by_side_are_refused() -> None:
    count, int32 = MOST_SEQUENCES + 1, torch.int32
    with pytest.raises(RequestError, match=f"lengths: {count} sequences are more than the 65535 of one call"):
        context = PagedContext(
            torch.zeros(1, 2, 1, 4, 16), torch.zeros(count, 1, dtype=int32), torch.zeros(count, dtype=int32)
        )
        paged_attention(torch.zeros(1, 48), torch.zeros(count + 1, dtype=int32), context, 1, 0.3)

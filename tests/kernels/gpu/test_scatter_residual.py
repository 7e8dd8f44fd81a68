from __future__ import annotations

import pytest
import torch
from close import assert_near, noise

from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.gpu.scatter_residual import CONFIGS, launch_scatter
from layercoop_fast.kernels.pool import scatter_residual_
from layercoop_fast.kernels.reference.blocks import scatter_residual_reference_

# pool [S, T, H], targets, sources: in place, to a free slot, several, none
CASES = [
    ((1, 1, 1), [0], [0]),
    ((5, 3, 17), [1, 4, 2], [1, 0, 3]),
    ((3, 2, 2500), [2], [0]),
    ((2, 1, 8), [], []),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "targets", "sources"), CASES)
def test_against_the_oracle(shape, targets, sources, dtype: torch.dtype, device: str) -> None:
    pool = noise(*shape, dtype=dtype).to(device)
    delta = noise(len(targets) * shape[1], shape[2], dtype=dtype, seed=1).to(device)
    to, of = (torch.tensor(each, dtype=torch.int64, device=device) for each in (targets, sources))
    # Where bf16 is cut off instead of rounded, by the interpreter, the last digit may differ.
    relative = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    expected, found = pool.clone(), pool.clone()
    scatter_residual_reference_(expected, to, delta, sources=of)
    scatter_residual_(found, to, delta, sources=of)
    assert_near(found, expected, relative=relative)
    rows = pool[of].flatten(0, 1)
    found = pool.clone()
    scatter_residual_(found, to, delta, residual=rows)
    assert_near(found, expected, relative=relative)
    untouched = [slot for slot in range(shape[0]) if slot not in targets]
    assert torch.equal(found[untouched], pool[untouched])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration(config, device: str) -> None:
    pool, delta = noise(3, 2, 600).to(device), noise(2, 600, seed=1).to(device)
    slot = torch.tensor([1], device=device)
    expected = pool.clone()
    scatter_residual_reference_(expected, slot, delta, sources=slot)
    launch_scatter(pool, slot, delta, sources=slot, config=config)
    assert torch.equal(pool, expected)


def test_bad_arguments(device: str) -> None:
    pool, delta, slot = noise(3, 2, 16).to(device), noise(2, 16).to(device), torch.tensor([1], device=device)
    with pytest.raises(RequestError, match="residual, sources: expected one of the two"):
        scatter_residual_(pool, slot, delta)
    with pytest.raises(RequestError, match="residual, sources: expected one of the two"):
        scatter_residual_(pool, slot, delta, residual=delta, sources=slot)
    with pytest.raises(RequestError, match=r"delta: expected shape \[2, 16\], got \[4, 8\]"):
        scatter_residual_(pool, slot, delta.view(4, 8), sources=slot)

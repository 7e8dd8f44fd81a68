"""What a checkpoint costs to run: parameters, bytes, cache, memory, and tokens a second.

Each checkpoint is measured in a process of its own, so that neither the memory nor the caches of the process that
pruned it are counted.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercoop_fast.errors import RunError
from layercoop_fast.system.processes import end_with_parent, parent_mark

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PROMPT_TOKENS = 128
DECODE_TOKENS = 32
REPEATS = 3
# A model that takes longer is measured once: its figure is steady enough.
PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Cost:
    """What running one model takes.

    Attributes:
        params: parameters, tied ones once.
        weight_bytes: their bytes.
        kv_bytes_per_token: bytes that the cache grows by with each token (0 for a recurrent state).
        peak_memory_bytes: peak while prefill and decode run, weights included; on the CPU resident memory above the
            process's baseline after import, on a GPU what torch allocated.
        prefill_tok_s: prompt tokens a second, up to the first new token.
        decode_tok_s: new tokens a second after the first, one sequence, greedy, by transformers' `generate`.
    """

    params: int
    weight_bytes: int
    kv_bytes_per_token: int
    peak_memory_bytes: int
    prefill_tok_s: float
    decode_tok_s: float


def measure_costs(
    paths: Sequence[str | Path], *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> list[Cost]:
    """Measure checkpoints one after the other, each in a process of its own.

    Raises `RunError` with the last line of the process that fails.
    """
    command = [
        sys.executable,
        "-m",
        "layercoop_fast.pruning.checkpoint_costs",
        parent_mark(),
        dtype,
        device,
        str(int(trust_remote_code)),
        *map(str, paths),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the cost of running {', '.join(map(str, paths))} could not be measured: {last}")
    return [Cost(**json.loads(line)) for line in done.stdout.strip().splitlines()]


def measure_here(path: str, dtype: str, device: str, trust_remote_code: bool) -> Cost:
    """Load a checkpoint into this process and measure it."""
    import torch

    from layercoop_fast.engine.loading import open_checkpoint
    from layercoop_fast.engine.quantised import bytes_of, parameters_of

    baseline = _resident_bytes()
    model = open_checkpoint(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code).model
    parameters = list(model.parameters())
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**30
    new = max(1, min(DECODE_TOKENS, limit // 3))
    prompt = max(1, min(PROMPT_TOKENS, limit - new - 1))
    ids = (torch.arange(prompt) % model.get_input_embeddings().weight.shape[0]).view(1, -1).to(model.device)
    with torch.inference_mode():
        _generate(model, ids, 2)  # warm-up: a prompt and a step
        _forget_peak(model.device.type)
        first = _median_seconds(lambda: _generate(model, ids, 1))
        all_of_them = _median_seconds(lambda: _generate(model, ids, new + 1))
        grown = _cache_bytes(model, ids[:, : prompt // 2 + 1]) - _cache_bytes(model, ids[:, : prompt // 2])
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device)
    else:
        peak = _peak_resident_bytes() - baseline
    return Cost(
        params=parameters_of(parameters),
        weight_bytes=bytes_of(parameters),
        kv_bytes_per_token=grown,
        peak_memory_bytes=peak,
        prefill_tok_s=round(prompt / first, 2),
        # On a machine that stalls between the two, the difference can vanish; a rate is never negative.
        decode_tok_s=round(new / max(all_of_them - first, 1e-9), 2),
    )


def _generate(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Any:
    return model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0,
    )


def _median_seconds(call: Callable[[], Any]) -> float:
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < PATIENCE_SECONDS:
        started = time.perf_counter()
        call()  # generate returns tokens on the host, so a GPU has finished by then
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _cache_bytes(model: PreTrainedModel, ids: Tensor) -> int:
    """Bytes of the cache after a prompt, whatever kind of cache the family has."""
    returned = model(input_ids=ids, use_cache=True)
    held = {name: value for name, value in returned.items() if name not in ("logits", "loss")}
    sizes = {tensor.untyped_storage().data_ptr(): tensor.numel() * tensor.element_size() for tensor in _tensors(held)}
    return sum(sizes.values())


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors inside a cache: containers and plain objects are searched, a few levels deep."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif depth < 6:
        if isinstance(value, dict):
            inner = list(value.values())
        elif isinstance(value, (list, tuple)):
            inner = list(value)
        elif "ache" in type(value).__name__ or "ayer" in type(value).__name__:
            inner = list(vars(value).values())
        else:
            inner = []
        for item in inner:
            yield from _tensors(item, depth + 1)


def _resident_bytes() -> int:
    return _status("VmRSS") or 0


def _peak_resident_bytes() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes, or None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _forget_peak(device: str) -> None:
    """Reset the peak, so that memory that only loading used is not counted."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _measure_each(mark: str, dtype: str, device: str, trust_remote_code: bool, paths: Sequence[str]) -> None:
    """Fork a child for each checkpoint, which prints its cost as a JSON line.

    The libraries take longer to import than a small model takes to measure, so they are imported once. Nothing
    has run on them before the fork: no threads, no device. So no thread watches for the end of the parent process;
    where the kernel does not do it, this process checks for it while it waits.
    """
    end_with_parent(mark, watch=False)
    asker = os.getppid()

    import transformers  # noqa: F401

    import layercoop_fast.engine.loading  # noqa: F401

    here = parent_mark()
    for path in paths:
        child = os.fork()
        if child == 0:
            end_with_parent(here)
            sys.stdout.write(json.dumps(asdict(measure_here(path, dtype, device, trust_remote_code))) + "\n")
            sys.stdout.flush()
            os._exit(0)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if os.getppid() != asker:
                sys.exit(1)  # and the child ends with this process
            time.sleep(_POLL_SECONDS)
        if ended[1] != 0:
            sys.exit(1)


if __name__ == "__main__":
    _measure_each(sys.argv[1], sys.argv[2], sys.argv[3], bool(int(sys.argv[4])), sys.argv[5:])

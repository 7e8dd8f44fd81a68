"""The published surrogate: a two-layer network from masks to worths, fitted by plain SGD, and itself a game."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason, written_whole
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import as_saved, parse_json
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.surrogate import flips, marginals, predict
from layercoop_fast.masks.types import Floats, Masks, check_masks
from layercoop_fast.surrogate.pairs import check_pairs, fittable_pairs
from layercoop_fast.surrogate.threads import one_thread

# Rows a forward pass: a [rows, 2n] float32 block stays within the cache for the players of today's models.
_BLOCK = 1 << 12

_FORMAT = "layercoop_fast.surrogate/1"


class PublishedSurrogate:
    """f(m) = σ(v · CELU(W m + b) + c): Linear(n, 2n) → CELU → Linear(2n, 1) → Sigmoid, in float32 on the CPU.

    It is a game (`surrogate(masks) -> float64[M]`, `n_players`) with the `flips` shortcut. Its values lie in (0, 1):
    worths above 1 (a mask that beats the full model) or below 0 cannot be represented and pull the fit to the edge, as
    in the published method. Source: arXiv 2602.07804.

    Attributes:
        hidden_weight: W, `float32[2n, n]`.
        hidden_bias: b, `float32[2n]`.
        output_weight: v, `float32[2n]`.
        output_bias: c, `float32[]`.
        history: the mean squared error of each epoch.
        n_players: n.

    Examples:
        >>> import numpy as np
        >>> from layercoop_fast import PublishedSurrogate, stratified_masks
        >>> masks = stratified_masks(6, 120, seed=0, strata=[5, 4, 3])
        >>> surrogate = PublishedSurrogate.fit(masks, masks.mean(axis=1), epochs=20, batch_size=20)
        >>> surrogate(masks[:3]).shape, surrogate.history[-1] < surrogate.history[0]
        ((3,), True)
    """

    def __init__(
        self,
        hidden_weight: torch.Tensor,
        hidden_bias: torch.Tensor,
        output_weight: torch.Tensor,
        output_bias: torch.Tensor,
        *,
        history: Sequence[float] = (),
    ) -> None:
        """Take W `float32[2n, n]`, b `[2n]`, v `[2n]` and c `[]`; `RequestError` for other shapes and dtypes."""
        n = hidden_weight.shape[-1]
        tensors = (hidden_weight, hidden_bias, output_weight, output_bias)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if n < 1 or shapes != [(2 * n, n), (2 * n,), (2 * n,), ()]:
            raise RequestError(f"a surrogate's tensors are [2n, n], [2n], [2n] and [], not {shapes}")
        if any(tensor.dtype != torch.float32 for tensor in tensors):
            raise RequestError(f"a surrogate's tensors are float32, not {[str(tensor.dtype) for tensor in tensors]}")
        self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias = (t.detach() for t in tensors)
        self.history = list(history)
        self.n_players = int(n)

    @classmethod
    @one_thread()
    def fit(
        cls,
        masks: Masks,
        worths: Floats,
        *,
        seed: int = 0,
        epochs: int = 300,
        batch_size: int = 300,
        lr: float = 0.008,
        momentum: float = 0.9,
        lr_step: int = 100,
        lr_gamma: float = 0.1,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> PublishedSurrogate:
        """Fit to pairs of masks `bool[M, n]` and worths `float64[M]`; the defaults are the published recipe.

        The loss is the mean squared error; the optimiser SGD with momentum. Each epoch shuffles the pairs (the last
        batch may be short), and the learning rate is multiplied by `lr_gamma` every `lr_step` epochs. Weights start
        uniform in ±1/√fan_in, as in torch's Linear layers. `on_epoch(epoch, loss)` is called after each epoch, counted
        from 1. The result depends on the arguments alone, given the version of torch and the type of machine; torch's
        global random state is neither read nor written.

        Raises:
            RequestError: for arrays that do not fit together, and for NaN or infinite worths (see `finite_pairs`).
        """
        masks, worths = fittable_pairs(masks, worths)
        if epochs < 1 or batch_size < 1:
            raise RequestError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")

        generator = torch.Generator().manual_seed(seed)
        inputs = torch.from_numpy(masks.astype(np.float32))
        targets = torch.from_numpy(worths.astype(np.float32))
        weights = _initial_weights(masks.shape[1], generator)
        optimiser = torch.optim.SGD(weights, lr=lr, momentum=momentum)
        history = []
        for epoch in range(epochs):
            optimiser.param_groups[0]["lr"] = lr * lr_gamma ** (epoch // lr_step)
            order = torch.randperm(len(targets), generator=generator)
            total = 0.0
            for batch in torch.split(order, batch_size):
                x, y = inputs[batch], targets[batch]
                optimiser.zero_grad()
                loss = F.mse_loss(torch.sigmoid(_logits(x, *weights)), y)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += loss.item() * len(y)
            history.append(total / len(targets))
            if on_epoch is not None:
                on_epoch(epoch + 1, history[-1])
        return cls(*weights, history=history)

    @one_thread()
    def __call__(self, masks: Masks, /, *, device: str = "cpu") -> Floats:
        """Return the predicted worths, `float64[M]`, of masks `bool[M, n]`, to the rounding of float32.

        `device` is "cpu", "cuda" or "cuda:N" (see `NetworkGame`).
        """
        masks = check_masks(masks, self.n_players)
        if device != "cpu":
            return predict(self.networks, masks, device)[:, 0]
        worths = np.empty(len(masks))
        for low in range(0, len(masks), _BLOCK):
            logits = _logits(torch.from_numpy(masks[low : low + _BLOCK].astype(np.float32)), *self._weights)
            worths[low : low + _BLOCK] = _sigmoid(logits)
        return worths

    @property
    def networks(self) -> Networks:
        """The network as an ensemble of one, which the kernels take."""
        w, b, v, c = (tensor.numpy()[None] for tensor in self._weights)
        return Networks(w, b, v, c, "celu", "sigmoid")

    def flips(self, masks: Masks, /) -> tuple[Floats, Floats]:
        """Return the worths `float64[M]` of the masks and `float64[M, n]` of each mask with player i flipped."""
        return flips(self.networks, masks)

    def mean_marginals(self, masks: Masks, /, *, device: str = "cpu") -> tuple[Floats, Floats]:
        """The mean over masks `bool[M, n]` of f(m with i) − f(m without i), and its standard error: `float64[n]`."""
        return marginals(self.networks, masks, device)

    def r2(self, masks: Masks, worths: Floats) -> float:
        """R² = 1 − Σ (worth − f)² / Σ (worth − mean worth)² on masks `bool[M, n]` and worths `float64[M]`.

        1 is perfect, 0 is no better than the mean worth, negative is worse; NaN if all worths are equal.
        """
        masks, worths = check_pairs(masks, worths)
        spread = float(((worths - worths.mean()) ** 2).sum()) if len(worths) else 0.0
        return 1 - float(((worths - self(masks)) ** 2).sum()) / spread if spread else float("nan")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all, replacing one that is there (see `written_whole`)."""
        metadata = {"format": _FORMAT, "history": json.dumps(self.history)}
        payload = safetensors_bytes(dict(zip(_NAMES, self._weights, strict=True)), metadata)
        with written_whole(Path(path), force=True) as temporary:
            temporary.write_bytes(payload)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PublishedSurrogate:
        """Read what `save` wrote; `RequestError` when the file is missing, corrupt, or not a surrogate."""
        found = read_header(Path(path))
        if found.metadata.get("format") != _FORMAT or set(found.tensors) != set(_NAMES):
            raise RequestError(f"{path} is not a surrogate that this version saved")
        with as_saved(path):
            try:
                with safe_open(path, framework="pt") as file:
                    weights = [file.get_tensor(name) for name in _NAMES]
            except (OSError, SafetensorError) as error:
                raise RequestError(f"cannot read a surrogate from {path}: {reason(error)}") from error
            return cls(*weights, history=parse_json(found.metadata["history"], f"the history in {path}"))

    @property
    def _weights(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias


_NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")


def _initial_weights(n: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return fresh W, b, v, c with gradients, uniform in ±1/√fan_in (torch's default for Linear layers)."""
    shapes_and_fan_in: list[tuple[tuple[int, ...], int]] = [
        ((2 * n, n), n),
        ((2 * n,), n),
        ((2 * n,), 2 * n),
        ((), 2 * n),
    ]
    return [
        torch.empty(shape, dtype=torch.float32)
        .uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        .requires_grad_()
        for shape, fan_in in shapes_and_fan_in
    ]


def _logits(
    x: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    output_weight: torch.Tensor,
    output_bias: torch.Tensor,
) -> torch.Tensor:
    """Return the network's value before the sigmoid, `float32[M]`, for masks as `float32[M, n]`."""
    return F.celu(F.linear(x, hidden_weight, hidden_bias)) @ output_weight + output_bias


def _sigmoid(logits: torch.Tensor) -> Floats:
    """Return σ in float64: near 1, float32 has too few digits left to tell two logits apart."""
    worths: Floats = torch.sigmoid(logits.double()).numpy()
    return worths

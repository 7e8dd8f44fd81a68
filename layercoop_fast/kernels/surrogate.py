"""An ensemble of networks over masks: values, and what each player adds to them.

The formulas are those of `reference/networks.py`, in float64; here they hold to the rounding of float32. The core
computes them (csrc/surrogate), or with `device` "cuda" a GPU does (kernels/gpu, the extra `triton`). Every function
raises `RequestError` for masks and weights that do not fit, and where there is no such device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from layercoop_fast import _C
from layercoop_fast.errors import RequestError
from layercoop_fast.kernels.checks import sound
from layercoop_fast.kernels.memory import gpu_named
from layercoop_fast.kernels.networks import Networks
from layercoop_fast.kernels.reference.networks import output
from layercoop_fast.masks.types import Floats, Masks, check_masks

if TYPE_CHECKING:
    from layercoop_fast.kernels.gpu.surrogate import DeviceNetworks


def predict_logits(networks: Networks, masks: Masks, device: str = "cpu") -> Floats:
    """z_e(m) of masks `bool[M, n]`, the values before the output function: `float64[M, E]`."""
    sent = _sent(networks, masks, device)
    if sent is not None:
        from layercoop_fast.kernels.gpu.surrogate import launch_logits

        logits = torch.empty((len(masks), networks.n_networks), device=sent[1].device)
        launch_logits(*sent, logits)
        return logits.cpu().numpy().astype(np.float64)
    return _C.predict_logits(_checked(networks), _packed(networks, masks)).astype(np.float64)


def predict(networks: Networks, masks: Masks, device: str = "cpu") -> Floats:
    """f_e(m) of masks `bool[M, n]`: `float64[M, E]`. The ensemble's value is the mean over the last axis.

    The sigmoid is taken in float64: near 1, float32 has too few digits left to tell two logits apart.
    """
    return output(networks, predict_logits(networks, masks, device))


def marginals(networks: Networks, masks: Masks, device: str = "cpu") -> tuple[Floats, Floats]:
    """The mean over masks `bool[M, n]`, M ≥ 2, of f(m with i) − f(m without i), and its standard error.

    f is the ensemble's mean value. One of the two masks is m itself; the other has one player flipped, which moves the
    pre-activations by one column. So a mask costs one pre-activation and n flips of H additions each, and for CELU no
    exponential: e^(x ± w) = e^x · e^±w. Nothing of the size [masks, players] is held.

    Returns:
        Two arrays `float64[n]`. The standard error takes the masks as independent draws.

    Raises:
        RequestError: for fewer than 2 masks.
    """
    if isinstance(masks, np.ndarray) and masks.ndim == 2 and len(masks) < 2:
        raise RequestError("marginals need at least 2 masks, or their mean has no standard error")
    sent = _sent(networks, masks, device)
    if sent is not None:
        from layercoop_fast.kernels.gpu.surrogate import launch_marginals

        totals, squares = launch_marginals(*sent).cpu().numpy()
        mean = totals / len(masks)
        spread = np.maximum(squares - len(masks) * mean**2, 0) / (len(masks) - 1)
        return mean, np.sqrt(spread / len(masks))
    return _C.marginals(_checked(networks), _packed(networks, masks))


def flips(networks: Networks, masks: Masks) -> tuple[Floats, Floats]:
    """The ensemble's values `float64[M]` of masks `bool[M, n]`, and `float64[M, n]` with player i flipped.

    For a caller that needs the value of every neighbour (see `FlipGame`), which `marginals` does not hold. The output
    function is taken in float64.
    """
    logits, flipped = _C.flip_logits(_checked(networks), _packed(networks, masks))
    values: Floats = output(networks, logits.astype(np.float64)).mean(axis=1)
    neighbours: Floats = output(networks, flipped.astype(np.float64)).mean(axis=1)
    return values, neighbours


_LARGEST = 1e30


def _checked(networks: Networks) -> Networks:
    """Return `networks`, or raise `RequestError` where |c| + Σ |v|·(1 + |b| + Σ |W|) comes near the end of float32."""
    inner = (
        1 + np.abs(networks.hidden_bias, dtype=np.float64) + np.abs(networks.hidden_weight).sum(-1, dtype=np.float64)
    )
    outer = np.abs(networks.output_bias, dtype=np.float64) + (np.abs(networks.output_weight) * inner).sum(-1)
    if max(inner.max(), outer.max()) > _LARGEST:
        raise RequestError(f"the weights are so large that a value may exceed {_LARGEST:.0e}: rescale the network")
    return networks


def _sent(networks: Networks, masks: Masks, device: str) -> tuple[DeviceNetworks, torch.Tensor] | None:
    """Networks and masks on a GPU; None where the core computes them, also in place of kernels that are not right."""
    if device == "cpu":
        return None
    there = gpu_named(device, "a surrogate")
    if not sound("surrogate", there):
        return None
    from layercoop_fast.kernels.gpu.surrogate import DeviceNetworks

    masks = np.ascontiguousarray(check_masks(masks, networks.n_players))
    return DeviceNetworks.of(_checked(networks), there), torch.tensor(masks, device=there)


def _packed(networks: Networks, masks: Masks) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return _C.pack_masks(np.ascontiguousarray(check_masks(masks, networks.n_players)))

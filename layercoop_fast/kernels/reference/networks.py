"""An ensemble of networks over masks, in float64: values, and what each player adds to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from layercoop_fast.kernels.networks import Networks
from layercoop_fast.masks.types import Floats, Masks

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "celu": F.celu,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


def output(networks: Networks, logits: Floats) -> Floats:
    """The output function of `networks` (sigmoid or identity) of logits float64 [...] → float64 [...]."""
    if networks.output == "linear":
        return logits
    values: Floats = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return values


def predict_logits_reference(networks: Networks, masks: Masks) -> Floats:
    """z_e(m) = v_e · act(W_e m + b_e) + c_e of masks bool [M, n] → float64 [M, E]; the symbols are `Networks`'."""
    x = torch.from_numpy(masks).double()
    logits = np.empty((len(masks), networks.n_networks))
    for e in range(networks.n_networks):
        w, b, v = (
            torch.tensor(weights[e]).double()
            for weights in (networks.hidden_weight, networks.hidden_bias, networks.output_weight)
        )
        logits[:, e] = _ACTIVATIONS[networks.activation](x @ w.T + b) @ v + float(networks.output_bias[e])
    return logits


def predict_reference(networks: Networks, masks: Masks) -> Floats:
    """f_e(m) = out(z_e(m)) of masks bool [M, n] → float64 [M, E]; the ensemble's value is the mean over e."""
    return output(networks, predict_logits_reference(networks, masks))


def flips_reference(networks: Networks, masks: Masks) -> tuple[Floats, Floats]:
    """The ensemble's values float64 [M] of masks bool [M, n], and float64 [M, n] with player i flipped."""
    flipped = np.empty(masks.shape)
    for player in range(networks.n_players):
        neighbours = masks.copy()
        neighbours[:, player] ^= True
        flipped[:, player] = predict_reference(networks, neighbours).mean(axis=1)
    return predict_reference(networks, masks).mean(axis=1), flipped


def marginals_reference(networks: Networks, masks: Masks) -> tuple[Floats, Floats]:
    """The mean over masks bool [M, n] of f(m with i) − f(m without i), float64 [n], and its standard error [n].

    f is the ensemble's mean value. The standard error takes the masks as independent draws.
    """
    mean, stderr = np.empty(networks.n_players), np.empty(networks.n_players)
    for player in range(networks.n_players):
        with_player, without = masks.copy(), masks.copy()
        with_player[:, player], without[:, player] = True, False
        gain = (predict_reference(networks, with_player) - predict_reference(networks, without)).mean(axis=1)
        mean[player] = gain.mean()
        stderr[player] = gain.std(ddof=1) / np.sqrt(len(masks))
    return mean, stderr


def all_masks_reference(networks: Networks, shifts: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Sums over all 2ⁿ masks of f − shifts[k], k the number of players a mask keeps and shifts float64 [n + 1].

    Returns four arrays of float64: sums by size [n + 1], sums of squares by size [n + 1], sums over the masks with
    player i by size [n, n + 1], and over those with players i and j by size [n, n, n + 1].
    """
    n = networks.n_players
    masks = (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool)
    sizes = masks.sum(1)
    values = predict_reference(networks, masks).mean(axis=1) - shifts[sizes]
    by_size = np.eye(n + 1)[sizes] * values[:, None]
    kept = masks.astype(np.float64)
    return by_size.sum(0), (by_size**2).sum(0), kept.T @ by_size, np.einsum("mi,mj,mk->ijk", kept, kept, by_size)

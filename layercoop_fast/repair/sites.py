"""The site of a unit: the module whose output is added to the residual stream unchanged, which a repair refits.

It is found by trying, not by name: whatever is added to the module's output must be added to the unit's output. It is
`down_proj` of a llama-shaped block, `c_proj` of GPT-2's MLP, `fc2` of OPT, `out_proj` of Mamba; for an attention half
alone it is `o_proj`. Where a norm follows the last linear map (Gemma 2 and 3, OLMo 2), it is the gains of that norm
(`gains.py`), which have fewer parameters. Units that end in a factor or in several experts have no site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layercoop_fast.errors import RequestError
from layercoop_fast.masked.players import Players
from layercoop_fast.repair.gains import GainSite, gains_of
from layercoop_fast.repair.ridge import NormalEquations

AnySite = TypeVar("AnySite", bound="Site | GainSite")

_PROBE_TOKENS = 8
# An output number counts as unchanged within this many roundings, and this share of them must be.
_ROUNDINGS = 8
_UNCHANGED = 0.98


@dataclass(frozen=True)
class Site:
    """A linear map [n → H] whose output is added to the residual stream.

    Attributes:
        unit: that it belongs to.
        name: its dotted path in the model.
        module: `nn.Linear` or `Conv1D`.
    """

    unit: int
    name: str
    module: nn.Linear | Conv1D

    @property
    def weight(self) -> Tensor:
        """The map's weight as [H, n], also where the module stores its transpose."""
        weight = self.module.weight.detach()
        return weight.t() if isinstance(self.module, Conv1D) else weight

    @property
    def bias(self) -> Tensor | None:
        """The map's bias [H], where it has one."""
        bias = self.module.bias
        return None if bias is None else bias.detach()

    def equations(self, maps: int = 1, products: torch.dtype = torch.float64) -> NormalEquations:
        """Sums over no tokens, on the map's device, for one refitted map or several of the same inputs.

        `products` is the dtype of the sums of one chunk of tokens.
        """
        outputs, inputs = self.weight.shape
        return NormalEquations.empty(
            inputs, maps * outputs, intercept=self.bias is not None, products=products, device=self.weight.device
        )

    def reads(self, handed: Tensor, returned: Tensor) -> Tensor:
        """The regression's inputs: the module's input `handed` [..., n]; its output `returned` is [..., H]."""
        return handed

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name: [H, n] or [n, H], and a bias [H]."""
        found = {f"{self.name}.weight": self.module.weight}
        return found if self.module.bias is None else {**found, f"{self.name}.bias": self.module.bias}

    def changed(self, change: Tensor) -> dict[str, Tensor]:
        """The parameters as the module stores them, for a change [H, n], with a last column for the bias."""
        bias = self.bias
        width = self.weight.shape[1]
        weight = (self.weight.double() + change[:, :width]).to(self.weight.dtype)
        if isinstance(self.module, Conv1D):
            weight = weight.t()
        values = [weight.contiguous()]
        if bias is not None:
            values.append((bias.double() + change[:, width]).to(bias.dtype))
        return dict(zip(self.parameters(), values, strict=True))


def find_site(players: Players, unit: int) -> Site | GainSite:
    """The site of a unit. Raises `RequestError` that says why where it has none."""
    skeleton = players.skeleton
    layer = unit if players.sublayers is None else unit // 2
    block, prefix = skeleton.blocks[layer], f"{skeleton.blocks_path}.{layer}"
    silenced = "\n"  # no module's name
    if players.sublayers is not None:
        halves = players.sublayers.halves[layer]
        silenced = f"{halves.attn if unit % 2 else halves.mlp}."  # called, but its output is replaced by zeros
    tokens = min(_PROBE_TOKENS, skeleton.max_tokens or _PROBE_TOKENS)
    ids = torch.arange(2 * tokens, device=skeleton.device).view(2, tokens) % skeleton.vocab_size
    with torch.inference_mode():
        context = skeleton.context(ids)
        run = partial(players.run, context, unit, context.embedding)
        plain = run().double()
        modules = [
            (f"{prefix}.{name}", module)
            for name, module in reversed(list(block.named_modules()))
            if not f"{name}.".startswith(silenced)
        ]
        for name, module in modules:
            # Exactly these classes: a subclass (quantised, or with an adapter) computes something else from its weight.
            if type(module) in (nn.Linear, Conv1D) and _reaches_stream(module, run, plain):
                return _unshared(Site(unit, name, module), skeleton.model)
        for name, module in modules:
            offset = gains_of(module, plain.shape[-1])
            if offset is not None and _reaches_stream(module, run, plain, scaled=True):
                return _unshared(GainSite(unit, name, module, offset), skeleton.model)
    raise RequestError(
        f"{players.label(unit)} ({type(block).__name__}) has neither a plain linear map nor a norm whose output is "
        "added to the residual stream unchanged: a repair cannot be folded into its weights"
    )


def _reaches_stream(module: nn.Module, run: Callable[[], Tensor], plain: Tensor, *, scaled: bool = False) -> bool:
    """Whether numbers that are added to the module's output are added to the unit's output, `plain` [B, T, H].

    Random numbers are added, or with `scaled` the output times random numbers: after a silenced half a norm returns
    zeros, which gains do not change. Both have the size of the stream, so that they are not mistaken for rounding.
    """
    added: list[Tensor] = []

    def disturb(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        random = torch.randn(plain.shape[-1], generator=torch.Generator().manual_seed(0)).to(out)
        if out.shape[-1] != len(random):
            return out
        size = plain.abs().mean().to(out.dtype)
        if scaled:
            random = random * out / out.abs().mean().clamp_min(torch.finfo(out.dtype).tiny)
        added.append(random * size)
        return out + added[-1]

    handle = module.register_forward_hook(disturb)
    try:
        changed = run()
    finally:
        handle.remove()
    if len(added) != 1 or not added[0].any():
        return False
    expected = added[0].double()
    rounding = torch.finfo(changed.dtype).eps * (plain.abs() + changed.double().abs() + expected.abs())
    unchanged = (changed.double() - plain - expected).abs() <= _ROUNDINGS * rounding
    return bool(unchanged.double().mean() >= _UNCHANGED)


def _unshared(site: AnySite, model: nn.Module) -> AnySite:
    """The site, unless another module uses its weight too."""
    weight = site.module.weight
    users = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight]
    if len(users) > 1:
        raise RequestError(f"the weight of {site.name} is also {users[0]}'s: a repair of one would change the other")
    return site

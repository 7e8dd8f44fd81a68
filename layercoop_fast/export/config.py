"""The config of a model with some layers removed, and the masks for which there is one.

The rules apply to names of attributes, not of models: configs share their attributes, so that a new model with known
names works at once. Differences between blocks that the config does not state are found when the checkpoint is built
(`export/checkpoint.py` compares block by block).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layercoop_fast.errors import RequestError
from layercoop_fast.export.patterns import Rule, cheapest_mask, interval_layouts, periodic_layouts
from layercoop_fast.masks.types import Floats, Masks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")
"""Attributes with the number of layers; a config may have several."""

LISTS = (
    "activation_sparsity_pattern",
    "attention_layers",
    "indexer_types",
    "intermediate_size",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "moe_layer_freq",
    "moe_topk",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "num_experts",
    "num_key_value_heads_per_layer",
)
"""Attributes with one element per layer, where the value is a list; of longer lists the first ones count (SmolLM3)."""

INDICES = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "non_linear_ple_layers",
    "ple_layer_ids",
    "rope_scaling_layers",
)
"""Attributes with the numbers of the layers of some kind."""

PREFIXES = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
"""Attributes with the number of first layers that are of some kind."""

INVERSE_LAYER_SCALE = "scale_attn_by_inverse_layer_idx"
"""GPT-2 divides attention scores by layer number + 1: folded into weights when layers are renumbered."""

RULES = (
    "attention_types",
    "attn_layer_offset",
    "attn_layer_period",
    "block_types",
    "decoder_sparse_step",
    "expert_layer_offset",
    "expert_layer_period",
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_layer_start_index",
    "per_layer_config",
    INVERSE_LAYER_SCALE,
)
"""Attributes that tell layers apart by their numbers in other ways, and are rewritten with the layers."""

_COUPLED = {
    "hidden_size_per_layer_input": "one table of embeddings holds a part for each layer",
    "kv_source_layers": "layers use the keys and values of other layers",
    "lambda_std_dev": "a constant of each layer's attention depends on the layer's number",
    "loop_layer_index_start": "a range of layers runs more than once",
    "n_layers_per_attn_res_block": "layers attend to the outputs of groups of earlier layers",
    "n_recurrent_layers": "a range of layers runs more than once",
    "num_kv_shared_layers": "the last layers use the keys and values of earlier ones",
    "num_mem_blocks": "layers share their weights in turn",
    "rescale_every": "the stream is rescaled every few layers",
    "scale_depth": "each layer's output is scaled by the number of layers",
}
"""Attributes of configs whose blocks depend on each other or on their place: only the full mask has a config."""

_ATTENDING = frozenset(
    {
        "attention",
        "chunked_attention",
        "full_attention",
        "hybrid",
        "hybrid_sliding",
        "indexed_attention",
        "sliding_attention",
    }
)
"""Kinds of layers whose cache counts tokens: transformers generates with a cache only if there is one of them."""

_LAST_KIND = dict.fromkeys(
    ("gemma4_text", "gemma4_unified_text", "embedding_gemma2_text", "diffusion_gemma_text"), "full_attention"
)
"""The kind of layer that transformers makes of the last one, whatever the config says, by `model_type`."""


def prune_config(config: PretrainedConfig, kept: Sequence[int]) -> PretrainedConfig:
    """Return a copy of `config` that describes the model with only the layers `kept` (ascending numbers).

    A composite config keeps its other parts. Where `INVERSE_LAYER_SCALE` is set it is switched off in the copy; the
    query projection of each kept layer then has to be divided by its original number + 1.

    Raises `RequestError` where the mask is malformed or has no plain config; it names the nearest mask that has one.
    """
    n_layers = layer_count(config)
    if list(kept) != sorted(set(kept)) or not all(0 <= layer < n_layers for layer in kept):
        raise RequestError(f"kept layers must be ascending numbers from 0 to {n_layers - 1}, got {list(kept)}")
    mask = np.isin(np.arange(n_layers), list(kept))
    if why := exportable(config, mask):
        raise RequestError(why + _advice(config, mask))
    pruned = copy.deepcopy(config)
    _rewrite(pruned.get_text_config(decoder=True), np.flatnonzero(mask), n_layers)
    return pruned


def layer_count(config: PretrainedConfig) -> int:
    """Number of layers of the text model that `config` describes."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def exportable(config: PretrainedConfig, mask: Masks) -> str | None:
    """Return None where a plain config exists for the layers of `mask` (`bool[L]`), else one line that says why not.

    Raises `RequestError` where `mask` is not a `bool[L]`.
    """
    _check_width(mask, np.bool_, layer_count(config), "mask")
    if not mask.any():
        return "at least one layer must be kept"
    if mask.all():
        return None
    text = config.get_text_config(decoder=True)
    if why := _only_whole(text, len(mask)):
        return why
    if mask.sum() < _least_kept(text):
        return "transformers cannot open an RWKV of one block: at least two must be kept"
    attending = _attending(text, len(mask))
    if attending.any() and not (attending & mask).any():
        return "one attention layer of this hybrid must stay: without any, transformers cannot generate with a cache"
    kept = np.flatnonzero(mask)
    if not (last := _possible_last(text, len(mask)))[kept[-1]]:
        where = np.flatnonzero(last).tolist()
        return f"transformers gives the last layer full attention: the last one kept must be one of {where}"
    for rule in _rules(text, len(mask)):
        if rule.numbers_for(kept) is None:
            names = " and ".join(rule.layouts.names)
            return f"no values of {names} describe the kept layers in their new order"
    return None


def nearest_exportable(config: PretrainedConfig, mask: Masks, keep_count: int | None = None) -> Masks | None:
    """Return the exportable mask (`bool[L]`) that differs from `mask` (`bool[L]`) in the fewest layers.

    With `keep_count` it keeps exactly that number of layers. None where no such mask exists. Raises `RequestError` for
    a malformed mask or count.
    """
    _check_width(mask, np.bool_, layer_count(config), "mask")
    return _cheapest(config, keep=(~mask).astype(np.float64), drop=mask.astype(np.float64), n_kept=keep_count)


def best_exportable(config: PretrainedConfig, costs: Floats, n_kept: int) -> Masks | None:
    """Return the exportable mask (`bool[L]`) of `n_kept` layers with the least total cost of the removed layers.

    `costs` is `float64[L]`, finite: the cost of removing each layer. None where no exportable mask keeps that number.
    Of equal totals it is the mask that removes earlier layers. Raises `RequestError` for malformed costs or count.
    """
    _check_width(costs, np.float64, layer_count(config), "costs")
    if not np.isfinite(costs).all():
        raise RequestError(f"costs must be finite, {int((~np.isfinite(costs)).sum())} of {len(costs)} are not")
    return _cheapest(config, keep=np.zeros(len(costs)), drop=costs, n_kept=n_kept)


class ExportableMasks:
    """The masks with a plain config, as a family for searches (`search.base.Allowed`)."""

    def __init__(self, config: PretrainedConfig) -> None:
        self._config = config

    def check(self, mask: Masks, /) -> str | None:
        """Return None where `mask` (`bool[L]`) is exportable, else one line that says why not."""
        return exportable(self._config, mask)

    def explain(self, mask: Masks, /) -> str | None:
        """`check` of `mask` (`bool[L]`), with the nearest exportable mask at the end of the line."""
        why = exportable(self._config, mask)
        return None if why is None else why + _advice(self._config, mask)

    def best(self, costs: Floats, n_kept: int, /) -> Masks | None:
        """`best_exportable`: `costs` is `float64[L]`, the result `bool[L]` or None."""
        return best_exportable(self._config, costs, n_kept)


def _rewrite(text: Any, kept: np.ndarray[Any, np.dtype[np.intp]], n_layers: int) -> None:
    """Rewrite the text config in place for the layers `kept` (`intp[K]`) of `n_layers`."""
    old = copy.deepcopy(vars(text))  # every rule reads the original values
    renumbered = {int(layer): new for new, layer in enumerate(kept)}
    changes: dict[str, Any] = {}
    own_of_layers = _own_of_layers(text)
    for name, value in old.items():
        if name in COUNTS and value == n_layers:
            changes[name] = len(kept)
        elif name in PREFIXES and isinstance(value, int):
            changes[name] = int((kept < value).sum())
        elif name in INDICES and value is not None:
            changes[name] = [renumbered[layer] for layer in value if layer in renumbered]
        elif _is_per_layer(name, value, n_layers):
            changes[name] = [value[layer] for layer in kept]
    if old.get("attention_types") is not None:  # GPT-Neo: [[kinds, repeats], ...], expanded into `attention_layers`
        changes["attention_types"] = [[[kind], 1] for kind in changes["attention_layers"]]
    if old.get("block_types") is not None:  # RecurrentGemma: a cycle of kinds, here as long as the model
        changes["block_types"] = [old["block_types"][layer % len(old["block_types"])] for layer in kept]
    if "decoder_sparse_step" in old:  # a period of MoE layers: list the dense layers instead
        dense = [layer for layer in kept if not _is_sparse(int(layer), old)]
        changes |= {"decoder_sparse_step": 1, "mlp_only_layers": [renumbered[int(layer)] for layer in dense]}
    if old.get(INVERSE_LAYER_SCALE):
        changes[INVERSE_LAYER_SCALE] = False
    for rule in _rules(text, n_layers):
        changes |= rule.numbers_for(kept) or {}
    if own_of_layers is not None:
        text.per_layer_config = None  # else numbers of the original would be checked against the new count
    for name, value in changes.items():
        setattr(text, name, value)
    if own_of_layers is not None:
        text.per_layer_config = {renumbered[layer]: own for layer, own in own_of_layers.items() if layer in renumbered}


def _own_of_layers(text: Any) -> dict[int, dict[str, Any]] | None:
    """What single layers have of their own (`per_layer_config` of transformers), by number; None of a plain config."""
    if not getattr(text, "is_heterogeneous", False):
        return None
    return {int(layer): own for layer, own in text.to_dict()["per_layer_config"].items()}


def _is_per_layer(name: str, value: object, n_layers: int) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if name in LISTS:
        return len(value) >= n_layers
    # An unknown name: a list of this length with such a name is per layer. The length alone may be chance.
    return ("layer" in name or "block" in name) and len(value) == n_layers


def _only_whole(text: Any, n_layers: int) -> str | None:
    """One line that says why this config can describe only the full mask; None where it can describe others."""
    for name, meaning in _COUPLED.items():
        if getattr(text, name, None):
            return f"this model has a plain config only as a whole: {meaning} ({name})"
    for name, value in vars(text).items():
        known = name in INDICES or _is_per_layer(name, value, n_layers)
        if known or "layer" not in name or not isinstance(value, (list, tuple)) or not value:
            continue
        if all(type(each) is int and 0 <= each < n_layers for each in value):
            return f"the config lists layer numbers in {name!r}, which is unknown and cannot be renumbered"
    return None


def _is_sparse(layer: int, old: dict[str, Any]) -> bool:
    return layer not in (old.get("mlp_only_layers") or []) and (layer + 1) % old["decoder_sparse_step"] == 0


def _rules(text: Any, n_layers: int) -> list[Rule]:
    """Rules for the kinds of layer that this config describes by a few numbers and not by a list."""
    rules = []
    layer = np.arange(n_layers)
    spelt_out = vars(text)  # where a list is stored too (Zamba) it counts; Jamba's list is computed from the numbers
    for kind, derived in (("attn", "layers_block_type"), ("expert", "layers_num_experts")):
        names = (f"{kind}_layer_period", f"{kind}_layer_offset")
        if all(name in spelt_out for name in names) and derived not in spelt_out:
            period, offset = (int(spelt_out[name]) for name in names)
            rules.append(Rule(layer % period == offset, periodic_layouts(*names, n_layers)))
    interval_names = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    if all(spelt_out.get(name) is not None for name in interval_names):
        interval, start, end = (int(spelt_out[name]) for name in interval_names)
        kinds = ((layer + 1) % interval == 0) & (start <= layer) & (layer <= end)
        rules.append(Rule(kinds, interval_layouts(*interval_names, n_layers)))
    return rules


def _least_kept(text: Any) -> int:
    """The fewest layers that transformers can open: its RWKV divides by their number minus one."""
    return 2 if hasattr(text, "rescale_every") else 1


def _attending(text: Any, n_layers: int) -> Masks:
    """The attention layers of a hybrid, `bool[L]`; all False where all layers are of one kind."""
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    attending = np.array([kind in _ATTENDING for kind in list(kinds)[:n_layers]], dtype=np.bool_)
    hybrid = len(attending) == n_layers and not attending.all()
    return attending if hybrid else np.zeros(n_layers, np.bool_)


def _possible_last(text: Any, n_layers: int) -> Masks:
    """The layers that may be the last one kept, `bool[L]`."""
    wanted = _LAST_KIND.get(text.model_type)
    if wanted is None:
        return np.ones(n_layers, np.bool_)
    return np.array([kind == wanted for kind in text.layer_types[:n_layers]], dtype=np.bool_)


def _cheapest(config: PretrainedConfig, keep: Floats, drop: Floats, n_kept: int | None) -> Masks | None:
    n_layers = len(keep)
    if n_kept is not None and not 1 <= n_kept <= n_layers:
        raise RequestError(f"the number of kept layers must be from 1 to {n_layers}, got {n_kept}")
    text = config.get_text_config(decoder=True)
    if _only_whole(text, n_layers):
        return np.ones(n_layers, np.bool_) if n_kept in (None, n_layers) else None
    rules = _rules(text, n_layers)
    best = cheapest_mask(rules, keep, drop, n_kept)
    if not (last := _possible_last(text, n_layers)).all():
        return _cheapest_ending(rules, keep, drop, n_kept, last)
    if best is not None and best.sum() < (least := _least_kept(text)):
        return _cheapest(config, keep, drop, least) if n_kept is None else None
    attending = _attending(text, n_layers)
    if best is None or not attending.any() or (attending & best).any():
        return best
    found = []
    for layer in np.flatnonzero(attending):  # one of them has to stay: try each
        forced = drop.copy()
        forced[layer] = np.inf
        found.append(cheapest_mask(rules, keep, forced, n_kept))
    return _cheapest_of(found, keep, drop)


def _cheapest_ending(rules: list[Rule], keep: Floats, drop: Floats, n_kept: int | None, last: Masks) -> Masks | None:
    """The cheapest mask whose last kept layer is one of `last` (`bool[L]`): try each."""
    found = []
    for layer in np.flatnonzero(last)[::-1]:  # the later ones first: of equal costs earlier layers go
        kept_cost, forced = keep.copy(), drop.copy()
        forced[layer], kept_cost[layer + 1 :] = np.inf, np.inf
        found.append(cheapest_mask(rules, kept_cost, forced, n_kept))
    return _cheapest_of(found, keep, drop)


def _cheapest_of(found: Sequence[Masks | None], keep: Floats, drop: Floats) -> Masks | None:
    """The mask of least cost, None where there is none. Of equal costs it is one that keeps more, the first of them."""
    masks = [mask for mask in found if mask is not None]
    return min(masks, key=lambda mask: (float(keep[mask].sum() + drop[~mask].sum()), -int(mask.sum())), default=None)


def _advice(config: PretrainedConfig, mask: Masks) -> str:
    """The end of an error: the nearest exportable mask, of the same number of layers if there is one."""
    count = int(mask.sum())
    nearest = nearest_exportable(config, mask, count) if count else None
    nearest = nearest_exportable(config, mask) if nearest is None else nearest
    if nearest is None:
        return ""
    removed = np.flatnonzero(~nearest).tolist()
    return f"; the nearest mask that can be exported removes {removed or 'none'}"


def _check_width(array: np.ndarray[Any, Any], dtype: type[np.generic], n_layers: int, what: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (n_layers,):
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise RequestError(f"{what} must be {np.dtype(dtype).name}[{n_layers}], one element per layer, got {got}")

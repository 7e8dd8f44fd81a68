"""A pruned model as a MergeKit recipe: passthrough slices of the base model. Imports no torch.

    merge_method: passthrough
    slices:
    - sources:
      - model: ORG/NAME
        layer_range: [0, 13]      # 13 is not in it
    - sources:
      - model: ORG/NAME
        layer_range: [19, 30]

MergeKit writes the base's config with another number of layers and changes no other field. So a recipe is refused for
a model whose config says more about single layers than one rule for all of them. The base's own config is looked at
too, where it is a folder or in the hub's cache.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.changed import changes
from layercoop_fast.export.config import INDICES, LISTS, PREFIXES, RULES
from layercoop_fast.export.hosts import text_part
from layercoop_fast.files import RECORD, written_whole
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.text import as_saved, read_json
from layercoop_fast.masks.halves import PARTS
from layercoop_fast.masks.text import removed_of

_DTYPES = ("float32", "float16", "bfloat16")
_NOTE = """\
# MergeKit sets the number of layers alone. If the base's config.json lists `layer_types`, cut that list to {} elements
# in what MergeKit writes: transformers takes no list of another length.
"""


def write_passthrough(folder: Path, out: Path, *, base_model: str | None = None, force: bool = False) -> list[int]:
    """Write the recipe that makes the pruned model in `folder` of its base, and return the kept layers, ascending.

    Args:
        folder: that `prune` wrote.
        out: the YAML file to write.
        base_model: folder or hub name of the base; by default the one that was pruned.
        force: replace `out` if it exists.

    Raises `RequestError` where the folder holds no record, a layer lost a half only, the config has fields that
    MergeKit would leave as they are, or weights were changed by a repair, by healing or in 4 bits.
    """
    removed, n_layers = removed_of(folder, "the recipe")
    whole = {layer for layer, _ in removed}
    if len(removed) != len(PARTS) * len(whole):
        part = next(
            f"{layer}.{part}" for layer, part in sorted(removed) if not {(layer, one) for one in PARTS} <= removed
        )
        raise RequestError(f"MergeKit copies whole layers, and of this model half a layer was removed ({part})")
    record = read_json(folder / RECORD)
    with as_saved(folder / RECORD):
        base = str(record["model"]) if base_model is None else base_model
        if changed := changes(record):
            raise RequestError(
                f"MergeKit copies weights of the base, and {' and '.join(changed)} changed those of this model: "
                "give one that was only pruned"
            )
    config = read_json(folder / "config.json")
    with as_saved(folder / "config.json"):
        _check_config(text_part(config), _config_of(base))
        dtype = config.get("dtype") or config.get("torch_dtype")
    kept = [layer for layer in range(n_layers) if layer not in whole]
    text = passthrough(kept, base, dtype if dtype in _DTYPES else None)
    if text_part(config).get("layer_types"):
        text = _NOTE.format(len(kept)) + text
    if kept_of(text) != kept:
        raise RunError(f"the recipe does not expand to the layers {kept}: nothing was written")
    with written_whole(out, force=force) as place:
        place.write_text(text, encoding="utf-8")
    return kept


def passthrough(kept: Sequence[int], base: str, dtype: str | None = None) -> str:
    """The recipe, as YAML: one slice for each run of the layers `kept` (ascending) of the model `base`.

    Without `dtype` MergeKit keeps the base's own.
    """
    slices: list[list[int]] = []
    for layer in kept:
        if slices and layer == slices[-1][1]:
            slices[-1][1] = layer + 1
        else:
            slices.append([layer, layer + 1])
    import yaml  # comes with huggingface_hub

    name = yaml.safe_dump(base, default_style='"', width=sys.maxsize).strip()
    lines = ["merge_method: passthrough", *([f"dtype: {dtype}"] if dtype else []), "slices:"]
    for first, end in slices:
        lines += ["- sources:", f"  - model: {name}", f"    layer_range: [{first}, {end}]"]
    return "\n".join([*lines, ""])


def kept_of(text: str) -> list[int]:
    """The layers that a passthrough recipe of one model takes, in their order.

    Raises `RequestError` for a recipe that is something else.
    """
    import yaml  # comes with huggingface_hub

    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"the recipe is not YAML: {' '.join(str(error).split())}") from error
    with as_saved("the recipe", "it is not a passthrough of slices of one model"):
        if recipe["merge_method"] != "passthrough":
            raise ValueError(recipe["merge_method"])
        sources = [source for (source,) in (one["sources"] for one in recipe["slices"])]
        if len({source["model"] for source in sources}) != 1:
            raise ValueError("several models")
        ranges = [source["layer_range"] for source in sources]
        if not all(len(pair) == 2 and 0 <= pair[0] < pair[1] <= MAX_PLAYERS for pair in ranges):
            raise ValueError(ranges)
        return [layer for first, end in ranges for layer in range(first, end)]


def _config_of(base: str) -> Mapping[str, Any] | None:
    """The part about the language model of the base's config; None where that is not on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    place = os.path.join(base, "config.json")
    if not os.path.isfile(place):
        try:
            found = try_to_load_from_cache(base, "config.json")
        except HFValidationError:  # the path of a folder that is gone
            return None
        if not isinstance(found, str):
            return None
        place = found
    with as_saved(place):
        return text_part(read_json(Path(place)))


def _check_config(text: Mapping[str, Any], base: Mapping[str, Any] | None) -> None:
    """Raise `RequestError` where a field tells layers apart, which MergeKit would not renumber.

    `text` is of the pruned model, `base` of its base, where that is at hand.
    """
    for config in (text, base or {}):
        for name, value in config.items():
            kinds = {json.dumps(one) for one in value} if isinstance(value, list) else set()
            counted = name in PREFIXES and name != "max_window_layers" and value
            if (name in LISTS and len(kinds) > 1) or (name in INDICES and kinds) or counted:
                raise RequestError(f"MergeKit would not renumber `{name}` of the config, which tells layers apart")
    for name in RULES:
        if base is None and text.get(name) is not None:
            raise RequestError(
                f"MergeKit would not renumber `{name}` of the base's config, which is not on this machine to be "
                "compared: give the base's folder as base_model="
            )
        if base is not None and (text.get(name) or None) != (base.get(name) or None):
            raise RequestError(f"MergeKit would keep `{name}` of the base's config, and the pruned model has another")

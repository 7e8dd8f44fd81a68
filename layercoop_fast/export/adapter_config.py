"""Names of modules of the full model in a pruned one, and the config of a LoRA adapter after a renumbering.

Patterns are matched as peft matches them: `peft/utils/other.py:get_pattern_key`,
`peft/tuners/tuners_utils.py:check_target_module_exists`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layercoop_fast.errors import RequestError

ROOT = "base_model.model."
_MOST_PATTERNS, _LONGEST_PATTERN = 4096, 300
# What follows a module's name in a tensor's name: peft/utils/save_and_load.py.
_PARTS = re.compile(
    r"(.+?)\.(lora_[AB]\.weight|lora_[AB]\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?|"
    r"(?:base_layer\.)?(?:weight|bias))"
)


@dataclass(frozen=True)
class Names:
    """Names of modules and tensors of the full model, and what they are called in the pruned one.

    Attributes:
        prefix: of the blocks, such as "model.layers.".
        number: the new number of each kept layer.
        n_layers: of the full model.
    """

    prefix: str
    number: Mapping[int, int]
    n_layers: int

    def layer(self, name: str) -> int | None:
        """The number of the layer that a name is in; None outside the layers."""
        if not name.startswith(self.prefix):
            return None
        digits = name[len(self.prefix) :].split(".", 1)[0]
        return int(digits) if digits.isdecimal() and len(digits) < 7 else None

    def renamed(self, name: str) -> str | None:
        """The name in the pruned model; None for one of a removed layer."""
        layer = self.layer(name)
        if layer is None:
            return name
        if layer not in self.number:
            return None
        rest = name[len(self.prefix) :].split(".", 1)[1]
        return f"{self.prefix}{self.number[layer]}.{rest}"


def module_of(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    match = _PARTS.fullmatch(name.removeprefix(ROOT))
    if match is None:
        raise RequestError(f"the adapter has a tensor {name!r}, whose module cannot be told")
    return match[1]


def rewritten(config: Mapping[str, Any], names: Names, tensors: Iterable[str], base: str) -> dict[str, Any]:
    """The config of the renumbered adapter of the model `base`, from the old one and the names of its tensors.

    Raises `RequestError` for patterns that do not fit the model.
    """
    modules = sorted({module_of(name) for name in tensors if ".lora_" in name})
    left = {old: new for old in modules if (new := names.renamed(old)) is not None}
    written = {**config, "base_model_name_or_path": base, "revision": None}
    if config.get("layers_to_transform") is not None:
        _check_pattern(config.get("layers_pattern"), names)
    # Modules, ranks and alphas are named one by one where the config tells layers apart.
    if (
        config.get("layers_to_transform") is not None
        or _numbered(config.get("target_modules"))
        or _numbered(config.get("exclude_modules"))
    ):
        written.update(target_modules=list(left.values()), exclude_modules=None)
        written.update(layers_to_transform=None, layers_pattern=None)
    for key, default in (("rank_pattern", config.get("r")), ("alpha_pattern", config.get("lora_alpha"))):
        patterns = _compiled(config.get(key) or {}, key)
        values = {new: next((v for one, v in patterns if one.match(old)), default) for old, new in left.items()}
        written[key] = {re.escape(new): value for new, value in values.items() if value != default}
    for key in ("modules_to_save", "target_parameters"):
        if isinstance(config.get(key), list):
            every = [names.renamed(str(each)) for each in config[key]]
            written[key] = [each for each in every if each is not None] or None
    return written


def _check_pattern(pattern: Any, names: Names) -> None:
    """Raise `RequestError` where an adapter counts layers of another list than the pruned model's blocks."""
    given = [pattern] if isinstance(pattern, str) else list(pattern or [])
    own = names.prefix.rstrip(".").rsplit(".", 1)[-1]
    if given and own not in given:
        raise RequestError(
            f"the adapter counts the layers of {' or '.join(map(repr, given))} (layers_pattern), and those of this "
            f"model are called {own!r}"
        )


def _numbered(value: Any) -> bool:
    """Whether target modules are a pattern, or name a layer by its number."""
    if isinstance(value, str):
        return value != "all-linear"
    return isinstance(value, list) and any(re.search(r"(^|\.)\d+(\.|$)", str(each)) for each in value)


def _compiled(patterns: Any, key: str) -> list[tuple[re.Pattern[str], Any]]:
    """Patterns over ends of module names, and their values, in the order in which peft tries them.

    They come from a file that is not trusted, and a pattern with repeats in repeats could be matched for ever.
    """
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS:
        raise RequestError(f"the adapter's {key} is no object of at most {_MOST_PATTERNS:,} patterns")
    found = []
    for pattern, value in patterns.items():
        if len(pattern) > _LONGEST_PATTERN or re.search(r"\)[*+{]", pattern) or len(re.findall("[*+{]", pattern)) > 3:
            raise RequestError(f"the adapter's {key} has a pattern that is too involved: {pattern[:80]!r}")
        try:
            found.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise RequestError(f"the adapter has {pattern!r}, which is no regular expression: {error}") from error
    return found

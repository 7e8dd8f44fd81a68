"""Finding the block list of a causal language model by its structure, without a table of names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from layercoop_fast.errors import RequestError


@dataclass(frozen=True)
class BlockList:
    """The blocks in order, and their `path` as in `model.get_submodule(path)`."""

    path: str
    blocks: tuple[nn.Module, ...]


def find_blocks(model: nn.Module, path: str | None = None) -> BlockList:
    """Find the blocks: the outermost `nn.ModuleList` with one module for each layer of the config.

    Of several such lists it is the one with most parameters. In a vision-language model only lists of the language
    model count.

    Args:
        model: any model.
        path: the dotted path of the list, for a structure that this rule does not fit.

    Raises `RequestError` where no list fits; it names the lists of the model and says how to choose one.
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    if path is not None:
        if path not in lists:
            raise RequestError(f"the model has no block list {path!r}; its module lists are {_described(lists)}")
        return BlockList(path, tuple(lists[path]))
    wanted = number_of_layers(getattr(model, "config", None))
    fitting = {name: blocks for name, blocks in lists.items() if wanted is None or len(blocks) == wanted}
    outermost = {
        name: blocks for name, blocks in fitting.items() if not any(name.startswith(other + ".") for other in fitting)
    }
    if not outermost:
        raise RequestError(
            f"no list of {wanted} blocks was found in {type(model).__name__}; "
            f"name the list with blocks=: the model's module lists are {_described(lists)}"
        )
    outermost = _of_decoder(model, outermost)
    chosen = max(outermost, key=lambda name: sum(parameter.numel() for parameter in outermost[name].parameters()))
    return BlockList(chosen, tuple(outermost[chosen]))


def _of_decoder(model: nn.Module, lists: dict[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    """The lists that are in the language model, where the model has an encoder of pictures as well."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if decoder is None or decoder is model:
        return lists
    inside = set(decoder.modules())
    return {name: blocks for name, blocks in lists.items() if blocks in inside} or lists


def number_of_layers(config: PretrainedConfig | None) -> int | None:
    """The number of layers that a config states (of its text part, where it has several), or None."""
    if config is None:
        return None
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    return None if count is None else int(count)


def _described(lists: dict[str, nn.ModuleList]) -> str:
    return ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"

"""Which layers of a language model can go? Layer pruning as a cooperative game, at the speed of the hardware.

The names below are the public ones. They are imported when first used: `import layercoop_fast` loads neither torch nor
transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from layercoop_fast._version import __version__ as __version__

if TYPE_CHECKING:
    from layercoop_fast.comparing.compare import compare as compare
    from layercoop_fast.engine.skeleton import Skeleton as Skeleton
    from layercoop_fast.errors import LayercoopError as LayercoopError
    from layercoop_fast.errors import RequestError as RequestError
    from layercoop_fast.errors import RunError as RunError
    from layercoop_fast.export.checkpoint import export_checkpoint as export_checkpoint
    from layercoop_fast.game.item_utility import ChoiceUtility as ChoiceUtility
    from layercoop_fast.game.item_utility import choice_utility as choice_utility
    from layercoop_fast.game.model_game import ModelGame as ModelGame
    from layercoop_fast.game.pairwise import PairwiseGame as PairwiseGame
    from layercoop_fast.game.worths import Worths as Worths
    from layercoop_fast.healing.heal import heal as heal
    from layercoop_fast.masks.samplers import get_sampler as get_sampler
    from layercoop_fast.masks.stratified import stratified_masks as stratified_masks
    from layercoop_fast.pruning.prune import prune as prune
    from layercoop_fast.repair.fit import fit_repair as fit_repair
    from layercoop_fast.repair.fit import repaired_worth as repaired_worth
    from layercoop_fast.runtime.draft import find_draft as find_draft
    from layercoop_fast.runtime.model import LayerSkipModel as LayerSkipModel
    from layercoop_fast.runtime.options import Sampling as Sampling
    from layercoop_fast.search.best_masks import best_masks as best_masks
    from layercoop_fast.shapley.by_size import size_values as size_values
    from layercoop_fast.shapley.control import Control as Control
    from layercoop_fast.shapley.enumeration import enumerate_masks as enumerate_masks
    from layercoop_fast.shapley.exact import exact_shapley as exact_shapley
    from layercoop_fast.shapley.permutation import shapley_values as shapley_values
    from layercoop_fast.shapley.regression import kernel_shap as kernel_shap
    from layercoop_fast.shapley.stratified import stratified_marginals as stratified_marginals
    from layercoop_fast.surrogate.published import PublishedSurrogate as PublishedSurrogate
    from layercoop_fast.surrogate.ridge import RidgeSurrogate as RidgeSurrogate
    from layercoop_fast.surrogate.surrogate import Surrogate as Surrogate
    from layercoop_fast.texts.calibration import Calibration as Calibration
    from layercoop_fast.texts.calibration import image_text as image_text
    from layercoop_fast.texts.items import Items as Items

    Choices = Items  # the name before 0.2

_HOME = {
    "Calibration": "texts.calibration",
    "image_text": "texts.calibration",
    "ChoiceUtility": "game.item_utility",
    "Items": "texts.items",
    "Choices": "texts.items",
    "Control": "shapley.control",
    "LayerSkipModel": "runtime.model",
    "LayercoopError": "errors",
    "ModelGame": "game.model_game",
    "PairwiseGame": "game.pairwise",
    "PublishedSurrogate": "surrogate.published",
    "RequestError": "errors",
    "RidgeSurrogate": "surrogate.ridge",
    "RunError": "errors",
    "Sampling": "runtime.options",
    "Skeleton": "engine.skeleton",
    "Surrogate": "surrogate.surrogate",
    "Worths": "game.worths",
    "best_masks": "search.best_masks",
    "choice_utility": "game.item_utility",
    "compare": "comparing.compare",
    "enumerate_masks": "shapley.enumeration",
    "exact_shapley": "shapley.exact",
    "export_checkpoint": "export.checkpoint",
    "find_draft": "runtime.draft",
    "fit_repair": "repair.fit",
    "get_sampler": "masks.samplers",
    "heal": "healing.heal",
    "kernel_shap": "shapley.regression",
    "prune": "pruning.prune",
    "repaired_worth": "repair.fit",
    "shapley_values": "shapley.permutation",
    "size_values": "shapley.by_size",
    "stratified_marginals": "shapley.stratified",
    "stratified_masks": "masks.stratified",
}
# Names of earlier versions, and the names of their definitions today.
_RENAMED = {"Choices": "Items"}
__all__ = ["__version__", *sorted(_HOME)]

# transformers imports torchao wherever it is installed. torchao then warns about GPU libraries that it cannot load and
# about deprecated functions of torch that it calls: a user who runs a model without torchao can do nothing about that.
for _name in ("torchao", "torch.utils._pytree"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return __all__

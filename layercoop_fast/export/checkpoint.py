"""Writing the pruned model as a plain Hugging Face checkpoint.

The new model is built from the rewritten config on the meta device and gets the original's own tensors. Every new block
is compared with the original block that it replaces, and every tensor must be used, so that a config that does not mean
the same as the mask is found before anything is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layercoop_fast.engine.first_block import only_in_first
from layercoop_fast.engine.loading import SPREAD, quiet_transformers
from layercoop_fast.engine.quantised import protect_scales
from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.engine.streamed import StreamedBlocks
from layercoop_fast.errors import RequestError, RunError
from layercoop_fast.export.carried import LICENSE_FILES, PROCESSOR_FILES, copy_own, drop_foreign_templates
from layercoop_fast.export.config import INVERSE_LAYER_SCALE, layer_count, prune_config
from layercoop_fast.export.proof import NoRoom, Written, masked_reference, probe_ids
from layercoop_fast.export.quantised import checkpoint_folder, graft_quantised, is_copied, stored_tensors
from layercoop_fast.export.streaming import save_weights
from layercoop_fast.files import reason, written_whole
from layercoop_fast.masked.players import make_players

T = TypeVar("T")

_PLACES = frozenset({"layer_idx", "layer_id", "layer_number", "attention_layers"})
"""Attributes that hold a block's place in the model (GPT-Neo's blocks hold the list of the kinds of all layers)."""


def export_checkpoint(
    model: PreTrainedModel,
    kept: Sequence[int],
    out: str | Path,
    *,
    blocks_path: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
    zeroed: Mapping[int, Sequence[str]] | None = None,
    replaced: Mapping[str, Tensor] | None = None,
    finish: Callable[[Path], Mapping[str, bytes | str]] | None = None,
    max_shard_size: int | str = "5GB",
    streamed: StreamedBlocks | None = None,
    verify: bool = True,
) -> None:
    """Write the folder `out`: the model with only the blocks `kept`, for plain `AutoModelForCausalLM.from_pretrained`.

    Weights are not copied in memory, except for the proof: the folder is opened again by plain transformers and
    compared with the masked pass before it is renamed to `out` (`export/proof.py`). It appears as a whole or not at
    all; `model` is unchanged.

    Args:
        model: the original model, its blocks in place.
        kept: ascending numbers of the blocks to keep, at least one.
        out: the folder to write.
        blocks_path: dotted path of the block list in `model`, such as "model.layers" (`Skeleton.blocks_path`).
        tokenizer: saved with the weights, including its chat template, where given.
        force: replace `out` if it exists; the old folder is removed only when the new one is complete.
        zeroed: for a kept block (by its original number) the names of parameters, within the block, that are written as
            zeros: a sublayer whose output projection is zero adds nothing. The size stays the same, since transformers
            can leave out whole blocks only.
        replaced: new values of parameters of kept blocks, of any shapes [...], by their names in the original's state
            dict (those of a repair).
        finish: called with the temporary folder once a model can be loaded from it, for instance to measure it; the
            files it returns by plain name (`str` becomes UTF-8) are added.
        max_shard_size: the size in bytes above which weights are split over several files.
        streamed: the matrices of the blocks, where those of `model` are read from files. Then tensors are written one
            by one, with no more than two blocks in memory, and two more for the comparison.
        verify: compare the folder with the masked pass. Where the written model evidently does not fit into memory
            together with the original, a warning says that it was not compared.

    Raises `RequestError` where `out` exists or cannot be a folder, or `kept` is malformed or has no plain config;
    `RunError` where the pruned model would not be the same computation, differs when it is opened again, or cannot be
    written. Exceptions of `finish` are passed on. Nothing is left behind after an error.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> from layercoop_fast import export_checkpoint
        >>> model = AutoModelForCausalLM.from_pretrained("my-model")
        >>> export_checkpoint(model, [0, 1, 3], "smaller", blocks_path="model.layers")
        >>> AutoModelForCausalLM.from_pretrained("smaller").config.num_hidden_layers
        3
    """
    protect_scales(model)
    with written_whole(Path(out), folder=True, force=force) as folder:
        if streamed is not None:
            streamed.release()
        pruned = pruned_model(model, kept, blocks_path, zeroed, replaced)
        if streamed is None:
            state = None
            if is_copied(model):
                pruned.hf_quantizer = None  # it would write the tensors in memory instead of these
                stored = stored_tensors(model, blocks_path)
                state = _renumbered(stored, kept, f"{blocks_path}.", _embedding_norms(_blocks(model, blocks_path)))
            _save(pruned, model, tokenizer, folder, max_shard_size, state)
        else:
            _save(pruned, model, tokenizer, folder, max_shard_size, {})
            value = _streamed_values(pruned, model, kept, blocks_path, zeroed or {}, streamed)
            save_weights(folder, pruned.state_dict(), value, max_shard_size, pruned.num_parameters())
        del pruned
        if verify:
            _verify(model, folder, kept, blocks_path, zeroed or {}, replaced or {}, streamed)
        for name, content in (finish(folder) if finish else {}).items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _verify(
    model: PreTrainedModel,
    folder: Path,
    kept: Sequence[int],
    blocks_path: str,
    zeroed: Mapping[int, Sequence[str]],
    replaced: Mapping[str, Tensor],
    streamed: StreamedBlocks | None,
) -> None:
    """Compare a written folder with the masked pass. Raises `RunError` where they differ."""
    skeleton = Skeleton(model, blocks_path, streamed)
    changed: dict[int, dict[str, Tensor | None]] = {layer: dict.fromkeys(names) for layer, names in zeroed.items()}
    for name, value in replaced.items():
        layer, within = name.removeprefix(f"{blocks_path}.").split(".", 1)
        changed.setdefault(int(layer), {})[within] = value
    reference = masked_reference(
        make_players("layers", skeleton),
        kept,
        probe_ids(skeleton),
        rounded=is_folded(model),
        inside=lambda layer: _in_place(skeleton.block(layer), changed.get(layer, {})),
    )
    try:
        opened = Written.open(
            folder,
            device=SPREAD if len(set(getattr(model, "hf_device_map", {}).values())) > 1 else str(model.device),
            trust_remote_code=type(model).__module__.startswith("transformers_modules."),
            offload=streamed is not None,
        )
        reference.check(opened)
    except NoRoom as full:
        warnings.warn(f"the written checkpoint was not compared with the masked pass: {full}", stacklevel=3)


@contextmanager
def _in_place(block: nn.Module, values: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Within the `with` block these parameters of a model's block have other values; None means zeros."""
    parameters = {name: block.get_parameter(name) for name in values}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            value = values[name]
            parameter.data = torch.zeros_like(before[name]) if value is None else value.to(before[name])
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def _save(
    pruned: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    max_shard_size: int | str,
    state: Mapping[str, Tensor] | None,
) -> None:
    """Write all files that `from_pretrained` reads, with the model's own weights or, where given, those of `state`."""
    try:
        with quiet_transformers():
            pruned.save_pretrained(
                folder,
                max_shard_size=max_shard_size,
                state_dict=None if state is None else dict(state),
                save_original_format=state is None,  # the names of `state` are those of the files already
            )
        if model.can_generate():
            # Unchanged, even where the installed transformers would reject it as invalid and refuse to save it.
            model.generation_config.to_json_file(folder / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if source := checkpoint_folder(model):
            copy_own(source, folder, PROCESSOR_FILES + LICENSE_FILES)
            drop_foreign_templates(source, folder)
    except (SafetensorError, ValueError) as error:  # a full disk, and a config that transformers refuses
        raise RunError(f"the checkpoint was not written: {reason(error)}") from error


def pruned_model(
    model: PreTrainedModel,
    kept: Sequence[int],
    blocks_path: str,
    zeroed: Mapping[int, Sequence[str]] | None = None,
    replaced: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Return a model of the blocks `kept` that shares the tensors of `model`; it can be saved, but not run.

    Buffers that a checkpoint does not hold (such as rotary frequencies) stay on the meta device, and so do matrices
    that `model` streams. `zeroed` and `replaced` (tensors of any shapes [...]) are as of `export_checkpoint`, and it
    raises the same errors.
    """
    blocks = _blocks(model, blocks_path)
    if len(blocks) != layer_count(model.config):
        raise RunError(f"the config counts {layer_count(model.config)} layers, but {blocks_path} holds {len(blocks)}")
    config = prune_config(model.config, kept)
    folded = is_folded(model)
    changing = _PLACES | {INVERSE_LAYER_SCALE, "scaling"} if folded else _PLACES  # GPT-2's `scaling` holds the factor
    with torch.device("meta"):
        pruned = type(model)(config).eval()
    new_blocks = _blocks(pruned, blocks_path)
    if len(new_blocks) != len(kept):
        raise RunError(f"the pruned config builds {len(new_blocks)} blocks where {len(kept)} are kept")
    quantised = graft_quantised(pruned, model, kept, f"{blocks_path}.")
    if quantised and (zeroed or replaced):
        raise RequestError(
            "halves of blocks and repairs need new weights, which is not possible in this quantised model: prune whole "
            "layers, without repair="
        )
    for new, old in enumerate(kept):
        in_first = _embedding_norms(blocks) if new == 0 else []
        if difference := _difference(new_blocks[new], blocks[old], changing, in_first):
            raise RunError(f"block {old} cannot become block {new} of a plain checkpoint: {difference}")
    tensors = _renumbered({**model.state_dict(), **(replaced or {})}, kept, f"{blocks_path}.", _embedding_norms(blocks))
    if folded:
        _fold_inverse_layer_scale(tensors, kept, f"{blocks_path}.")
    for old, names in (zeroed or {}).items():
        for name in names:
            key = f"{blocks_path}.{list(kept).index(old)}.{name}"
            tensors[key] = torch.zeros_like(tensors[key])
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(quantised)}
    try:
        missing, unexpected = pruned.load_state_dict(plain, strict=not quantised, assign=True)
    except RuntimeError as error:
        raise RunError(f"the original's weights do not fit the pruned config: {reason(error)}") from error
    if odd := [name for name in (*missing, *unexpected) if not name.startswith(quantised)]:
        raise RunError(f"the original's weights do not fit the pruned config: {odd[0]} is in only one of them")
    return pruned


def is_folded(model: PreTrainedModel) -> bool:
    """Whether attention scores are divided by the number of the block, which is folded into weights (GPT-2)."""
    return bool(getattr(model.config.get_text_config(decoder=True), INVERSE_LAYER_SCALE, False))


def _streamed_values(
    pruned: PreTrainedModel,
    model: PreTrainedModel,
    kept: Sequence[int],
    blocks_path: str,
    zeroed: Mapping[int, Sequence[str]],
    streamed: StreamedBlocks,
) -> Callable[[str], Tensor]:
    """A function from a name of the pruned model to its tensor, which is read when it is called if it is streamed."""
    resident: dict[str, Tensor] = pruned.state_dict()
    prefix = f"{blocks_path}."
    original = _renumbered(
        {name: name for name in model.state_dict()}, kept, prefix, _embedding_norms(_blocks(model, blocks_path))
    )
    number = dict(enumerate(kept))
    zeros = {f"{prefix}{list(kept).index(old)}.{name}" for old, names in zeroed.items() for name in names}

    def value(name: str) -> Tensor:
        if not resident[name].is_meta:
            return resident[name]  # zeroed and folded already
        tensor = streamed.tensor(original[name])
        assert tensor is not None
        if name in zeros:
            return torch.zeros_like(tensor)
        if is_folded(model):
            new = int(name[len(prefix) :].split(".", 1)[0])
            tensors = {name: tensor}
            _fold_inverse_layer_scale(tensors, [number[new]], prefix, first=new)
            return tensors[name]
        return tensor

    return value


def _blocks(model: PreTrainedModel, blocks_path: str) -> nn.ModuleList:
    try:
        blocks = model.get_submodule(blocks_path)
    except AttributeError as error:
        raise RequestError(f"{type(model).__name__} has no module {blocks_path!r}") from error
    if not isinstance(blocks, nn.ModuleList):
        raise RequestError(f"{blocks_path!r} is not a list of blocks but a {type(blocks).__name__}")
    return blocks


def _embedding_norms(blocks: nn.ModuleList) -> list[str]:
    """Names of norms of the embedding: children that only the first block has, also in every pruned model."""
    return [
        name for name in only_in_first(list(blocks)) if "norm" in type(blocks[0].get_submodule(name)).__name__.lower()
    ]


def _renumbered(
    tensors: Mapping[str, T], kept: Sequence[int], prefix: str, in_first: Sequence[str] = ()
) -> dict[str, T]:
    """The tensors (or other values) of the kept blocks under their new names, and all outside the blocks.

    Those of the children `in_first` of block 0 stay in block 0, whichever block that is now.
    """
    new_of = {old: new for new, old in enumerate(kept)}
    renumbered = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            renumbered[name] = tensor
            continue
        number, rest = name[len(prefix) :].split(".", 1)
        if rest.split(".", 1)[0] in in_first:
            renumbered[name] = tensor
        elif int(number) in new_of:
            renumbered[f"{prefix}{new_of[int(number)]}.{rest}"] = tensor
    return renumbered


def _fold_inverse_layer_scale(tensors: dict[str, Tensor], kept: Sequence[int], prefix: str, first: int = 0) -> None:
    """Divide the query weights of each block by its original number + 1, instead of its attention scores (GPT-2).

    The original blocks `kept` have the numbers from `first` on in `tensors`; names that are missing are skipped.

    It is exact where the divisor is a power of two, else to one rounding of the query weights. `tensors` gets new
    tensors (weight [H, 3H], bias [3H], queries first); the original's are unchanged.
    """
    for new, old in enumerate(kept, first):
        for kind in ("weight", "bias"):
            name = f"{prefix}{new}.attn.c_attn.{kind}"
            if name not in tensors:
                continue
            folded = tensors[name].clone()
            folded[..., : folded.shape[-1] // 3] /= old + 1
            tensors[name] = folded


def _difference(new: nn.Module, old: nn.Module, ignored: frozenset[str], in_first: Sequence[str] = ()) -> str | None:
    """The first difference between the blocks `new` and `old`: in modules, shapes of tensors or plain attributes.

    None where there is none. The children `in_first`, which belong to the first block whatever it was, are skipped.
    """
    new_modules, old_modules = (
        {name: part for name, part in block.named_modules() if name.split(".", 1)[0] not in in_first}
        for block in (new, old)
    )
    if names := new_modules.keys() ^ old_modules.keys():
        return f"only one of the two has the module {min(names)!r}"
    for name, module in new_modules.items():
        original = old_modules[name]
        where = f"{name}." if name else ""
        if type(module) is not type(original):
            return f"{name or 'the block'} is a {type(original).__name__}, and would be a {type(module).__name__}"
        shapes, original_shapes = _shapes(module), _shapes(original)
        for tensor in sorted(shapes.keys() | original_shapes.keys()):
            if shapes.get(tensor) != original_shapes.get(tensor):
                return f"{where}{tensor} is {original_shapes.get(tensor)}, and would be {shapes.get(tensor)}"
        for attribute, value in vars(module).items():
            # `training` is a mode, and what begins with an underscore is torch's or a library's own bookkeeping.
            if attribute in ignored or attribute == "training" or attribute.startswith("_") or not _is_plain(value):
                continue
            if (theirs := getattr(original, attribute, None)) != value:
                return f"{where}{attribute} is {theirs!r}, and would be {value!r}"
    return None


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: list(tensor.shape) for name, tensor in own}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

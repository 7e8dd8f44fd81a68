"""Opening a checkpoint, with one clear line for everything that can be wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from layercoop_fast.engine.offload import Offloaded, open_offloaded
from layercoop_fast.engine.quantised import check_library
from layercoop_fast.engine.streamed import StreamedBlocks
from layercoop_fast.engine.structure import number_of_layers
from layercoop_fast.engine.weight_files import INDEX, WEIGHTS, files_of
from layercoop_fast.errors import LayercoopError, RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.bounds import MAX_PLAYERS
from layercoop_fast.inputs.libraries import first_line, library_reads
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import as_saved, is_flat, read_json

DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


SPREAD = "auto"
"""The name of the device that means all GPUs together."""

# Held while a model is made. transformers (and offload.py) then replace methods of classes that all threads share. If
# two threads did so at once, the last to finish would restore the replacement of the other one, and no model of the
# process would have its weights tied from then on.
_LOADING = threading.RLock()
_NUMBERED = re.compile(r".*?\.\d+\.")
_JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_PROBE = "A b, 1."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements summed at once: torch first converts them to 64 bits, which takes memory.
_SUMMED = 2**18


@dataclass(frozen=True)
class Checkpoint:
    """An opened model.

    Attributes:
        model: in evaluation mode.
        tokenizer: None where the folder has none.
        name: folder or hub name that it was opened by.
        streamed: the matrices of its blocks, where they are read from the files block by block.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    streamed: StreamedBlocks | None = None


def open_checkpoint(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    offload: bool = False,
    blocks: str | None = None,
) -> Checkpoint:
    """Open a causal language model from a folder (or a hub name, where one is reachable).

    Args:
        name: folder with `config.json` and safetensors weights, or a name of a hub.
        dtype: "auto" keeps the checkpoint's own.
        device: any torch device, "cpu" or "cuda:1" for example; "auto" spreads the model over all GPUs, by
            accelerate's device map.
        trust_remote_code: run Python code from the checkpoint; never done unless requested.
        offload: leave the matrices of the blocks in the files and read them when a block is used
            (`engine/offload.py`); on the CPU only.
        blocks: with `offload`, dotted path of the block list where it is not found by itself.

    Raises `RequestError` in one line.
    """
    target = _check_spread() if device == SPREAD else check_device(device)
    wanted = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype)
    if wanted is None:
        raise RequestError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    _check_folder(name)
    if offload and target.type != "cpu":
        raise RequestError(f"offload= reads blocks for the CPU, not for {device}: leave out offload= or device=")
    if offload and not Path(name).is_dir():
        raise RequestError(f"{name} is not a folder: with offload= weights are read from a checkpoint folder")
    _check_weights(name)
    with quiet_transformers():
        config = _causal_config(name, trust_remote_code)
        with as_saved(f"{name}/config.json"):
            check_library(name, config)
        if offload and sees_pictures(config):
            raise RequestError(f"{name} is a vision-language model, which offload= cannot read: leave out offload=")
        if offload:
            opened = _open_offloaded(name, config, wanted, blocks, trust_remote_code)
            _refuse_blocks_beyond(name, opened.unexpected, opened.model)
            return Checkpoint(opened.model, _load_tokenizer(name, trust_remote_code), name, opened.blocks)
        model = _load(name, config, wanted, trust_remote_code, SPREAD if device == SPREAD else None)
    if device == SPREAD:
        _check_placed(model)
    else:
        model = model.to(target)
    return Checkpoint(model.eval(), _load_tokenizer(name, trust_remote_code), name)


def model_on_meta(name: str) -> PreTrainedModel:
    """The model of a checkpoint folder without its weights: modules and shapes, on the meta device.

    Raises `RequestError` in one line, as `open_checkpoint` does.
    """
    _check_folder(name)
    with quiet_transformers():
        config = _causal_config(name, False)
        opener = AutoModelForImageTextToText if sees_pictures(config) else AutoModelForCausalLM
        with library_reads(name), torch.device("meta"):
            model: PreTrainedModel = opener.from_config(config)
    return model


def _load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None where there is none, which is an error only once text has to be tokenised."""
    try:
        with library_reads(name, "the tokenizer of "):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                name, trust_remote_code=trust_remote_code
            )
            # A file may be read and still not work: this shows it here, not in the middle of a text.
            tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    except RequestError:
        if any((Path(name) / file).exists() for file in _TOKENIZER_FILES):
            raise
        return None
    return tokenizer


def _causal_config(name: str, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a folder or hub name; `RequestError` unless it is a causal language model of an accepted depth."""
    with library_reads(name):
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        except ValueError as error:
            if "does not recognize this architecture" in str(error):
                raise RequestError(
                    f"{name} is of an architecture that transformers {transformers.__version__} does not know: if the "
                    "checkpoint contains its own code, pass trust_remote_code=True; else a newer transformers may know "
                    "it"
                ) from error
            raise
    with as_saved(f"{name}/config.json"):
        layers = number_of_layers(config)
        if layers is not None and not 1 <= layers <= MAX_PLAYERS:
            raise RequestError(f"{name} states {layers} layers: models of 1 to {MAX_PLAYERS:,} layers are opened")
        return _causal(name, config)


def _causal(name: str, config: PretrainedConfig) -> PretrainedConfig:
    """The config; `RequestError` unless it is that of a causal language model."""
    if sees_pictures(config):
        return config
    if getattr(config, "is_encoder_decoder", False):
        raise RequestError(
            f"{name} is an encoder-decoder model ({config.model_type}): only causal (decoder-only) models are opened"
        )
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if not known or not _says_causal(config.architectures):
        raise RequestError(
            f"{name} is not a causal language model ({config.model_type}, {config.architectures}): "
            "a checkpoint with a language-model head is needed"
        )
    return config


def sees_pictures(config: PretrainedConfig) -> bool:
    """Whether a config is that of a vision-language model: a language model that reads pictures as tokens."""
    return (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and not getattr(config.get_text_config(decoder=True), "is_encoder_decoder", False)
        and any(name.endswith("ForConditionalGeneration") for name in config.architectures or ())
    )


def _open_offloaded(
    name: str, config: PretrainedConfig, dtype: str | torch.dtype, blocks: str | None, trust_remote_code: bool
) -> Offloaded:
    """The model without the matrices of its blocks."""
    try:
        return open_offloaded(name, config, dtype, mark=_mark, blocks=blocks, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        if "allocate memory" in str(error):
            raise RequestError(
                f"{name} needs more memory than there is, even with offload=: the parts outside the blocks (embedding "
                "and head) and two blocks must fit"
            ) from error
        if isinstance(error, LayercoopError):
            raise
        raise RequestError(f"{name} cannot be opened: {first_line(error)}") from error


def _load(
    name: str,
    config: PretrainedConfig,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The whole model of a folder or hub name."""
    opener = AutoModelForImageTextToText if sees_pictures(config) else AutoModelForCausalLM
    with library_reads(name):
        try:
            model, loaded = opener.from_pretrained(
                name,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                use_safetensors=True,
                device_map=device_map,
            )
        except SafetensorError as error:
            raise RequestError(
                f"{name} has a damaged safetensors file ({reason(error)}): fetch or copy it again"
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" in str(error):
                raise RequestError(f"{name}: its weights do not have the shapes that its config calls for") from error
            raise
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        if _leaves_out_halves(config):
            raise RequestError(
                f"{name} leaves out parts of layers (per_layer_config with skip), which transformers "
                f"{transformers.__version__} builds all the same: it lacks {missing[0]}, ..."
            )
        raise RequestError(f"{name} lacks {len(missing)} weights of its config ({missing[0]}, ...): it is incomplete")
    _refuse_blocks_beyond(name, loaded["unexpected_keys"], model)
    opened: PreTrainedModel = model
    return opened


def _leaves_out_halves(config: PretrainedConfig) -> bool:
    """Whether a config has layers without some of their parts."""
    text = config.get_text_config(decoder=True)
    return getattr(text, "is_heterogeneous", False) and any(layer.skip for layer in text.per_layer_config)


def _refuse_blocks_beyond(name: str, unexpected: Collection[str], model: PreTrainedModel) -> None:
    if beyond := _blocks_beyond(unexpected, model.state_dict()):
        raise RequestError(
            f"{name} holds weights of more layers than its config states ({beyond}, ...): config and weights do not "
            "belong together"
        )


def _blocks_beyond(unexpected: Collection[str], known: Collection[str]) -> str | None:
    """An unexpected weight whose number is beyond the model's numbered modules; None where there is none."""
    parts = {match[0] for name in known if (match := _NUMBERED.match(name))}
    lists = {part.rstrip(".").rpartition(".")[0] for part in parts}
    for name in sorted(unexpected):
        match = _NUMBERED.match(name)
        if match and match[0] not in parts and match[0].rstrip(".").rpartition(".")[0] in lists:
            return name
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """One load at a time, without transformers' progress bars and reports: errors of this package replace them."""
    with _LOADING:
        bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


def _check_spread() -> torch.device:
    """The first GPU, where a model can be spread over all of them; `RequestError` where it cannot."""
    if torch.cuda.device_count() == 0:
        raise RequestError(f"device {SPREAD!r} spreads a model over the GPUs, and torch finds none here; use cpu")
    if find_spec("accelerate") is None:
        raise RequestError(f"device {SPREAD!r} needs accelerate: pip install 'layercoop-fast[spread]'")
    return torch.device("cuda:0")


def _check_placed(model: PreTrainedModel) -> None:
    """Raise `RequestError` unless all of a spread model lies on GPUs."""
    if {parameter.device.type for parameter in model.parameters()} != {"cuda"}:
        raise RequestError(
            f"the model is larger than the {torch.cuda.device_count()} GPUs together: with offload= it runs on the CPU"
        )


def check_device(device: str) -> torch.device:
    """The torch device of that name, if it is there; `RequestError` otherwise."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"unknown device {device!r}: cpu, cuda, cuda:N or auto") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device {device!r} does not exist: torch finds {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if target.type not in ("cpu", "cuda"):
        raise RequestError(f"device {device!r} is not supported: cpu, cuda or cuda:N")
    return target


def fingerprint(model: PreTrainedModel, streamed: StreamedBlocks | None = None) -> str:
    """SHA-256 over the config and over name, dtype, shape, bit sum and 1,024 evenly spaced elements of every tensor.

    The bit sum (all elements read as integers and added) changes with any single element; the sample distinguishes
    tensors of equal sums. Both run at the speed of memory, which a cryptographic hash of 100 GB would not. A model with
    streamed blocks has the same fingerprint; blocks that were not used before are read for it.
    """
    marks = {} if streamed is None else streamed.marks()
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(marks.get(name) or _mark(name, tensor))
    return digest.hexdigest()


def _mark(name: str, tensor: Tensor) -> bytes:
    """What identifies a tensor of any shape [...]: name, dtype, shape, bit sum and sample.

    A quantised tensor that consists of several (torchao) is identified by its parts.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        parts, about = tensor.__tensor_flatten__()
        inner = [_mark(f"{name}.{part}", getattr(tensor, part)) for part in parts]
        return b"".join([f"{name} {type(tensor).__name__} {about}".encode(), *inner])
    flat = tensor.detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    parts = (bits[first : first + _SUMMED] for first in range(0, len(bits), _SUMMED))
    total = sum(int(part.sum(dtype=torch.int64).item()) for part in parts)
    total = (total + 2**63) % 2**64 - 2**63  # as 64 bits wrap
    sample = flat[:: max(1, flat.numel() // 1024)][:1024].to("cpu", copy=True).contiguous()
    text = f"{name} {tensor.dtype} {tuple(tensor.shape)} {total}".encode()
    return text + sample.view(torch.uint8).numpy().tobytes()


def stated_layers(name: str, *, trust_remote_code: bool = False) -> int | None:
    """The number of layers that the config of a folder or hub name states, or None; no weights are read.

    Raises `RequestError` as `open_checkpoint` does.
    """
    _check_folder(name)
    with quiet_transformers():
        return number_of_layers(_causal_config(name, trust_remote_code))


def _check_weights(name: str) -> None:
    """Raise `RequestError` for a safetensors file that is shorter than its header says."""
    path = Path(name)
    if (path / WEIGHTS).is_file() or (path / INDEX).is_file():
        for weights in files_of(path):
            read_header(weights)


def _check_folder(name: str) -> None:
    """Check a checkpoint folder as far as possible before a library reads it.

    Raises `RequestError` for a folder that does not exist or has no config, for pickled weights, and for invalid JSON.
    """
    path = Path(name)
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise RequestError(f"{name} has no config.json: a checkpoint folder as save_pretrained writes it is needed")
        for file in _JSON_FILES:
            if (path / file).is_file():
                found = read_json(path / file, hint="fetch or copy it again")
                if not isinstance(found, dict) or not is_flat(found):
                    raise RequestError(f"{path / file} is not a JSON object: fetch or copy it again")
        if any(path.glob("pytorch_model*.bin")) and not any(path.glob("*.safetensors")):
            raise RequestError(
                f"{name} holds only pickled weights (pytorch_model.bin), which are not opened: save the model as "
                "safetensors first"
            )
    elif os.path.exists(path):
        raise RequestError(f"{name} is a file: a checkpoint folder is needed")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        # Any other name may be that of a model on a hub; transformers looks it up.
        raise RequestError(f"{name} does not exist: a checkpoint folder is needed")


def _says_causal(architectures: list[str] | None) -> bool:
    """Whether the checkpoint was saved with a language-model head; a config that does not say is accepted."""
    return not architectures or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)

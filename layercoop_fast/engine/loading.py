"""Opening a checkpoint, with one clear line for everything that can be wrong with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason

DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


_NUMBERED = re.compile(r".*?\.\d+\.")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model, its tokenizer (None where the folder has none), and the name it was opened by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str


def open_checkpoint(
    name: str, *, dtype: str | torch.dtype = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> Checkpoint:
    """Open a causal language model from a folder (or a hub name, where one is reachable).

    Args:
        name: folder with `config.json` and safetensors weights, or a name of a hub.
        dtype: "auto" keeps the checkpoint's own.
        device: any torch device, "cpu" or "cuda:1" for example.
        trust_remote_code: run code that the checkpoint brings along; never done unasked.

    Raises `RequestError` in one line.
    """
    target = check_device(device)
    wanted = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype)
    if wanted is None:
        raise RequestError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    _check_folder(name)
    with quiet_transformers():
        model = _load(name, wanted, trust_remote_code)
    return Checkpoint(model.to(target).eval(), _load_tokenizer(name, trust_remote_code), name)


def _load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None where there is none, which is fine until text has to be cut."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever its parser raises: tokenizers raises bare `Exception`
        if any((Path(name) / file).exists() for file in _TOKENIZER_FILES):
            raise RequestError(f"the tokenizer of {name} cannot be opened: {_first_line(error)}") from error
        return None
    return tokenizer


def _load(name: str, dtype: str | torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model of a folder or hub name, once its config says that it is a causal one."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise RequestError(f"{name} cannot be opened: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise RequestError(
            f"{name} is an encoder-decoder model ({config.model_type}): only causal (decoder-only) models"
        )
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if not known or not _says_causal(config.architectures):
        raise RequestError(
            f"{name} is not a causal language model ({config.model_type}, {config.architectures}): "
            "a checkpoint with a language-model head is needed"
        )
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, use_safetensors=True
        )
    except SafetensorError as error:
        raise RequestError(
            f"{name} has a damaged safetensors file ({reason(error)}): fetch or copy it again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        if "ignore_mismatched_sizes" in str(error):
            raise RequestError(f"{name}: its weights do not have the shapes that its config calls for") from error
        raise RequestError(f"{name} cannot be opened: {_first_line(error)}") from error
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise RequestError(f"{name} lacks {len(missing)} weights its config calls for ({missing[0]}, ...): not whole")
    if beyond := _blocks_beyond(loaded["unexpected_keys"], model.state_dict()):
        raise RequestError(
            f"{name} holds weights of more layers than its config calls for ({beyond}, ...): not of a piece"
        )
    opened: PreTrainedModel = model
    return opened


def _blocks_beyond(unexpected: Collection[str], known: Collection[str]) -> str | None:
    """One of the unexpected weights that is of a numbered part the model has fewer of; None where none is."""
    parts = {match[0] for name in known if (match := _NUMBERED.match(name))}
    lists = {part.rstrip(".").rpartition(".")[0] for part in parts}
    for name in sorted(unexpected):
        match = _NUMBERED.match(name)
        if match and match[0] not in parts and match[0].rstrip(".").rpartition(".")[0] in lists:
            return name
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and load reports from the terminal: what matters in them is said in one line, by us."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def check_device(device: str) -> torch.device:
    """The torch device of that name, if it is there; `RequestError` otherwise."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"unknown device {device!r}: cpu, cuda or cuda:N") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if target.type not in ("cpu", "cuda"):
        raise RequestError(f"device {device!r} is not supported: cpu, cuda or cuda:N")
    return target


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the config and, of every tensor, its name, dtype, shape, bit sum and 1,024 spread elements.

    The bit sum (all elements read as integers and added) changes with any single element; the sample tells apart what
    sums alike. Both run at the speed of memory, which a cryptographic hash of 100 GB would not.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        bits = flat.view(_INTEGERS[flat.element_size()])
        sample = flat[:: max(1, flat.numel() // 1024)][:1024].to("cpu", copy=True).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_folder(name: str) -> None:
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RequestError(f"{name} has no config.json: a checkpoint folder as save_pretrained writes it is needed")
        if any(path.glob("pytorch_model*.bin")) and not any(path.glob("*.safetensors")):
            raise RequestError(
                f"{name} holds pickled weights only (pytorch_model.bin), which are not opened: save the model as "
                "safetensors first"
            )
    elif path.exists():
        raise RequestError(f"{name} is a file: a checkpoint folder is needed")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        # Anything else may be the name of a model on a hub; transformers finds out.
        raise RequestError(f"{name} does not exist: a checkpoint folder is needed")


def _says_causal(architectures: list[str] | None) -> bool:
    """Whether the checkpoint was saved with a language-model head (a config without the entry gets the benefit)."""
    return not architectures or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

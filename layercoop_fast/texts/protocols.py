"""The perplexities that papers on pruning and quantisation state, as SPECs: `ppl:wikitext2`, `ppl:c4`, `ppl:ptb`.

    ppl:NAME                 the data set from the hub
    ppl:NAME=FILE            its rows from a file: JSON lines (.jsonl, .json, also .gz), or else the data set's own text
                             file, a row a line (wiki.test.raw, ptb.test.txt)
    ppl:NAME=hf:SET/...      its rows from another data set, one on the disk for example

The protocol is that of GPTQ (arXiv 2210.17323; `opt_eval`, `llama_eval`), which SparseGPT, Wanda and SLEB follow:

    wikitext2    the test rows of wikitext-2-raw-v1 joined by two ends of lines
    c4           the first 1,100 rows of the first validation shard of C4 (en) joined by a blank, the first 256 windows
                 (`c4-new`)
    ptb          the test sentences of ptb_text_only joined by a blank (`ptb-new`)

The text is tokenised at once, as the tokenizer does it by itself: where it puts a begin-of-text token before a text,
the first window begins with one and the others do not. It is cut into windows of 2,048 tokens that follow each other;
the rest is left out. In each window the model predicts 2,047 tokens, all but the first. The perplexity is exp of the
mean NLL over all of these. Number and length of the windows belong to the protocol: `windows=` and `tokens=` do
not change them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason
from layercoop_fast.inputs.bounds import MAX_TEXT_BYTES
from layercoop_fast.inputs.text import read_text as read_utf8
from layercoop_fast.texts.rows import dataset_rows, json_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "ppl:"
WINDOW = 2048
"""Tokens of a window."""

_LONGEST_LINE = 2**24
_MOST_LINES = 2**20


@dataclass(frozen=True)
class Protocol:
    """How a data set becomes one text.

    Attributes:
        hub: its place on the hub, as `dataset_rows` takes it; None where files have to be named.
        files: of a data set too large to load whole, the file that is read.
        fields: columns that hold the text, the first that is there.
        joined: what stands between rows.
        rows: rows that are read, the first ones; None: all.
        windows: windows that are cut at most; None: all.
        keeps_ends: whether rows end with the end of their line, as in the data set (blank rows have none).
    """

    hub: str
    fields: tuple[str, ...] = ("text",)
    joined: str = "\n\n"
    files: str | None = None
    rows: int | None = None
    windows: int | None = None
    keeps_ends: bool = False


PROTOCOLS = {
    "wikitext2": Protocol("Salesforce/wikitext/wikitext-2-raw-v1/test", keeps_ends=True),
    "c4": Protocol("allenai/c4", joined=" ", files="en/c4-validation.00000-of-00008.json.gz", rows=1100, windows=256),
    "ptb": Protocol("ptb-text-only/ptb_text_only/penn_treebank/test", ("sentence", "text"), " "),
}


def is_protocol(spec: str) -> bool:
    """Whether a SPEC names a protocol."""
    return spec.startswith(PREFIX)


def check_chosen_on(specs: Sequence[str], instead: str = "choose layers on another calibration= text") -> None:
    """Raise `RequestError` for a protocol among texts that layers are chosen on, or weights trained: it is a test set.

    `instead` says what to do, in the message.
    """
    for spec in specs:
        if is_protocol(spec):
            raise RequestError(f"{spec} is a test: {instead}, and measure on this one afterwards")


def protocol_text(spec: str) -> str:
    """The text of a protocol's SPEC, its rows joined.

    Raises `RequestError` for a name that is none, and for rows that cannot be read.
    """
    protocol, source = _parsed(spec)
    if source is None and protocol.files is not None:
        rows = _hub_file(protocol)
    elif source is None or source.startswith("hf:"):
        try:
            rows = dataset_rows((source or protocol.hub).removeprefix("hf:"), protocol.fields, most=protocol.rows)
        except RequestError as error:
            raise RequestError(f"{spec}: {error}; or name a file of its rows with =FILE") from error
    else:
        rows = _file_rows(Path(source), protocol)
    return protocol.joined.join(rows[: protocol.rows])


def protocol_windows(spec: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The windows of a protocol's SPEC: int64 [W, 2048]. Raises `RequestError`, also for less text than a window."""
    protocol, _ = _parsed(spec)
    stream = np.asarray(tokenizer(protocol_text(spec), verbose=False)["input_ids"], np.int64)
    windows = len(stream) // WINDOW
    if not windows:
        raise RequestError(f"{spec} has {len(stream)} tokens, less than one window of {WINDOW:,}: give all of its rows")
    windows = min(windows, protocol.windows or windows)
    return torch.from_numpy(stream[: windows * WINDOW].reshape(windows, WINDOW).copy())


def _parsed(spec: str) -> tuple[Protocol, str | None]:
    name, _, source = spec.removeprefix(PREFIX).partition("=")
    if name not in PROTOCOLS:
        known = ", ".join(f"{PREFIX}{one}" for one in PROTOCOLS)
        raise RequestError(f"{spec} is no perplexity protocol: {known} are, each also with =FILE or =hf:NAME")
    return PROTOCOLS[name], source or None


def _hub_file(protocol: Protocol) -> list[str]:
    """Rows of one file of a data set on the hub, of which the others are not fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert protocol.files is not None
    try:
        place = hf_hub_download(protocol.hub, protocol.files, repo_type="dataset")
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise RequestError(
            f"{protocol.files} of {protocol.hub} cannot be fetched: {reason(error)[:200]}; name the file, with =FILE"
        ) from error
    return _file_rows(Path(place), protocol)


def _file_rows(path: Path, protocol: Protocol) -> list[str]:
    if ".json" in "".join(path.suffixes[-2:]):
        lines = _unpacked(path, protocol.rows) if path.suffix == ".gz" else read_utf8(path).split("\n")
        return json_rows(islice(lines, protocol.rows), str(path), protocol.fields)
    if path.suffix == ".gz":
        raise RequestError(f"{path} is packed: only JSON lines are read from a .gz")
    # As the data set's own code reads it: other ends of lines than \n stay in a row.
    lines = StringIO(read_utf8(path))
    return [(line if protocol.keeps_ends else line.strip()) if line.strip() else "" for line in lines]


def _unpacked(path: Path, most: int | None) -> Iterator[str]:
    """The lines of a packed file, `most` of them where that is given.

    Raises `RequestError` for a file that cannot be read, and for more lines or bytes than are read: what a packed file
    unpacks to can be a thousand times its size.
    """
    read = 0
    try:
        with gzip.open(path, "rb") as file:
            for number in count(1):
                if number - 1 == most:
                    return
                line = file.readline(_LONGEST_LINE + 1)
                if not line:
                    return
                read += len(line)
                if len(line) > _LONGEST_LINE:
                    raise RequestError(f"{path} line {number} is longer than {_LONGEST_LINE:,} bytes")
                if read > MAX_TEXT_BYTES:
                    raise RequestError(f"{path} unpacks to more than {MAX_TEXT_BYTES:,} bytes, the most that is read")
                if number > _MOST_LINES:
                    raise RequestError(f"{path} has more than {_MOST_LINES:,} lines, the most that are read")
                yield line.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {reason(error)}") from error

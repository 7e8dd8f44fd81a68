"""Readers of single formats: what they take, and the cases that once asked for everything."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layercoop_fast.errors import RequestError
from layercoop_fast.inputs.arrays import read_array, read_arrays
from layercoop_fast.inputs.libraries import library_reads
from layercoop_fast.inputs.safetensors import read_header
from layercoop_fast.inputs.text import as_saved, is_flat, read_json, read_text


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [bool, "<i2", ">i4", "<u8", "<f2", "<f4", "<f8", "<U5"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (0, 3), (2, 3, 2)])
@pytest.mark.parametrize("version", [None, (2, 0), (3, 0)])
def test_arrays_are_those_that_numpy_reads(
    tmp_path: Path, order: Any, dtype: Any, shape: tuple[int, ...], version: Any
) -> None:
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    read = read_array(tmp_path / "a.npy", "save an array")
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    np.savez(tmp_path / "a.npz", first=array)
    np.savez_compressed(tmp_path / "b.npz", first=array)
    kind = np.str_ if dtype == "<U5" else array.dtype.type
    if np.dtype(dtype).isnative:
        for name in ("a.npz", "b.npz"):
            assert np.array_equal(read_arrays(tmp_path / name, {"first": (kind, len(shape))}, "")["first"], array)


def test_an_archive_that_comes_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**20))
    content = bytearray(made.getvalue())
    at = content.find(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)  # the size that the directory says
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(RequestError, match=r"would unpack from [0-9,]+ bytes to 2,147,483,648"):
        read_arrays(tmp_path / "a.npz", {"a": (np.float64, 1)}, "")


def test_json_of_many_levels_and_of_many_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content, said in [
        (b"[" * 10**5, r"is not JSON \(it has too many levels\): write it again"),
        (b"{'a': 1}", r"is not JSON \(.*\): write it again"),
        (b"\xff", r"is not UTF-8 text \(byte 0\)"),
        (b"1" * 10**5, "is not JSON"),
        (b"[1, 2, 3]", "is larger than 8 bytes"),
    ]:
        file.write_bytes(content)
        with pytest.raises(RequestError, match=said):
            read_json(file, hint="write it again", limit=8 if b"2" in content else 2**20)
    with pytest.raises(RequestError, match="cannot be read: embedded null"):
        read_json(Path("a\0b"))
    assert is_flat([[1], {"a": [2]}], 4)
    assert not is_flat([[[[[]]]]], 4)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("words " * 10**5,))
    writer.start()
    assert read_text(pipe) == "words " * 10**5
    writer.join()


def test_what_a_header_states_is_compared_with_the_file(tmp_path: Path) -> None:
    def header(**changes: Any) -> bytes:
        text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + bytes(8)

    file = tmp_path / "model.safetensors"
    file.write_bytes(header())
    assert read_header(file).tensors["a"].shape == (2,)
    for content, said in [
        (header(shape=[2**62, 4]), "the place of a does not fit its shape"),
        (header(shape=[2.0]), "does not say dtype, shape and place"),
        (header(shape=[True, 2]), "does not say dtype, shape and place"),
        (header(shape=[-1, -2]), "does not say dtype, shape and place"),
        (header(shape=[4], data_offsets=[0, 16]), "its header states"),
        (header(data_offsets=[8, 0]), "the place of a does not fit"),
        (struct.pack("<Q", 2**63) + b"{}", "its header ends beyond its 10 bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is not a JSON object"),
    ]:
        file.write_bytes(content)
        with pytest.raises(RequestError, match=rf"damaged safetensors file \(model.safetensors: .*{said}"):
            read_header(file)


def test_errors_of_our_own_pass_through(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"^a.json: it is damaged, or was not saved by this version \(KeyError: 'x'\)"
    ):
        with as_saved("a.json"):
            {}["x"]
    with pytest.raises(RequestError, match=r"^said already$"), as_saved("a.json"):
        raise RequestError("said already")
    with pytest.raises(OSError, match="disk"), as_saved("a.json"):
        raise OSError("disk")


def test_long_and_many_ranges_of_blocks_take_no_time() -> None:
    from layercoop_fast.masks.text import parse_removed

    started = time.process_time()
    assert len(parse_removed(",".join(["0-65535"] * 20_000))) == 2 * 65_536
    assert time.process_time() - started < 5
    with pytest.raises(RequestError, match="blocks have numbers up to 65,535"):
        parse_removed(",".join(["0-999999"] * 20))
    with pytest.raises(RequestError, match="takes blocks like"):
        parse_removed("٣")


@pytest.mark.parametrize(("players", "masks"), [(32, 10**12), (65_537, 1), (10**12, 10**12)])
def test_more_masks_than_any_memory_holds_are_refused(players: int, masks: int) -> None:
    from layercoop_fast.masks.samplers import SAMPLERS

    for draw in SAMPLERS.values():
        with pytest.raises(RequestError, match=r"too many to lay out|strata have fewer|cut has"):
            draw(players, masks, strata=[1, 2])


def test_what_libraries_raise_is_one_line_and_what_ends_a_process_is_not() -> None:
    panic = type("PanicException", (BaseException,), {})
    for raised in (Exception("first\nsecond"), panic("first\nsecond"), ZeroDivisionError("first")):
        with pytest.raises(RequestError, match=r"^model cannot be opened: first$"), library_reads("model"):
            raise raised
    with pytest.raises(RequestError, match="more memory than there is"), library_reads("model"):
        raise MemoryError
    for ends in (KeyboardInterrupt, SystemExit, type("Terminated", (BaseException,), {})):
        with pytest.raises(ends), library_reads("model"):
            raise ends


def test_text_of_no_characters_is_refused(tmp_path: Path) -> None:
    """Its elements have no bytes, so that any shape would pass for one that the file holds."""
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(RequestError):
        read_array(path, "give another")

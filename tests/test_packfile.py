"""The file of packed weights: it comes back as it was, and no damaged or forged file is taken for one."""

from __future__ import annotations

import copy
import json
import pickle
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range

from pyq import FormatError, ops
from pyq.packfile import VERSION
from pyq.packing import PackedWeight, pack, verify_certificate
from pyq.panels import SEGMENT_DTYPE
from pyq.tensor import QTensor

HEADER = 20
ARRAYS = ("scale", "zero_point", "colsum", "segments", "order", "data")


def weights(kind: str) -> PackedWeight:
    """Weights of each kind, with zero points and scales per channel, some panels of each layout."""
    rng = np.random.default_rng(7)

    def tensor(shape: tuple[int, ...], axis: int, dtype: str) -> QTensor:
        n = shape[axis]
        data = np.clip(rng.normal(0, 30, shape), -128, 127).astype(np.int8)
        if dtype == "uint8":
            data = full_range(rng, shape, "uint8")
        return QTensor(data, rng.uniform(0.1, 1, n).astype(np.float32), full_range(rng, (n,), dtype) // 8, axis)

    if kind == "gemm":
        data = np.clip(rng.normal(0, 20, (37, 50)), -128, 127).astype(np.int8)
        data[:, 20] = -128
        return pack(QTensor(data, 0.25))
    if kind == "gemm uint8":
        return pack(tensor((37, 50), 1, "uint8"), amax=127)
    if kind == "conv":
        return pack(tensor((10, 3, 3, 5), 0, "int8"))
    if kind == "grouped":
        return pack(tensor((40, 3, 3, 2), 0, "int8"), group=2)
    if kind == "1-D":
        return pack(tensor((5, 4, 3), 0, "int8"))
    return pack(tensor((21, 1, 3, 3), 0, "int8"), group=21)


KINDS = ["gemm", "gemm uint8", "conv", "grouped", "1-D", "depthwise"]


def same(w: PackedWeight, v: PackedWeight) -> None:
    for name in ("kind", "shape", "dtype", "group", "amax", "runs_per_row", "certificate"):
        assert getattr(w, name) == getattr(v, name)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(w, name), getattr(v, name), err_msg=name)
        assert not getattr(v, name).flags.writeable
    assert_same(v.unpack(), w.unpack())
    verify_certificate(v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [False, True])
def test_load_gives_what_was_saved(kind: str, mmap: bool, tmp_path: Path) -> None:
    w = weights(kind)
    w.save(tmp_path / "w.pyq")
    v = PackedWeight.load(str(tmp_path / "w.pyq"), mmap=mmap)
    same(w, v)
    assert v.data.ctypes.data % 64 == 0


def test_mapped_weights_are_not_read(tmp_path: Path) -> None:
    weights("gemm").save(tmp_path / "w.pyq")
    array: Any = PackedWeight.load(tmp_path / "w.pyq", mmap=True).data
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    assert isinstance(array, np.memmap)


def test_loaded_weights_multiply(backend: str, tmp_path: Path, rng: np.random.Generator) -> None:
    w = weights("gemm")
    w.save(tmp_path / "w.pyq")
    x = full_range(rng, (9, 37), "uint8")
    for mmap in (False, True):
        v = PackedWeight.load(tmp_path / "w.pyq", mmap=mmap)
        assert_same(ops.matmul_integer(x, v), ops.matmul_integer(x, w))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_pickle_and_copy(kind: str, clone: Callable[[PackedWeight], PackedWeight]) -> None:
    same(weights(kind), clone(weights(kind)))


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    weights("conv").save(tmp_path / "w.pyq")
    return tmp_path / "w.pyq"


@pytest.mark.parametrize("mmap", [False, True])
def test_every_truncation_is_found(path: Path, mmap: bool) -> None:
    content = path.read_bytes()
    for size in [*range(HEADER + 2), 64, 100, len(content) // 2, len(content) - 64, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(FormatError, match=r"w\.pyq: "):
            PackedWeight.load(path, mmap=mmap)


def test_every_damaged_byte_is_found(path: Path) -> None:
    """All of the header and of the description, and a sample of the arrays, each with one bit flipped."""
    content = path.read_bytes()
    for place in [*range(400), *range(400, len(content), 37), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            PackedWeight.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a packed weight"),
        (b"PYQPACK\0", "not a packed weight"),
        (b"ONNX" * 100, "it does not start with the magic PYQPACK"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        PackedWeight.load(tmp_path / "other")


def test_another_version_is_named(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", VERSION + 1)
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"version {VERSION + 1}, this pyq reads version {VERSION}"):
        PackedWeight.load(path)


def test_more_data_at_the_end_is_found(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FormatError, match="checksum"):
        PackedWeight.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PackedWeight.load(tmp_path / "none")


# --- forgery: the checksum is right, the numbers are not ----------------------------------------------------


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Rewrite the file, with a right checksum, after `change(fields, arrays)`."""
    content = path.read_bytes()
    size = struct.unpack_from("<I", content, 12)[0]
    fields = json.loads(content[HEADER : HEADER + size])
    section = content[-(-(HEADER + size) // 64) * 64 :]
    arrays = {}
    for name, entry in fields["arrays"].items():
        dtype = {"segments": SEGMENT_DTYPE, "data": np.dtype("u1"), "scale": np.dtype("<f4")}.get(name, np.dtype("<i4"))
        length = int(np.prod(entry["shape"])) * dtype.itemsize
        arrays[name] = np.frombuffer(section[entry["start"] :][:length], dtype).reshape(entry["shape"]).copy()
    changed = dict(fields)
    change(changed, arrays)
    body = bytearray(section)
    for name, entry in fields["arrays"].items():
        body[entry["start"] : entry["start"] + arrays[name].nbytes] = arrays[name].tobytes()
    write(path, json.dumps(changed).encode(), bytes(body))


def write(path: Path, text: bytes, section: bytes) -> None:
    body = text + b" " * (-(HEADER + len(text)) % 64) + section
    start = struct.pack("<8sII", b"PYQPACK\0", VERSION, len(text))
    path.write_bytes(start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body)


def test_a_forgery_that_changes_nothing_loads(path: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    forge(path, lambda fields, arrays: None)
    same(weights("conv"), PackedWeight.load(path))


FIELDS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"kind": other}) for kind, other in (("gemm", "conv"), ("conv", "gemm"), ("conv", "depthwise"))),
    *((kind, {"kind": value}) for kind in ("gemm", "depthwise") for value in ("conv", "pool", None, 3, [])),
    *(("conv", {"shape": s}) for s in ([], [10], [10, 3], [10, 3, 3, 5, 1], [10, 3, 3, 0], [10, 3, 3, -5])),
    *(("conv", {"shape": s}) for s in ([10.0, 3, 3, 5], [10, 3, 3, True], "10", None, 7, [11, 3, 3, 5], [10, 1, 1, 1])),
    *(("gemm", {"shape": s}) for s in ([50, 37], [4, 50], [37, 49], [2**70, 50], [37, 50, 1, 1])),
    *(("depthwise", {"shape": s}) for s in ([21, 2, 3, 3], [5, 1, 3, 3], [21, 1, 1, 1])),
    *((kind, {"group": g}) for kind in ("conv", "grouped", "depthwise") for g in (0, -1, 4, 10**30, 2.0, "2", None)),
    *(("conv", {"runs_per_row": r}) for r in (0, 2, 7, -1, 10**30, None)),
    *(("conv", {"amax": a}) for a in (0, 256, -1, 255.0, "255", None)),
    *(("conv", {"dtype": d}) for d in ("int16", "float32", "O", "", None, 3, {})),
    *(("conv", {"arrays": a}) for a in ({}, [], None, 3)),
]


@pytest.mark.parametrize(("kind", "fields"), FIELDS, ids=str)
def test_forged_fields_are_refused(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "w.pyq"
    weights(kind).save(path)
    forge(path, lambda all_fields, arrays: all_fields.update(fields))
    with pytest.raises(FormatError, match=r"w\.pyq: "):
        PackedWeight.load(path)


BIG = 2**31 - 1
ENTRIES = [
    *(("data", value) for value in (-64, 1, 10**6, 2**63 - 64, -(2**63))),
    *(("order", value) for value in (-1, 10**6, BIG, -(2**31))),
    *(("steps", value) for value in (0, -1, -2, 10**6, BIG)),
    *(("layout", value) for value in (-1, 6, 7, BIG)),
    *(("column", value) for value in (-1, 1, 16, BIG)),
    *(("columns", value) for value in (0, -1, 9, 17, BIG)),
    *(("row_offset", value) for value in (-1, 4, BIG)),
]


@pytest.mark.parametrize("kind", ["gemm", "grouped"])
@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize(("entry", "value"), ENTRIES)
def test_a_forged_panel_table_is_refused(kind: str, index: int, entry: str, value: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pyq"
    weights(kind).save(path)

    def change(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        was = arrays["segments"][index][entry]
        arrays["segments"][index][entry] = value if value != was else value + 1

    forge(path, change)
    with pytest.raises(FormatError):
        PackedWeight.load(path)


@pytest.mark.parametrize("value", [-1, 10**6, BIG, -(2**31)])
def test_a_forged_order_is_refused(path: Path, value: int) -> None:
    forge(path, lambda fields, arrays: arrays["order"].__setitem__(3, value))
    with pytest.raises(FormatError):
        PackedWeight.load(path)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "entry",
    [
        {},
        None,
        {"start": -64},
        {"start": 1},
        {"start": 2**40},
        {"start": 10**30},
        {"start": 0.0},
        {"shape": [-1]},
        {"shape": [2**40]},
        {"shape": [2**32, 2**32]},
        {"shape": [10**30]},
        {"shape": [0]},
        {"shape": [1, 1]},
        {"shape": None},
    ],
    ids=str,
)
def test_a_forged_array_is_refused(path: Path, name: str, entry: dict[str, Any] | None) -> None:
    def change(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        whole = fields["arrays"][name]
        fields["arrays"] = {**fields["arrays"], name: {**whole, **entry} if entry else entry}

    forge(path, change)
    with pytest.raises(FormatError):
        PackedWeight.load(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_a_broken_description_is_refused(path: Path, text: bytes) -> None:
    write(path, text, b"\0" * 256)
    with pytest.raises(FormatError, match="damaged description"):
        PackedWeight.load(path)


# --- writing ------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    """The system refuses to write more than 2000 bytes: no part of a new file is ever seen."""
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError):
            weights("gemm").save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        weights("conv").save(tmp_path / "none" / "w.pyq")


def test_saving_again_replaces_and_leaves_nothing_behind(path: Path) -> None:
    mapped = PackedWeight.load(path, mmap=True)
    weights("gemm").save(path)
    same(weights("gemm"), PackedWeight.load(path))
    same(weights("conv"), mapped)  # who has mapped the old file keeps it
    assert list(path.parent.iterdir()) == [path]

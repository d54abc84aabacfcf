"""The file of a PackedWeight: a header, a JSON description, and the arrays, each at a multiple of 64 bytes.

0   8 bytes  magic "PYQPACK\\0"
8   u32      version, 4 (little endian, as all numbers)
12  u32      length of the JSON text that follows at 20
16  u32      CRC-32 of all other bytes
20  JSON     kind, shape, dtype, group, amax, runs_per_row, and for each array shape and start
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.errors import FormatError
from pyq.files import write_file
from pyq.packing import PackedWeight
from pyq.panels import ALIGNMENT, GROUP_SIZE, LAYOUT_NAMES, NR, SEGMENT_DTYPE, STEP_BYTES, TAPS16, Panels, aligned_bytes

MAGIC = b"PYQPACK\0"
VERSION = 4
HEADER = struct.Struct("<8sIII")
CHECKSUM_AT = 16
ARRAYS = {
    "scale": np.dtype("<f4"),
    "zero_point": np.dtype("<i4"),
    "colsum": np.dtype("<i4"),
    "segments": SEGMENT_DTYPE,
    "order": np.dtype("<i4"),
    "data": np.dtype("u1"),
}


def _round_up(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _description(w: PackedWeight) -> dict[str, Any]:
    fields = {"kind": w.kind, "shape": w.shape, "dtype": w.dtype.name, "group": w.group, "amax": w.amax}
    arrays: dict[str, Any] = {}
    position = 0  # from the start of the array section
    for name in ARRAYS:
        array = getattr(w, name)
        arrays[name] = {"shape": array.shape, "start": position}
        position = _round_up(position + array.nbytes)
    return {**fields, "runs_per_row": w.runs_per_row, "arrays": arrays}


def save(w: PackedWeight, path: str | os.PathLike[str]) -> None:
    """Write ``w`` to a temporary file beside ``path``, then rename it."""
    description = _description(w)
    text = json.dumps(description).encode()
    body = bytearray(text.ljust(_round_up(HEADER.size + len(text)) - HEADER.size, b" "))
    for name in ARRAYS:
        body += getattr(w, name).tobytes()
        body += bytes(-(HEADER.size + len(body)) % ALIGNMENT)
    start = HEADER.pack(MAGIC, VERSION, len(text), 0)[:CHECKSUM_AT]
    write_file(path, start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body)


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> PackedWeight:
    """Read and check the file that :func:`save` wrote; FormatError says what is wrong with it."""
    content: NDArray[np.uint8]
    if mmap and os.path.getsize(path) > 0:
        content = np.memmap(path, np.uint8, mode="r")
    else:
        content = aligned_bytes(os.path.getsize(path))
        content[:] = np.fromfile(path, np.uint8)
    try:
        return _parse(content)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{os.fspath(path)}: damaged description ({error})") from None


def _parse(content: NDArray[np.uint8]) -> PackedWeight:
    if content.size < HEADER.size or content[:8].tobytes() != MAGIC:
        raise FormatError("not a packed weight: it does not start with the magic PYQPACK")
    _, version, text_size, checksum = HEADER.unpack(content[: HEADER.size].tobytes())
    if version != VERSION:
        raise FormatError(f"version {version}, this pyq reads version {VERSION}")
    if zlib.crc32(content[HEADER.size :].data, zlib.crc32(content[:CHECKSUM_AT].data)) != checksum:
        raise FormatError("the checksum differs: the file is damaged or cut off")
    fields = json.loads(content[HEADER.size : HEADER.size + text_size].tobytes())
    section = content[_round_up(HEADER.size + text_size) :]
    arrays = {name: _array(section, fields["arrays"][name], dtype) for name, dtype in ARRAYS.items()}
    panels = Panels(arrays["segments"], arrays["order"], arrays["data"])
    w = PackedWeight(
        fields["kind"],
        tuple(fields["shape"]),
        np.dtype(fields["dtype"]),
        arrays["scale"],
        arrays["zero_point"],
        fields["group"],
        fields["amax"],
        fields["runs_per_row"],
        panels,
        arrays["colsum"],
    )
    _check_shape(w)
    _check_panels(w)
    return w


def _array(section: NDArray[np.uint8], entry: dict[str, Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(entry["shape"]) * dtype.itemsize
    start = entry["start"]
    if start < 0 or size < 0 or start % ALIGNMENT or start + size > section.size:
        raise FormatError(f"an array of {size} bytes at {start} lies outside the file")
    return section[start : start + size].view(dtype).reshape(entry["shape"])


def _check_shape(w: PackedWeight) -> None:
    """Steps and row offsets are computed from these fields, so they decide what a kernel reads of an image."""
    integers = (*w.shape, w.group, w.amax, w.runs_per_row)
    width = w.kernel_shape[2]
    good = (
        w.dtype in (np.int8, np.uint8)
        and all(type(value) is int and value > 0 for value in integers)
        and w.amax <= 255
        and (w.kind == "gemm") == (len(w.shape) == 2)
        and len(w.shape) in (2, 3, 4, 5)
        and w.columns % w.group == 0
    )
    if w.kind == "gemm":
        good = good and w.group == w.runs_per_row == 1
    elif w.kind == "conv":
        good = good and (w.runs_per_row == width or w.runs_per_row == w.group == 1)
    else:
        good = good and w.kind == "depthwise" and w.shape[:2] == (w.group, 1) and w.runs_per_row == width
    if not good:
        raise FormatError(f"no {w.kind!r} weights have shape {w.shape}, group {w.group} and amax {w.amax}")


def _check_panels(w: PackedWeight) -> None:
    """A kernel trusts these numbers, so a file may not send it out of bounds even when its checksum is right."""
    if not (w.segments.ndim == w.order.ndim == w.data.ndim == 1 and len(w.segments) and len(w.order)):
        raise FormatError("the segments, the order and the data must be lists that are not empty")
    table, layout, steps = w.segments, w.segments["layout"], w.segments["steps"].astype(np.int64)
    if not ((layout >= 0) & (layout < len(LAYOUT_NAMES))).all():
        raise FormatError("unknown layout")
    together = np.array([2 if i == TAPS16 else GROUP_SIZE.get(i, 1) for i in range(len(LAYOUT_NAMES))])
    sizes = steps * np.array(STEP_BYTES)[layout]
    columns = table["column"].astype(np.int64)
    ends = columns + table["columns"]
    per_group = w.columns // w.group_count
    good = (
        (steps > 0).all()
        and ((table["data"] >= 0) & (table["data"] <= w.data.size - sizes) & (table["data"] % 4 == 0)).all()
        and ((table["order"] >= 0) & (table["order"] <= w.order.size - steps)).all()
        and ((table["columns"] > 0) & (table["columns"] <= NR)).all()
        and columns[0] == 0  # every column in one panel, and no panel across two of those packed apart
        and ((columns[1:] == ends[:-1]) | ((columns[1:] == columns[:-1]) & (ends[1:] == ends[:-1]))).all()
        and ends[-1] == w.columns
        and (columns // per_group == (ends - 1) // per_group).all()
        and ((layout == TAPS16) == (w.kind == "depthwise")).all()
        and not (steps % together[layout]).any()
        and (table["row_offset"] == _row_offsets(w)).all()
        and w.colsum.shape == (w.columns,)
        and w.scale.shape in ((), (w.columns,))
        and w.zero_point.shape == w.scale.shape
        and int(w.order.min()) >= 0
        and int(w.order.max()) == w.entries - 1  # every quad has a step, so the shape is not larger than the weights
    )
    if not good:
        raise FormatError("the segments do not fit the weights")


def _row_offsets(w: PackedWeight) -> NDArray[np.int64]:
    """What each segment must add to a row: its own first channel if depthwise, else that of its group."""
    column = w.segments["column"].astype(np.int64)
    if w.kind == "depthwise":
        return column
    channels = w.shape[1] * w.together if w.group_count > 1 else 0
    return column // (w.columns // w.group_count) * channels

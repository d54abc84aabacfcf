"""The file of a PackedWeight: a header, a JSON description, and the arrays, each at a multiple of 64 bytes.

0   8 bytes  magic "PYQPACK\\0"
8   u32      version, 1 (little endian, as all numbers)
12  u32      length of the JSON text that follows at 24
16  u32      CRC-32 of everything behind the header (JSON text, padding and arrays)
20  u32      zero
24  JSON     kind, shape, dtype, group, amax, runs_per_row, and for each array dtype, shape and start
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.errors import FormatError
from pyq.files import write_file
from pyq.packing import PackedWeight
from pyq.panels import ALIGNMENT, LAYOUT_NAMES, NR, PANEL_DTYPE, STEP_BYTES, Panels, aligned_bytes

MAGIC = b"PYQPACK\0"
VERSION = 1
HEADER = struct.Struct("<8sIIII")
ARRAYS = ("scale", "zero_point", "colsum", "panels", "order", "data")


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
    header = HEADER.pack(MAGIC, VERSION, len(text), zlib.crc32(body), 0)
    write_file(path, header + body)


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{os.fspath(path)}: damaged description ({error})") from None


def _parse(content: NDArray[np.uint8]) -> PackedWeight:
    if content.size < HEADER.size or content[:8].tobytes() != MAGIC:
        raise FormatError("not a packed weight: it does not start with the magic PYQPACK")
    _, version, text_size, checksum, _ = HEADER.unpack(content[: HEADER.size].tobytes())
    if version != VERSION:
        raise FormatError(f"version {version}, this pyq reads version {VERSION}")
    if zlib.crc32(memoryview(content[HEADER.size :])) != checksum:
        raise FormatError("the checksum differs: the file is damaged or cut off")
    fields = json.loads(content[HEADER.size : HEADER.size + text_size].tobytes())
    section = content[_round_up(HEADER.size + text_size) :]
    dtypes: tuple[np.dtype[Any], ...] = (np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i4"), PANEL_DTYPE, np.dtype("<i4"), np.dtype("u1"))
    arrays = {name: _array(section, fields["arrays"][name], dtype) for name, dtype in zip(ARRAYS, dtypes, strict=True)}
    panels = Panels(arrays["panels"], arrays["order"], arrays["data"])
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
    _check_panels(w)
    return w


def _array(section: NDArray[np.uint8], entry: dict[str, Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize
    start = entry["start"]
    if start < 0 or start % ALIGNMENT or start + size > section.size:
        raise FormatError(f"an array of {size} bytes at {start} lies outside the file")
    return section[start : start + size].view(dtype).reshape(entry["shape"])


def _check_panels(w: PackedWeight) -> None:
    """A kernel trusts these numbers, so a file may not send it out of bounds even when its checksum is right."""
    table, steps = w.panels, w.panels["steps"].astype(np.int64)
    layout = table["layout"]
    known = ((layout >= 0) & (layout < len(LAYOUT_NAMES))).all()
    depthwise = w.kind == "depthwise"
    sizes = steps * np.array(STEP_BYTES)[layout] if known else steps
    good = (
        known
        and w.kind in ("gemm", "conv", "depthwise")
        and 1 <= w.amax <= 255
        and (steps > 0).all()
        and ((table["data"] >= 0) & (table["data"] + sizes <= w.data.size) & (table["data"] % 4 == 0)).all()
        and ((table["order"] >= 0) & (table["order"] + steps <= w.order.size)).all()
        and ((table["columns"] > 0) & (table["columns"] <= NR) & (table["column"] >= 0)).all()
        and (table["column"].astype(np.int64) + table["columns"] <= w.columns).all()
        and ((layout == LAYOUT_NAMES.index("taps16")) == depthwise).all()
        and not (steps[layout != LAYOUT_NAMES.index("pairs16")] % 2).any()
        and (table["row_offset"] == _row_offsets(w)).all()
        and w.colsum.shape == (w.columns,)
        and w.scale.shape in ((), (w.columns,))
        and w.zero_point.shape == w.scale.shape
        and w.order.size
        and 0 <= int(w.order.min()) <= int(w.order.max()) < w.entries
    )
    if not good:
        raise FormatError("the panel table does not fit the weights")


def _row_offsets(w: PackedWeight) -> NDArray[np.int64]:
    """What each panel must add to a row: its own first channel if depthwise, else that of its group."""
    column = w.panels["column"].astype(np.int64)
    return column if w.kind == "depthwise" else column // (w.columns // w.group) * (w.shape[1] if w.group > 1 else 0)

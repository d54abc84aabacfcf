"""Panels: how packed weights lie in memory, shared by every kernel (the contract is in csrc/pyq.h).

A matrix of folded weights (zero point subtracted, int16 in [-255, 255]) with its rows in groups of four, the quads,
becomes panels of NR columns, and a panel one or more segments, each of one layout, whose sums add up. The C packer can
prove that sums of 16 bits are exact and store QUADS8 segments, or, for CPUs that add products in 32 bits, QUADS32;
without it every panel is PAIRS16, exact as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_core: Any = importlib.import_module("pyq._core") if importlib.util.find_spec("pyq._core") else None

NR = 16
PAIRS16, PAIRS8W, QUADS32, QUADS8, QUADS8P2, QUADS8P4, TAPS16 = range(7)
LAYOUT_NAMES = ("pairs16", "pairs8w", "quads32", "quads8", "quads8p2", "quads8p4", "taps16")
STEP_BYTES = (128, 64, 64, 64, 64, 64, 32)
GROUP_SIZE = {QUADS8: 1, QUADS8P2: 2, QUADS8P4: 4}
"""Quads that share a 16-bit sum."""
WORDS = frozenset((PAIRS16, PAIRS8W))
"""Layouts whose kernels read activations as int16."""
MAX_SEGMENTS = 4
"""Of one panel."""
ALIGNMENT = 64

SEGMENT_DTYPE = np.dtype(
    [
        ("data", "<i8"),
        ("order", "<i4"),
        ("steps", "<i4"),
        ("layout", "<i4"),
        ("column", "<i4"),
        ("columns", "<i4"),
        ("row_offset", "<i4"),
    ]
)


class Panels(NamedTuple):
    """Table of segments (SEGMENT_DTYPE), int32 quad (or tap) numbers, and the packed bytes, aligned to 64."""

    table: NDArray[np.void]
    order: NDArray[np.int32]
    data: NDArray[np.uint8]


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """An uninitialised uint8 array of ``size`` bytes that starts at a multiple of 64."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def _empty_table(columns: int) -> NDArray[np.void]:
    first = np.arange(0, columns, NR)
    table = np.zeros(len(first), SEGMENT_DTYPE)
    table["column"] = first
    table["columns"] = np.minimum(columns - first, NR)
    return table


def _in_panels(matrix: NDArray[np.int16]) -> NDArray[np.int16]:
    """``[K, N]`` as ``[panels, K, NR]``, zero padded."""
    k, n = matrix.shape
    padded = np.zeros((k, -(-n // NR) * NR), np.int16)
    padded[:, :n] = matrix
    return padded.reshape(k, -1, NR).transpose(1, 0, 2)


def _uniform(columns: int, layout: int, order: NDArray[np.int32]) -> Panels:
    """Panels that all have the same layout and share one order; their data is still to be filled in."""
    return _in_layout(columns, layout, order, aligned_bytes(-(-columns // NR) * len(order) * STEP_BYTES[layout]))


def _in_layout(columns: int, layout: int, order: NDArray[np.int32], data: NDArray[np.uint8]) -> Panels:
    table = _empty_table(columns)
    table["layout"], table["steps"] = layout, len(order)
    table["data"] = np.arange(len(table)) * len(order) * STEP_BYTES[layout]
    return Panels(table, order, data)


def _filled(panels: Panels, data: NDArray[np.int16]) -> Panels:
    panels.data.view(np.int16).reshape(data.shape)[...] = data
    return panels


def pack_pairs16(matrix: NDArray[np.int16]) -> Panels:
    """Widening panels, in NumPy: elements (0, 1) of each quad, then (2, 3)."""
    quads = len(matrix) // 4
    halves = _in_panels(matrix).reshape(-1, quads, 2, 2, NR)  # [panel, quad, k // 2, k % 2, column]
    data = halves.transpose(0, 1, 2, 4, 3)
    return _filled(_uniform(matrix.shape[1], PAIRS16, np.arange(quads, dtype=np.int32)), data)


def pack_taps16(taps: NDArray[np.int16]) -> Panels:
    """Depthwise panels of ``[taps, channels]``: pairs of taps; an odd last tap is paired with itself, weight 0."""
    count, channels = taps.shape
    order = np.arange(count + count % 2, dtype=np.int32)
    order[count:] = count - 1
    even = np.zeros((len(order), channels), np.int16)
    even[:count] = taps
    data = _in_panels(even).reshape(-1, len(order) // 2, 2, NR).transpose(0, 1, 3, 2)
    panels = _filled(_uniform(channels, TAPS16, order), data)
    panels.table["row_offset"] = panels.table["column"]  # output channel c reads input channel c
    return panels


def _pack_c(matrix: NDArray[np.int16], amax: int, isa: int | None, taps: int) -> Panels:
    ffi, lib = _core.ffi, _core.lib
    quads, columns = len(matrix) // 4, matrix.shape[1]
    panels = -(-columns // NR)
    table = np.zeros(panels * MAX_SEGMENTS, SEGMENT_DTYPE)
    order = np.empty(panels * (quads + 4), np.int32)
    data = aligned_bytes(panels * (128 * quads + 256))
    count = lib.pyq_pack(
        ffi.from_buffer("int16_t[]", np.ascontiguousarray(matrix)),
        quads,
        columns,
        -(-quads // taps),
        amax,
        lib.pyq_get_isa() if isa is None else isa,
        ffi.from_buffer("pyq_segment[]", table, require_writable=True),
        ffi.from_buffer("int32_t[]", order, require_writable=True),
        ffi.from_buffer("uint8_t[]", data, require_writable=True),
    )
    if not count:
        raise MemoryError(f"packing a matrix of shape {matrix.shape}")
    last = table[count - 1]
    entries = int((table["order"] + table["steps"])[:count].max())  # panels with equal lists share one
    exact = aligned_bytes(int(last["data"] + last["steps"] * STEP_BYTES[last["layout"]]))
    exact[:] = data[: len(exact)]  # the worst case may be far larger than what the weights took
    return Panels(table[:count].copy(), order[:entries].copy(), exact)


def pack_quads(
    matrix: NDArray[np.int16], amax: int, isa: int | None = None, prove: bool = True, taps: int = 1
) -> Panels:
    """Pack folded weights ``[K, N]``, K a multiple of 4. ``prove=False`` skips the search for exact 16-bit sums.

    isa: number of the instruction set to pack for; None: that in force. taps: of the kernel of a convolution, whose
    neighbouring rows share all activations but those of one tap.
    """
    return _pack_c(matrix, amax, isa, taps) if prove and _core is not None else pack_pairs16(matrix)


def pack_bytes(b: NDArray[Any], zero_point: NDArray[np.int32]) -> tuple[Panels, NDArray[np.int32]]:
    """Panels of uint8 or int8 ``[K, N]`` with a zero point per column, and the folded column sums.

    What packing without a proof comes to, in one pass: for matrices that are used once.
    """
    k, columns = b.shape
    if _core is None:
        folded = np.zeros((k + -k % 4, columns), np.int16)
        np.subtract(b, zero_point, out=folded[:k], dtype=np.int16, casting="unsafe")
        return pack_pairs16(folded), folded.sum(axis=0, dtype=np.int32)
    order = np.arange(-(-k // 4), dtype=np.int32)
    data = aligned_bytes(-(-columns // NR) * len(order) * STEP_BYTES[PAIRS16])
    sums = np.empty(columns, np.int32)
    layout = _core.lib.pyq_pack_bytes(
        _core.ffi.from_buffer("uint8_t[]", np.ascontiguousarray(b)),
        b.dtype == np.int8,
        k,
        columns,
        _core.ffi.from_buffer("int32_t[]", np.ascontiguousarray(np.broadcast_to(zero_point, (columns,)), np.int32)),
        _core.ffi.from_buffer("uint8_t[]", data, require_writable=True),
        _core.ffi.from_buffer("int32_t[]", sums, require_writable=True),
    )
    return _in_layout(columns, layout, order, data[: data.size * STEP_BYTES[layout] // STEP_BYTES[PAIRS16]]), sums


def join(groups: list[Panels], row_offsets: list[int], columns: int) -> Panels:
    """Panels of several groups as one list: group g reads at ``row_offsets[g]``, writes ``columns`` columns further."""
    tables = []
    data_start = order_start = 0
    for index, (group, row_offset) in enumerate(zip(groups, row_offsets, strict=True)):
        table = group.table.copy()
        table["data"] += data_start
        table["order"] += order_start
        table["column"] += index * columns
        table["row_offset"] = row_offset
        data_start += len(group.data)
        order_start += len(group.order)
        tables.append(table)
    data = aligned_bytes(data_start)
    np.concatenate([group.data for group in groups], out=data)
    return Panels(np.concatenate(tables), np.concatenate([group.order for group in groups]), data)


def segment_weights(panels: Panels, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A segment as ``(order [steps], weights int32 [steps, rows per step, NR])``: 4 bytes of a quad, or 1 tap."""
    segment = panels.table[index]
    steps, layout, start = int(segment["steps"]), int(segment["layout"]), int(segment["data"])
    order = panels.order[segment["order"] : segment["order"] + steps]
    raw = panels.data[start : start + steps * STEP_BYTES[layout]]
    weights: NDArray[Any]
    if layout == QUADS32 or layout in GROUP_SIZE:
        weights = raw.view(np.int8).reshape(steps, NR, 4).transpose(0, 2, 1)
    elif layout in WORDS:
        halves = raw.view(np.int16 if layout == PAIRS16 else np.int8).reshape(steps, 2, NR, 2)  # [_, k // 2, _, k % 2]
        weights = halves.transpose(0, 1, 3, 2).reshape(steps, 4, NR)
    else:
        weights = raw.view(np.int16).reshape(steps // 2, NR, 2).transpose(0, 2, 1).reshape(steps, 1, NR)
    return order, weights.astype(np.int32)


def unpack(panels: Panels, entries: int, columns: int, groups: int) -> NDArray[np.int32]:
    """The folded weights ``[groups, rows, columns / groups]`` again; ``entries`` quads (or taps) each."""
    rows_per_step = 1 if len(panels.table) and panels.table["layout"][0] == TAPS16 else 4
    full = np.zeros((entries, rows_per_step, columns + NR), np.int32)
    for index, segment in enumerate(panels.table):
        order, weights = segment_weights(panels, index)
        first, width = int(segment["column"]), int(segment["columns"])
        np.add.at(full[:, :, first : first + width], order, weights[:, :, :width])
    matrix = full[:, :, :columns].reshape(entries * rows_per_step, groups, columns // groups)
    return matrix.transpose(1, 0, 2)

"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any

from pyq.backends import ISA_NAMES
from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, NR, PAIRS8, PAIRS8W, PAIRS16, QUADS8, QUADS8P2, QUADS8P4, TAPS16

from .host import AVX2, SCALAR, available_isas

HEIGHTS: dict[tuple[int, int], tuple[int, ...]] = {
    **{(SCALAR, layout): (1,) for layout in range(len(LAYOUT_NAMES))},
    (AVX2, PAIRS16): (1, 2, 3, 4, 6),
    (AVX2, PAIRS8W): (1, 2, 3, 4, 5, 6),
    (AVX2, PAIRS8): (1, 2, 3, 4, 5, 6),
    (AVX2, QUADS8): (1, 2, 3, 4),
    (AVX2, QUADS8P2): (1, 2, 3, 4),
    (AVX2, QUADS8P4): (1, 2, 3, 4),
    (AVX2, TAPS16): (1, 2, 4),
}
"""Rows of the tiles for which there is a microkernel, by instruction set and layout."""

MAX_MR = max(max(heights) for heights in HEIGHTS.values())

MICROKERNELS = [(isa, layout, mr) for (isa, layout), heights in HEIGHTS.items() for mr in heights]


def tallest(isa: int) -> list[list[int]]:
    """By layout, and by how many rows are left (0 to MAX_MR): the rows of the tallest tile that fits."""
    by_layout = [HEIGHTS[isa, layout] for layout in range(len(LAYOUT_NAMES))]
    return [
        [max((mr for mr in heights if mr <= left), default=0) for left in range(MAX_MR + 1)] for heights in by_layout
    ]


def _record(operation: str, name: str, isa: int, layout: str, mr: int, p: int) -> dict[str, Any]:
    return {
        "name": f"numba_{name}",
        "operation": operation,
        "backend": "numba",
        "isa": ISA_NAMES[isa],
        "layout": layout,
        "mr": mr,
        "nr": NR,
        "p": p,
        "runnable": isa in available_isas(),
    }


def kernels() -> list[dict[str, Any]]:
    """A record for each kernel, with the fields of `pyq.kernels_available()`.

    `tile.tiles(isa, layout, ...)` with `mr` rows runs the microkernel of a record and no other. The last record is
    the epilogue, `epilogue.finish`: loops that LLVM vectorizes for the target.
    """
    records = []
    for isa, layout, mr in MICROKERNELS:
        operation = "depthwise" if layout == TAPS16 else "gemm"
        name = LAYOUT_NAMES[layout]
        records.append(
            _record(operation, f"{ISA_NAMES[isa]}_{name}_{mr}x{NR}", isa, name, mr, GROUP_SIZE.get(layout, 1))
        )
    return [*records, _record("requantize", "requantize", SCALAR, "", 0, 0)]

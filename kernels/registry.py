"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any

from pyq.backends import ISA_NAMES
from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, NR, PAIRS8W, PAIRS16, QUADS8, QUADS8P2, QUADS8P4, QUADS32, TAPS16

from .host import AVX2, SCALAR, available_isas

HEIGHTS: dict[tuple[int, int], tuple[int, ...]] = {
    **{(SCALAR, layout): (1,) for layout in range(len(LAYOUT_NAMES))},
    (AVX2, PAIRS16): (1, 2, 3, 4, 6),
    (AVX2, PAIRS8W): (1, 2, 3, 4, 5, 6),
    (AVX2, QUADS32): (1, 2, 3, 4, 5, 6),
    (AVX2, QUADS8): (1, 2, 3, 4),
    (AVX2, QUADS8P2): (1, 2, 3, 4),
    (AVX2, QUADS8P4): (1, 2, 3, 4),
    (AVX2, TAPS16): (1, 2, 4),
}
"""Rows of the tiles for which there is a microkernel, by instruction set and layout."""

NARROW = NR // 2
"""Columns of the last panel up to which it is computed by kernels of their own."""

NARROW_HEIGHTS = {(AVX2, layout): (4, 6) for layout in (PAIRS8W, QUADS32, QUADS8, QUADS8P2, QUADS8P4)}

MAX_MR = max(max(heights) for heights in HEIGHTS.values())

MICROKERNELS = [
    (isa, layout, mr, nr)
    for table, nr in ((HEIGHTS, NR), (NARROW_HEIGHTS, NARROW))
    for (isa, layout), heights in table.items()
    for mr in heights
]


def best_tile(isa: int, layout: int, columns: int, left: int) -> tuple[int, int]:
    """Rows and columns of the tile to compute next, of `left` rows and a panel of `columns` columns: of the narrowest
    that suffice the tallest that fits.
    """
    tiles = [(nr, -mr) for other, number, mr, nr in MICROKERNELS if (other, number) == (isa, layout)]
    nr, mr = min(((nr, mr) for nr, mr in tiles if nr >= columns and -mr <= left), default=(NR, 0))
    return -mr, nr


def _record(operation: str, name: str, isa: int, layout: str, mr: int, nr: int, p: int) -> dict[str, Any]:
    return {
        "name": f"numba_{name}",
        "operation": operation,
        "backend": "numba",
        "isa": ISA_NAMES[isa],
        "layout": layout,
        "mr": mr,
        "nr": nr,
        "p": p,
        "runnable": isa in available_isas(),
    }


def kernels() -> list[dict[str, Any]]:
    """A record for each kernel, with the fields of `pyq.kernels_available()`.

    `tile.tiles(isa, layout, nr, ...)` with `mr` rows runs the microkernel of a record and no other. The last record is
    the epilogue, `epilogue.finish`: loops that LLVM vectorizes for the target.
    """
    records = []
    for isa, layout, mr, nr in MICROKERNELS:
        operation = "depthwise" if layout == TAPS16 else "gemm"
        name = LAYOUT_NAMES[layout]
        records.append(
            _record(operation, f"{ISA_NAMES[isa]}_{name}_{mr}x{nr}", isa, name, mr, nr, GROUP_SIZE.get(layout, 1))
        )
    return [*records, _record("requantize", "requantize", SCALAR, "", 0, NR, 0)]

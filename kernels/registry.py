"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyq import windows
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


class Window(NamedTuple):
    """A depthwise microkernel: side of the kernel, stride along a line (0: any), output pixels of a tile."""

    isa: int
    side: int
    stride: int
    mr: int


MAX_WINDOW = 4
"""Output pixels, at most."""

WINDOWS = [
    *(Window(isa, side, 0, 1) for isa in (SCALAR, AVX2) for side in windows.KERNELS),
    *(
        Window(AVX2, side, stride, mr)
        for side in windows.KERNELS
        for stride in windows.STRIDES
        for mr in range(2, MAX_WINDOW + 1)
    ),
]


def best_window(isa: int, side: int, stride: int, left: int) -> int:
    """The number in `WINDOWS` of the tallest tile that fits, where `left` output pixels are left."""
    fitting = [
        (window.mr, number)
        for number, window in enumerate(WINDOWS)
        if (window.isa, window.side) == (isa, side) and window.stride in (0, stride) and window.mr <= left
    ]
    return max(fitting)[1]


def window_name(window: Window) -> str:
    """What csrc/kernels.def calls its twin."""
    stride = f"s{window.stride}" if window.stride else ""
    return f"{ISA_NAMES[window.isa]}_window{window.side}{stride}_{window.mr}x{NR}"


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

    `tile.tiles(isa, layout, nr, ...)` with `mr` rows runs the microkernel of a record and no other; `depthwise.window`
    those of `WINDOWS`, by their numbers. The last record is the epilogue, `epilogue.finish`, for any target.
    """
    records = []
    for isa, layout, mr, nr in MICROKERNELS:
        operation = "depthwise" if layout == TAPS16 else "gemm"
        name = LAYOUT_NAMES[layout]
        records.append(
            _record(operation, f"{ISA_NAMES[isa]}_{name}_{mr}x{nr}", isa, name, mr, nr, GROUP_SIZE.get(layout, 1))
        )
    for window in WINDOWS:
        records.append(_record("depthwise", window_name(window), window.isa, "", window.mr, NR, 1))
    return [*records, _record("requantize", "requantize", SCALAR, "", 0, NR, 0)]

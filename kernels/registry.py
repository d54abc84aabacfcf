"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyq import windows
from pyq.backends import ISA_NAMES
from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, NR, PAIRS8W, PAIRS16, QUADS8, QUADS8P2, QUADS8P4, QUADS32, TAPS16

from .host import AVX2, AVX512VNNI, ISAS, SCALAR, available_isas, permutes_bytes

HEIGHTS: dict[tuple[int, int], tuple[int, ...]] = {
    **{(SCALAR, layout): (1,) for layout in range(len(LAYOUT_NAMES))},
    (AVX2, PAIRS16): (1, 2, 3, 4, 6),
    (AVX2, PAIRS8W): (1, 2, 3, 4, 5, 6),
    (AVX2, QUADS32): (1, 2, 3, 4, 5, 6),
    (AVX2, QUADS8): (1, 2, 3, 4),
    (AVX2, QUADS8P2): (1, 2, 3, 4),
    (AVX2, QUADS8P4): (1, 2, 3, 4),
    (AVX2, TAPS16): (1, 2, 4),
    (AVX512VNNI, QUADS32): (1, 2, 3, 4, 5, 6, 7, 8),
    (AVX512VNNI, QUADS8): (1, 4, 8),
    (AVX512VNNI, QUADS8P2): (1, 4, 8),
    (AVX512VNNI, QUADS8P4): (1, 4, 8),
}
"""Rows of the tiles for which there is a microkernel, by instruction set and layout."""

NARROW = NR // 2
"""Columns of the last panel up to which it is computed by kernels of their own."""

NARROW_HEIGHTS = {
    **{(AVX2, layout): (4, 6) for layout in (PAIRS8W, QUADS32, QUADS8, QUADS8P2, QUADS8P4)},
    (AVX512VNNI, QUADS32): (4, 8),
}

PAIR = 2 * NR
"""Columns of two panels, which some kernels compute together."""

PAIR_HEIGHTS = {(AVX512VNNI, QUADS32): (1, 2, 3, 4)}

MAX_MR = max(max(heights) for heights in HEIGHTS.values())


class Microkernel(NamedTuple):
    """Instruction set, layout of the weights, rows and columns of the tile."""

    isa: int
    layout: int
    mr: int
    nr: int


MICROKERNELS = [
    Microkernel(isa, layout, mr, nr)
    for table, nr in ((HEIGHTS, NR), (NARROW_HEIGHTS, NARROW), (PAIR_HEIGHTS, PAIR))
    for (isa, layout), heights in table.items()
    for mr in heights
]


def best_tile(isa: int, layout: int, columns: int, left: int) -> int:
    """The number in `MICROKERNELS` of the next tile, where `left` rows are left of a panel of `columns` columns.

    Of the best instruction set up to `isa` that has the layout: the narrowest that suffices, then the tallest. -1 when
    there is none, for the columns of two panels.
    """
    fitting = [
        (kernel.isa, -kernel.nr, kernel.mr, number)
        for number, kernel in enumerate(MICROKERNELS)
        if kernel.isa in available_isas()[: isa + 1]
        and kernel.layout == layout
        and kernel.nr >= columns
        and kernel.mr <= left
    ]
    return max(fitting)[-1] if fitting else -1


class Window(NamedTuple):
    """A depthwise microkernel: side of the kernel, stride along a line (0: any), output pixels of a tile.

    quads: for weights that are bytes, of which four taps are taken together, with AVX512-VBMI.
    """

    isa: int
    side: int
    stride: int
    mr: int
    quads: bool = False

    @property
    def runnable(self) -> bool:
        """Whether it may be compiled here."""
        return permutes_bytes(self.isa) if self.quads else self.isa in available_isas()


MAX_WINDOW = 4
"""Output pixels, at most."""

WINDOWS = [
    *(Window(isa, side, 0, 1) for isa in ISAS for side in windows.KERNELS),
    *(Window(AVX512VNNI, side, 0, 1, quads=True) for side in windows.KERNELS),
    *(
        Window(isa, side, stride, mr, quads)
        for isa, quads in ((AVX2, False), (AVX512VNNI, False), (AVX512VNNI, True))
        for side in windows.KERNELS
        for stride in windows.STRIDES
        for mr in range(2, MAX_WINDOW + 1)
    ),
]


def best_window(isa: int, side: int, stride: int, left: int, quads: bool = False) -> int:
    """The number in `WINDOWS` of the tallest tile that fits, where `left` output pixels are left; as `best_tile`."""
    fitting = [
        (window.isa, window.mr, number)
        for number, window in enumerate(WINDOWS)
        if window.isa <= isa
        and window.runnable
        and (window.side, window.quads) == (side, quads)
        and window.stride in (0, stride)
        and window.mr <= left
    ]
    return max(fitting)[-1] if fitting else -1


def window_name(window: Window) -> str:
    """What csrc/kernels.def calls its twin."""
    stride, quads = f"s{window.stride}" if window.stride else "", "quads_" if window.quads else ""
    return f"{ISA_NAMES[window.isa]}_{quads}window{window.side}{stride}_{window.mr}x{NR}"


def _record(
    operation: str, name: str, isa: int, layout: str, mr: int, nr: int, p: int, runnable: bool
) -> dict[str, Any]:
    return {
        "name": f"numba_{name}",
        "operation": operation,
        "backend": "numba",
        "isa": ISA_NAMES[isa],
        "layout": layout,
        "mr": mr,
        "nr": nr,
        "p": p,
        "runnable": runnable,
    }


def kernels() -> list[dict[str, Any]]:
    """A record for each kernel, with the fields of `pyq.kernels_available()`.

    `tile.tiles(isa, layout, nr, ...)` with `mr` rows runs the microkernel of a record and no other; `depthwise.window`
    those of `WINDOWS`, by their numbers. The last record is the epilogue, `epilogue.finish`, for any target.
    """
    records = []
    for isa, layout, mr, nr in MICROKERNELS:
        operation = "depthwise" if layout == TAPS16 else "gemm"
        name, p, runnable = LAYOUT_NAMES[layout], GROUP_SIZE.get(layout, 1), isa in available_isas()
        records.append(_record(operation, f"{ISA_NAMES[isa]}_{name}_{mr}x{nr}", isa, name, mr, nr, p, runnable))
    for window in WINDOWS:
        name = window_name(window)
        records.append(_record("depthwise", name, window.isa, "", window.mr, NR, 1, window.runnable))
    return [*records, _record("requantize", "requantize", SCALAR, "", 0, NR, 0, True)]

"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any

from pyq.panels import LAYOUT_NAMES, NR, PAIRS16, QUADS8, TAPS16

from .host import AVX2, ISA_NAMES, SCALAR, available_isas

MICROKERNELS = (
    ("gemm", SCALAR, PAIRS16, 1, 1),
    ("gemm", SCALAR, QUADS8, 1, 1),
    ("depthwise", SCALAR, TAPS16, 1, 1),
    ("gemm", AVX2, PAIRS16, 1, 1),
    ("gemm", AVX2, PAIRS16, 2, 1),
    ("gemm", AVX2, PAIRS16, 4, 1),
    ("gemm", AVX2, QUADS8, 1, 2),
    ("gemm", AVX2, QUADS8, 2, 2),
    ("gemm", AVX2, QUADS8, 4, 2),
    ("depthwise", AVX2, TAPS16, 1, 2),
    ("depthwise", AVX2, TAPS16, 2, 2),
    ("depthwise", AVX2, TAPS16, 4, 2),
)
"""Operation, instruction set, panel layout, rows of the tile, steps that share a widening multiply."""


def kernels() -> list[dict[str, Any]]:
    """One record for each microkernel, with the fields of `pyq.kernels_available()`.

    `tile.tiles(isa, layout, ...)` with `mr` rows runs the microkernel of that record and no other.
    """
    return [
        {
            "name": f"numba_{ISA_NAMES[isa]}_{LAYOUT_NAMES[layout]}_{mr}x{NR}",
            "operation": operation,
            "backend": "numba",
            "isa": ISA_NAMES[isa],
            "layout": LAYOUT_NAMES[layout],
            "mr": mr,
            "nr": NR,
            "p": p,
            "runnable": isa in available_isas(),
        }
        for operation, isa, layout, mr, p in MICROKERNELS
    ]

"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any

from pyq.panels import LAYOUT_NAMES, NR, PAIRS16, QUADS8, TAPS16

from .host import AVX2, ISA_NAMES, SCALAR, available_isas

_LAYOUT_OPERATIONS = {PAIRS16: "gemm", QUADS8: "gemm", TAPS16: "depthwise"}

MICROKERNELS = (
    (SCALAR, PAIRS16, 1, 1),
    (SCALAR, QUADS8, 1, 1),
    (SCALAR, TAPS16, 1, 1),
    (AVX2, PAIRS16, 1, 1),
    (AVX2, PAIRS16, 2, 1),
    (AVX2, PAIRS16, 4, 1),
    (AVX2, QUADS8, 1, 2),
    (AVX2, QUADS8, 2, 2),
    (AVX2, QUADS8, 4, 2),
    (AVX2, TAPS16, 1, 2),
    (AVX2, TAPS16, 2, 2),
    (AVX2, TAPS16, 4, 2),
)
"""Instruction set, panel layout, rows of the tile, steps that share a widening multiply."""


def kernels() -> list[dict[str, Any]]:
    """A record for each kernel, with the fields of `pyq.kernels_available()`.

    `tile.tiles(isa, layout, ...)` with `mr` rows runs the microkernel of a record and no other. The last record is
    the epilogue, `epilogue.finish_rows`: loops that LLVM vectorizes for the target.
    """
    rows = [
        (
            _LAYOUT_OPERATIONS[layout],
            f"{ISA_NAMES[isa]}_{LAYOUT_NAMES[layout]}_{mr}x{NR}",
            isa,
            LAYOUT_NAMES[layout],
            mr,
            p,
        )
        for isa, layout, mr, p in MICROKERNELS
    ]
    return [
        {
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
        for operation, name, isa, layout, mr, p in [*rows, ("requantize", "requantize", SCALAR, "", 0, 0)]
    ]

"""The Numba rows of the kernel registry. Listing them compiles nothing."""

from __future__ import annotations

from typing import Any

from pyq.backends import ISA_NAMES
from pyq.panels import LAYOUT_NAMES, NR, PAIRS16, QUADS8, TAPS16

from .host import AVX2, SCALAR, available_isas

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
    the epilogue, `epilogue.finish_rows`: loops that LLVM vectorizes for the target.
    """
    records = []
    for isa, layout, mr, p in MICROKERNELS:
        operation = "depthwise" if layout == TAPS16 else "gemm"
        layout_name = LAYOUT_NAMES[layout]
        records.append(_record(operation, f"{ISA_NAMES[isa]}_{layout_name}_{mr}x{NR}", isa, layout_name, mr, p))
    return [*records, _record("requantize", "requantize", SCALAR, "", 0, 0)]

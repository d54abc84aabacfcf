"""How every kernel is compiled, and which instruction sets that gives.

What counts is not the CPU but the target that Numba compiles for (`NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` change
it): an LLVM intrinsic that the target lacks does not raise, it aborts the process.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from pyq.backends import ISA_NAMES

Bytes = NDArray[np.uint8]
Int16s = NDArray[np.int16]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Floats = NDArray[np.float32]

SCALAR, AVX2, AVX512VNNI = ISAS = range(len(ISA_NAMES))
"""Instruction sets, by their numbers in ISA_NAMES: each has what those before it have."""

AVX2_FEATURES = {"+avx2"}
FEATURES: tuple[set[str], ...] = (
    set(),
    AVX2_FEATURES,
    AVX2_FEATURES | {"+avx512f", "+avx512bw", "+avx512vl", "+avx512vnni"},
)
"""What LLVM calls those that a target needs."""

VBMI = "+avx512vbmi"
"""Of some CPUs with AVX-512 VNNI: bytes are permuted in one instruction."""


def _can_cache() -> bool:
    """Whether Numba finds a folder for its cache: a read-only installation without a home directory has none."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


OPTIONS: dict[str, Any] = {"nogil": True, "cache": _can_cache(), "error_model": "numpy"}
"""Options of every compiled function. `fastmath` stays off, as it contracts and reorders, and so changes bits.
`error_model="numpy"`: a division by zero gives inf or NaN, as in NumPy."""


def jit(*signatures: Any, allocates: bool = False) -> Any:
    """`numba.njit` with `OPTIONS`; with signatures, compile (or load from the cache) at once and never again.

    Only where `allocates` is set may the function make arrays. Where it is not, Numba leaves out its run time, which
    would count the references of every slice: 50 locked instructions for a tile.
    """
    return numba.njit(list(signatures) or None, **{**OPTIONS, "_nrt": allocates})


def inlined() -> Any:
    """`numba.njit` with `OPTIONS`, for a function that is always inlined: a call costs more than a row of a tile."""
    return numba.njit(forceinline=True, **{**OPTIONS, "_nrt": False})


def array(dtype: Any, ndim: int = 1) -> Any:
    """Type of a C-contiguous array that is only read: writable and read-only ones then share one compilation."""
    return numba.types.Array(dtype, ndim, "C", readonly=True)


@cache
def _features() -> frozenset[str]:
    _triple, _cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(features.split(","))


@cache
def available_isas() -> tuple[int, ...]:
    """Instruction sets that compiled kernels may use here."""
    return tuple(isa for isa in ISAS if FEATURES[isa] <= _features())


def permutes_bytes(isa: int) -> bool:
    """Whether kernels for an instruction set may use AVX512-VBMI."""
    return isa == AVX512VNNI and isa in available_isas() and VBMI in _features()


def default_isa() -> int:
    """The best available instruction set, or lower if `PYQ_ISA` caps it."""
    cap = os.environ.get("PYQ_ISA")
    return min(available_isas()[-1], ISA_NAMES.index(cap) if cap in ISA_NAMES else ISAS[-1])


def drop_stale_cache(folder: Path) -> None:
    """Remove cached code older than any source: Numba itself only watches the file that a function stands in."""
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for cached in folder.glob("__pycache__/*.nb[ic]"):
        try:
            if cached.stat().st_mtime < newest:
                cached.unlink()
        except OSError:  # another process was faster, or the folder is read-only, and then nobody edits it either
            continue


drop_stale_cache(Path(__file__).parent)

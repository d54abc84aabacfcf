"""The compiled epilogue against the reference, byte for byte (test_epilogues.py has those written in C)."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range
from guarded import fatal_signal, guarded

from pyq import reference
from pyq.backends import Epilogue, Residual
from pyq.kernels.backend import NumbaBackend
from pyq.lowering import lower_epilogue
from pyq.qparams import QParams

NUMBA = NumbaBackend()


def check(acc: np.ndarray, epilogue: Epilogue) -> None:
    with np.errstate(over="ignore"):
        assert_same(NUMBA.requantize(acc, epilogue), reference.requantize(acc, epilogue), repr(epilogue))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1.5, 1e-3])
def test_ties_and_clamps(dtype: str, multiplier: float) -> None:
    acc = np.arange(-1300, 1300, dtype=np.int32)[:, None]
    scale = np.array([multiplier], np.float32)
    for zero_point in (np.iinfo(dtype).min, 0, 5, np.iinfo(dtype).max):
        for low, high in ((None, None), (0, 100), (zero_point, 127)):
            check(acc, Epilogue(np.dtype(dtype), None, scale, None, zero_point, low, high))


def test_sums_that_float32_must_round() -> None:
    near = np.arange(-40, 40)
    acc = np.concatenate([sign * 2**power + near for power in (24, 25, 30) for sign in (1, -1)]).astype(np.int32)
    for dtype in ("uint8", "int8", "float32"):
        check(np.stack([acc, acc], 1), Epilogue(np.dtype(dtype), None, np.array([2.0**-18, 1e-7], np.float32)))


def test_multiply_and_add_are_two_roundings(rng: np.random.Generator) -> None:
    acc = rng.integers(-(2**24), 2**24, (400, 37)).astype(np.int32)
    scale = rng.uniform(0.1, 1, 37).astype(np.float32)
    offset = (-acc[0].astype(np.float64) * scale).astype(np.float32)  # cancels in row 0: a fused product shows there
    fused = (acc[0].astype(np.float64) * scale + offset).astype(np.float32)
    epilogue = Epilogue(np.dtype(np.float32), None, scale, offset)
    assert not np.array_equal(fused, reference.requantize(acc, epilogue)[0])
    check(acc, epilogue)


@pytest.mark.parametrize("multiplier", [1e-45, 1e-20, 1.0, 1e20, 3.4028235e38])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8"])
def test_denormals_and_infinities(multiplier: float, dtype: str) -> None:
    sums = [-(2**31), -(2**24) - 1, -2, -1, 0, 1, 2, 2**24 + 1, 2**31 - 1]
    scale = np.full(len(sums), multiplier, np.float32)
    for low, high in ((None, None), (3.0, 100.0)):
        check(np.array([sums], np.int32), Epilogue(np.dtype(dtype), None, scale, None, 0, low, high))


@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8", "int8"])
@pytest.mark.parametrize("columns", [1, 7, 16, 17, 100])
@pytest.mark.parametrize("leading", [(), (3,), (2, 5), (0,)])
def test_all_parts_together(dtype: str, columns: int, leading: tuple[int, ...], rng: np.random.Generator) -> None:
    parts: dict[str, Any] = {"bias": full_range(rng, (columns,), np.int32)}  # the sum with it wraps
    if dtype != "int32":
        parts["multiplier"] = rng.uniform(1e-8, 1e-7, columns).astype(np.float32)
    if dtype == "float32":
        parts |= {"offset": rng.standard_normal(columns).astype(np.float32), "low": 0.0, "high": 6.0}
    if dtype in ("uint8", "int8"):
        parts |= {"zero_point": 3, "table": rng.permutation(256).astype(np.uint8)}
    check(full_range(rng, (*leading, columns), np.int32), Epilogue(np.dtype(dtype), **parts))


@pytest.mark.parametrize("edge", ["start", "end"])
@pytest.mark.parametrize("kind", ["int32", "float32", "uint8", "int8", "residual"])
def test_stays_within_its_buffers(kind: str, edge: str, rng: np.random.Generator) -> None:
    """Panels of every number of columns; two rows, so that the end of the first one counts as well."""
    dtype = np.dtype("uint8" if kind == "residual" else kind)
    for columns in range(1, 34):
        acc = full_range(rng, (2, columns), np.int32)
        parts: dict[str, Any] = {"bias": guarded(full_range(rng, (columns,), np.int32), edge)}
        residual = None
        if kind != "int32":
            parts["multiplier"] = guarded(rng.uniform(1e-8, 1e-7, columns).astype(np.float32), edge)
        if kind == "float32":
            parts["offset"] = guarded(rng.standard_normal(columns).astype(np.float32), edge)
        if kind == "residual":
            parts["residual"] = Residual(QParams(0.1, 3), QParams(0.2, -7, "int8"), 0.3)
            residual = guarded(full_range(rng, (2, columns), "int8"), edge)
        epilogue, out = Epilogue(dtype, **parts), guarded(np.zeros((2, columns), dtype), edge)
        NUMBA.requantize(guarded(acc, edge), epilogue, out, residual)
        assert_same(out, reference.requantize(acc, epilogue, residual), f"{columns} columns")


@pytest.mark.parametrize("columns", [15, 16])
def test_the_guard_pages_would_tell(columns: int, rng: np.random.Generator) -> None:
    out = guarded(np.zeros(2 * columns - 1, np.uint8))
    acc = full_range(rng, (2, columns), np.int32)
    epilogue = Epilogue(np.dtype(np.uint8), None, np.ones(columns, np.float32))
    lowered = NUMBA.prepare(epilogue, lower_epilogue(epilogue, columns), columns)
    assert fatal_signal(lambda: NUMBA.finish(acc, lowered, out, None)) == signal.SIGSEGV

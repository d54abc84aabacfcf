"""Every epilogue of the registry, called directly, and the epilogue of every backend: the same bits everywhere."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range, wide, wrapped
from guarded import fatal_signal, guarded
from hypothesis import given
from hypothesis import strategies as st

import pyq
from pyq._core import ffi, lib
from pyq.backends import Epilogue, Residual, backend
from pyq.lowering import lower_residual
from pyq.qparams import QParams

NR = 16
CODES = {"int32": lib.PYQ_OUT_INT32, "float32": lib.PYQ_OUT_FLOAT32, "uint8": lib.PYQ_OUT_QUANTIZED}
CODES["int8"] = CODES["uint8"]

_RUNNABLE = {k.name for k in pyq.kernels_available() if k.operation == "requantize" and k.runnable}
_ROWS = [lib.pyq_kernels[i] for i in range(lib.pyq_kernel_count())]
EPILOGUES = {name: k.epilogue for k in _ROWS if (name := ffi.string(k.name).decode()) in _RUNNABLE}
EPILOGUES["chosen"] = lib.pyq_select_epilogue
"""Not one of them but what picks one: with AVX512-VBMI, another one for tables."""
every_epilogue = pytest.mark.parametrize("name", EPILOGUES)
seeds = st.integers(0, 2**32 - 1)


def per_column(rng: np.random.Generator, columns: int, dtype: str) -> dict[str, Any]:
    """Arguments of an epilogue that use all there is for `dtype`, sums of full range in mind."""
    arguments: dict[str, Any] = {"dtype": np.dtype(dtype), "bias": full_range(rng, (columns,), np.int32)}
    if dtype == "int32":
        return arguments
    arguments["multiplier"] = np.exp2(rng.uniform(-32, -20, columns)).astype(np.float32)
    if dtype == "float32":
        arguments["offset"] = rng.normal(0, 100, columns).astype(np.float32)
        return {**arguments, "low": -300.5, "high": 400.25}
    limits = np.iinfo(dtype)
    arguments["zero_point"] = int(rng.integers(limits.min, limits.max + 1))
    arguments["low"], arguments["high"] = sorted(rng.integers(limits.min, limits.max + 1, 2).tolist())
    arguments["table"] = full_range(rng, (256,), np.uint8)
    if rng.random() < 0.5:
        arguments["residual"] = Residual(params(rng), params(rng), float(np.exp2(rng.uniform(-2, 2))))
    return arguments


def params(rng: np.random.Generator) -> QParams:
    """Of uint8 or int8, with bounds within the range of the type."""
    dtype = rng.choice(["uint8", "int8"])
    limits = np.iinfo(dtype)
    low, high = limits.min + np.sort(rng.choice(256, 2, replace=False))
    zero_point = rng.integers(limits.min, limits.max + 1)
    return QParams(np.exp2(rng.uniform(-2, 2)).astype(np.float32), zero_point, dtype, qmin=low, qmax=high)


def addend(rng: np.random.Generator, e: Epilogue, shape: tuple[int, ...]) -> np.ndarray | None:
    """A residual for the epilogue, if it adds one."""
    return None if e.residual is None else full_range(rng, shape, e.residual.operand.dtype)


def expected(acc: np.ndarray, e: Epilogue, residual: np.ndarray | None = None) -> np.ndarray:
    """docs/numerics.md in NumPy: one float32 operation after the other."""
    sums = wrapped(acc.astype(np.int64) + (0 if e.bias is None else e.bias))
    if e.dtype == np.int32:
        return sums
    with np.errstate(over="ignore", under="ignore"):
        y = sums.astype(np.float32) * e.multiplier
        if e.dtype == np.float32:
            y = y if e.offset is None else y + e.offset
            low, high = (-np.inf if e.low is None else e.low), (np.inf if e.high is None else e.high)
            return np.where(y < low, np.float32(low), np.where(y > high, np.float32(high), y))
    if e.residual is not None:
        p, r = e.residual.product, e.residual.operand
        product = np.clip(np.rint(y), p.qmin - p.zero_point, p.qmax - p.zero_point).astype(np.float32)
        total = product * p.scale + (wide(residual) - r.zero_point).astype(np.float32) * r.scale
        y = total / np.float32(e.residual.scale)
        assert y.dtype == np.float32
    limits = np.iinfo(e.dtype)
    low = limits.min if e.low is None else e.low
    high = limits.max if e.high is None else e.high
    integers = np.clip(np.rint(y), low - e.zero_point, high - e.zero_point).astype(np.int32) + e.zero_point
    stored = integers.astype(e.dtype)
    return stored if e.table is None else e.table[stored.view(np.uint8)].view(e.dtype)


def run(
    name: str,
    acc: np.ndarray,
    e: Epilogue,
    edge: str | None = None,
    short: str | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """What the epilogue `name` makes of a tile [rows, NR], in an output two columns wider than the tile.

    residual: [rows, NR], for an epilogue that adds one; it is laid out as the output. edge and short as in
    test_kernels.py: guard pages, and the buffer that lacks its last element.
    """

    def put(which: str, values: np.ndarray | None) -> np.ndarray | None:
        if values is None or edge is None:
            return values
        return guarded(values[:-1] if which == short else values, edge)

    stride = NR + 2
    needed = len(acc) * stride - 2  # the last row has no columns to spare
    out = put("out", np.full(needed, 0x55, e.dtype))
    tile = put("tile", acc.reshape(-1))
    if residual is not None:
        residual = put("residual", np.pad(residual, ((0, 0), (0, 2))).reshape(-1)[:needed])
    c_epilogue, *_kept = struct_of(e, put)
    address = ffi.cast("int32_t *", tile.ctypes.data), ffi.cast("void *", out.ctypes.data)
    added = ffi.cast("uint8_t *", 0 if residual is None else residual.ctypes.data)
    epilogue = EPILOGUES[name](c_epilogue) if name == "chosen" else EPILOGUES[name]
    epilogue(address[0], len(acc), c_epilogue, 0, added, address[1], stride)
    whole = np.append(out, np.full(2, 0x55, e.dtype)).reshape(len(acc), stride)
    assert (whole[:, NR:] == 0x55).all(), "wrote beyond the columns of the tile"
    return whole[:, :NR].copy()


def struct_of(e: Epilogue, put: Callable[[str, np.ndarray | None], np.ndarray | None]) -> list[Any]:
    """The pyq_epilogue of e, with arrays that `put` has placed, and what it points to."""
    arrays = {which: put(which, getattr(e, which)) for which in ("bias", "multiplier", "offset", "table")}
    quantized = e.dtype.itemsize == 1
    limits = np.iinfo(e.dtype if quantized else np.int32)
    low = e.low if e.low is not None else limits.min if quantized else -np.inf
    high = e.high if e.high is not None else limits.max if quantized else np.inf
    fields = {which: ffi.NULL if array is None else array.ctypes.data for which, array in arrays.items()}
    total = None if e.residual is None else ffi.new("pyq_sum *", lower_residual(e.residual))
    c_epilogue = ffi.new(
        "pyq_epilogue *",
        {
            "type": CODES[e.dtype.name],
            "zero_point": e.zero_point,
            "bias": ffi.cast("int32_t *", fields["bias"]),
            "multiplier": ffi.cast("float *", fields["multiplier"]),
            "offset": ffi.cast("float *", fields["offset"]),
            "table": ffi.cast("uint8_t *", fields["table"]),
            "low": low - e.zero_point,
            "high": high - e.zero_point,
            "sum": ffi.NULL if total is None else total,
        },
    )
    return [c_epilogue, total, arrays]


@every_epilogue
@given(seeds, st.integers(1, 8), st.sampled_from(list(CODES)), st.sampled_from([None, "end", "start"]))
def test_equals_the_numerics(name: str, seed: int, rows: int, dtype: str, edge: str | None) -> None:
    """Random everything, and with an edge, every array at a guard page."""
    rng = np.random.default_rng(seed)
    acc, e = full_range(rng, (rows, NR), np.int32), Epilogue(**per_column(rng, NR, dtype))
    residual = addend(rng, e, acc.shape)
    assert_same(run(name, acc, e, edge, residual=residual), expected(acc, e, residual), name)


@pytest.mark.parametrize(
    ("dtype", "short"),
    [(d, b) for d in CODES for b in ("tile", "out", "bias")]
    + [("float32", "multiplier"), ("float32", "offset"), ("int8", "multiplier"), ("uint8", "table")]
    + [("uint8", "residual")],
)
@every_epilogue
def test_the_guard_pages_would_tell(name: str, dtype: str, short: str, rng: np.random.Generator) -> None:
    e = Epilogue(**per_column(rng, NR, dtype))
    if short == "table":  # let every output be the last entry
        e = Epilogue(e.dtype, None, np.full(NR, 1, np.float32), None, 0, 255, 255, e.table)
    residual = None
    if short == "residual":
        e = replace(e, residual=Residual(params(rng), params(rng), 1.0))
        residual = addend(rng, e, (2, NR))
    acc = full_range(rng, (2, NR), np.int32)
    assert fatal_signal(lambda: run(name, acc, e, "end", short, residual)) == signal.SIGSEGV


@every_epilogue
@pytest.mark.parametrize("shift", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_every_tie_goes_to_even(name: str, shift: int, dtype: str) -> None:
    """Against Python's fractions: the multiplier 2**-shift is exact, and odd multiples of a half are ties."""
    limits = np.iinfo(dtype)
    zero = int(limits.max) // 2
    acc = np.arange(-300 << shift, 300 << shift, max(1, (1 << shift) // 4))
    acc = acc[: len(acc) // NR * NR].reshape(-1, NR).astype(np.int32)
    e = Epilogue(np.dtype(dtype), None, np.full(NR, 2.0**-shift, np.float32), zero_point=zero)
    rounded = [min(max(round(Fraction(int(a), 1 << shift)) + zero, limits.min), limits.max) for a in acc.ravel()]
    assert_same(run(name, acc, e), np.array(rounded, dtype).reshape(acc.shape), name)


@every_epilogue
@pytest.mark.parametrize(("low", "high"), [(0, 255), (3, 251), (17, 17), (0, 1)])
@pytest.mark.parametrize("zero_point", [0, 17, 255])
def test_around_the_clamps(name: str, low: int, high: int, zero_point: int) -> None:
    """All sums within 400 of the ones where a bound is reached."""
    multiplier = np.float32(0.0123456)
    edges = [round((bound - zero_point) / float(multiplier)) for bound in (low, high)]
    acc = np.concatenate([np.arange(edge - 400, edge + 400) for edge in edges]).astype(np.int32).reshape(-1, NR)
    e = Epilogue(np.dtype("uint8"), None, np.full(NR, multiplier), None, zero_point, low, high)
    assert_same(run(name, acc, e), expected(acc, e), name)
    assert {low, high} <= set(expected(acc, e).ravel().tolist()) <= set(range(low, high + 1))


@every_epilogue
@pytest.mark.parametrize("center", [2**24, -(2**24), 2**25, 2**31 - 600, -(2**31) + 600])
def test_sums_that_float32_must_round(name: str, center: int) -> None:
    """Beyond 2**24 the conversion to float32 rounds; a multiplier near 2**-18 puts the results around 64 to 8192."""
    acc = np.arange(center - 512, center + 512).astype(np.int32).reshape(-1, NR)
    for dtype, scale in (("float32", 1.0), ("uint8", 2.0**-17), ("int8", 2.0**-18 * 1.0001)):
        e = Epilogue(np.dtype(dtype), None, np.full(NR, scale, np.float32))
        assert_same(run(name, acc, e), expected(acc, e), f"{name} {dtype}")


SPECIAL = [-(2**31), -(2**24) - 1, -255, -2, -1, 0, 1, 2, 3, 127, 128, 255, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1]
MULTIPLIERS = [1e-45, 1.17549435e-38, 1e-20, 0.5, 1.0, 1.5, 1e20, 3.4028235e38, -1.0, 0.0]


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize(("low", "high"), [(None, None), (0.0, None), (-0.0, 6.0), (-1e30, 1e30)])
@pytest.mark.parametrize("offset", [None, 0.0, -0.0, 1e-45, 3e38])
def test_special_floats_have_the_same_bits_in_every_row(
    multiplier: float, low: float | None, high: float | None, offset: float | None
) -> None:
    """Denormals, overflow to infinity, zeros of both signs; byte for byte."""
    acc = np.array(SPECIAL, np.int32).reshape(1, NR)
    offsets = None if offset is None else np.full(NR, offset, np.float32)
    e = Epilogue(np.dtype("float32"), None, np.full(NR, multiplier, np.float32), offsets, 0, low, high)
    for name in EPILOGUES:
        assert_same(run(name, acc, e), expected(acc, e), name)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_special_multipliers_saturate(multiplier: float, dtype: str) -> None:
    acc = np.array(SPECIAL, np.int32).reshape(1, NR)
    e = Epilogue(np.dtype(dtype), None, np.full(NR, multiplier, np.float32), None, 7)
    for name in EPILOGUES:
        assert_same(run(name, acc, e), expected(acc, e), name)


@every_epilogue
def test_multiply_and_add_are_two_roundings(name: str, rng: np.random.Generator) -> None:
    """A fused multiply-add would give other bits for some of these; the test shows that it would."""
    acc = full_range(rng, (64, NR), np.int32)
    multiplier = np.exp2(rng.uniform(-8, 8, NR)).astype(np.float32)
    offset = rng.normal(0, 1e9, NR).astype(np.float32)
    e = Epilogue(np.dtype("float32"), None, multiplier, offset)
    assert_same(run(name, acc, e), expected(acc, e), name)
    fused = (acc.astype(np.float32).astype(np.float64) * multiplier + offset).astype(np.float32)
    assert (fused != expected(acc, e)).any()


@pytest.mark.parametrize("name", pyq.available_backends())
@given(seeds, st.integers(1, 5), st.integers(1, 40), st.sampled_from(list(CODES)))
def test_backends_requantize_any_number_of_columns(name: str, seed: int, rows: int, columns: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    acc, e = full_range(rng, (rows, columns), np.int32), Epilogue(**per_column(rng, columns, dtype))
    residual = addend(rng, e, acc.shape)
    wanted = expected(acc, e, residual)
    assert_same(backend(name).requantize(acc, e, residual=residual), wanted, name)
    out = np.full((rows, 2 * columns), 0x55, e.dtype)
    backend(name).requantize(acc, e, out[:, ::2], residual)
    assert_same(np.ascontiguousarray(out[:, ::2]), wanted, f"{name}, strided out")
    assert (out[:, 1::2] == 0x55).all()

"""Kernels that finish what they multiply, called directly: the bits of a product and an epilogue after it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range
from guarded import fatal_signal, guarded
from hypothesis import given
from hypothesis import strategies as st
from test_epilogues import expected, struct_of
from test_kernels import C_ROWS, NR, Case, encoded, exact_sums, seeds

import pyq
from pyq._core import ffi, lib
from pyq.backends import Epilogue
from pyq.config import Kernel

KERNELS = [k for k in pyq.kernels_available() if k.operation in ("gemm_requantize", "gemm_sums") and k.runnable]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
BUFFERS = ("base", "offsets", "weights", "bias", "multiplier", "out")
READ = [(k, short) for k in KERNELS for short in (*BUFFERS, *(["offset"] if k.operation == "gemm_sums" else []))]
UNTOUCHED = 0x55555555
Pointers = tuple[Any, np.ndarray, int, np.ndarray]  # pyq_pair, addresses of the rows, PYQ_FETCH_AHEAD or 0, output


def random_case(rng: np.random.Generator, rows: int, steps: int, columns: int) -> Case:
    """Rows that overlap and offsets that repeat; a base that ends with the last element needed."""
    starts, offsets, panels = rng.integers(0, 100, rows), rng.integers(0, 50, steps), 1 + (columns > NR)
    base = full_range(rng, (int(starts.max() + offsets.max()) + 4,), "uint8")
    return Case(base, starts, offsets, rng.integers(-128, 128, (steps, 4, panels * NR)))


def random_epilogue(kernel: Kernel, rng: np.random.Generator, columns: int, table: bool) -> Epilogue:
    """One that the kernel is for, of any type."""
    bias = None if rng.random() < 0.3 else rng.integers(-(2**20), 2**20, columns).astype(np.int32)
    return to_words(rng, bias, columns) if kernel.operation == "gemm_sums" else to_bytes(rng, bias, columns, table)


def to_words(rng: np.random.Generator, bias: np.ndarray | None, columns: int) -> Epilogue:
    """int32, or float32 with and without an offset and bounds."""
    if rng.random() < 0.4:
        return Epilogue(np.dtype(np.int32), bias)
    offset = rng.normal(size=columns).astype(np.float32) if rng.random() < 0.7 else None
    low, high = (0.0, float(rng.uniform(0, 20))) if rng.random() < 0.5 else (None, None)
    multiplier = np.exp2(rng.uniform(-16, -6, columns)).astype(np.float32)
    return Epilogue(np.dtype(np.float32), bias, multiplier, offset, low=low, high=high)


def to_bytes(rng: np.random.Generator, bias: np.ndarray | None, columns: int, table: bool) -> Epilogue:
    """To both types; multipliers below 1 and not; bounds that packing is, and others."""
    dtype = np.dtype(rng.choice(["uint8", "int8"]))
    limits = np.iinfo(dtype)
    low, high = sorted(rng.integers(limits.min, limits.max + 1, 2).tolist())
    if rng.random() < 0.5:
        low, high = limits.min, limits.max
    return Epilogue(
        dtype,
        bias,
        np.exp2(rng.uniform(-16, rng.choice([-6, 2]), columns)).astype(np.float32),
        zero_point=int(rng.integers(limits.min, limits.max + 1)),
        low=low,
        high=high,
        table=full_range(rng, (256,), "uint8") if table else None,
    )


def call_c(kernel: Kernel, pointers: Pointers) -> None:
    pair, rows, how, out = pointers
    starts = [ffi.cast("uint8_t *", int(row)) for row in rows]
    C_ROWS[kernel.name].panels(
        pair, ffi.new("uint8_t *[]", starts), len(rows), how, ffi.cast("uint8_t *", out.ctypes.data)
    )


def run(
    kernel: Kernel,
    case: Case,
    e: Epilogue,
    columns: int,
    edge: str | None = None,
    short: str | None = None,
    call: Callable[..., None] = call_c,
) -> np.ndarray:
    """What the kernel makes of `columns` columns, in an output three wider; edge and short as in test_kernels.py.

    call is given, beside the kernel and what it is called with, the arrays that this points to.
    """

    def put(name: str, values: np.ndarray | None) -> np.ndarray | None:
        if values is None or edge is None:
            return values
        return guarded(values[:-1] if name == short else values, edge)

    stride = columns + 3
    element = np.dtype(f"u{e.dtype.itemsize}")
    untouched = np.array(UNTOUCHED).astype(element)
    out = put("out", np.full(len(case.rows) * stride - 3, untouched))  # the last row has no columns to spare
    base, offsets = put("base", case.base), put("offsets", case.offsets.astype(np.int32))
    weights = put("weights", encoded(QUADS32, case.weights))
    assert out is not None and base is not None and offsets is not None and weights is not None
    epilogue, *kept = struct_of(e, put)
    address = ffi.cast("int32_t *", offsets.ctypes.data), ffi.cast("int8_t *", weights.ctypes.data)
    pair = ffi.new("pyq_panels *", (epilogue, *address, len(case.offsets), 0, columns, stride))
    rows = (base.ctypes.data + case.rows).astype(np.uint64)
    arrays = [base, offsets, weights, *(array for array in kept[-1].values() if array is not None)]
    pointers = pair, rows, lib.PYQ_FETCH_AHEAD if len(rows) % 2 else 0, out
    call(kernel, pointers) if call is call_c else call(kernel, pointers, epilogue, arrays)
    whole = np.append(out, np.full(3, untouched)).reshape(-1, stride)
    assert (whole[:, columns:] == untouched).all(), "wrote beyond the columns"
    return whole[:, :columns].view(e.dtype)


QUADS32 = next(k for k in pyq.kernels_available() if k.layout == "quads32")
"""What its weights are: of two panels, one behind the other."""


def check(
    kernel: Kernel,
    rng: np.random.Generator,
    rows: int,
    steps: int,
    columns: int,
    table: bool,
    **how: Any,
) -> None:
    """The kernel against the numerics, on random data; `how` it is run."""
    case, e = random_case(rng, rows, steps, columns), random_epilogue(kernel, rng, columns, table)
    sums = exact_sums(kernel, case)[:, :columns]
    assert_same(run(kernel, case, e, columns, **how), expected(sums, e), kernel.name)


@every_kernel
@given(
    seeds,
    st.integers(1, 19),
    st.integers(1, 40),
    st.integers(9, 32),
    st.booleans(),
    st.sampled_from([None, "end", "start"]),
)
def test_equals_the_numerics(
    kernel: Kernel, seed: int, rows: int, steps: int, columns: int, table: bool, edge: str | None
) -> None:
    table = table and bool(lib.pyq_use_vbmi())
    check(kernel, np.random.default_rng(seed), rows, steps, columns, table, edge=edge)


@pytest.mark.parametrize(("kernel", "short"), READ, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("columns", [12, 16, 20, 32])
def test_the_guard_pages_would_tell(kernel: Kernel, short: str, columns: int, rng: np.random.Generator) -> None:
    case, e = random_case(rng, 8, 3, columns), to_bytes(rng, None, columns, False)
    if kernel.operation == "gemm_sums":
        e = Epilogue(np.dtype(np.float32), None, e.multiplier, np.zeros(columns, np.float32))
    case = Case(case.base, np.full(8, len(case.base) - 4 - case.offsets.max()), case.offsets, case.weights)
    e = Epilogue(e.dtype, np.zeros(columns, np.int32), e.multiplier, e.offset, e.zero_point, e.low, e.high)
    assert fatal_signal(lambda: run(kernel, case, e, columns, "end", short)) == signal.SIGSEGV


def test_the_choice() -> None:
    """Where there is such a kernel: all without a residual; with a table if bytes can be looked up fast."""
    made = {kernel.operation: C_ROWS[kernel.name].panels for kernel in KERNELS}
    chosen, sums = made.get("gemm_requantize", ffi.NULL), made.get("gemm_sums", ffi.NULL)
    e = ffi.new("pyq_epilogue *", {"type": lib.PYQ_OUT_QUANTIZED})
    assert lib.pyq_select_panels(e) == chosen
    e.table = table = ffi.new("uint8_t[256]")
    assert lib.pyq_select_panels(e) == (chosen if lib.pyq_use_vbmi() else ffi.NULL) and table
    e.table, e.sum = ffi.NULL, (total := ffi.new("pyq_sum *"))
    assert lib.pyq_select_panels(e) == ffi.NULL and total
    for kind in (lib.PYQ_OUT_FLOAT32, lib.PYQ_OUT_INT32):
        e.sum, e.type = ffi.NULL, kind
        assert lib.pyq_select_panels(e) == sums

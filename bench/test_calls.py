"""Calls of which Python is most: small products, those of two matrices that both come with the call, small arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyq

Call = Callable[[], Any]
OUT = pyq.QParams(0.5, 128)


def packed(rng: np.random.Generator) -> dict[str, Call]:
    """Products of 8x8 matrices, and a convolution of one pixel and 8 channels."""
    x = pyq.QTensor(rng.integers(0, 256, (8, 8), np.uint8), 0.02, 128)
    image = pyq.QTensor(x.data[:1].reshape(1, 1, 1, 8), 0.02, 128)
    w = pyq.pack(pyq.quantize(rng.laplace(size=(8, 8)), "int8", axis=1))
    filters = pyq.pack(pyq.quantize(rng.laplace(size=(8, 8, 1, 1)), "int8", axis=0))
    return {
        "matmul_integer": lambda: pyq.matmul_integer(x.data, w),
        "matmul": lambda: pyq.matmul(x, w),
        "matmul to a QTensor": lambda: pyq.matmul(x, w, out=OUT).data,
        "conv": lambda: pyq.conv(image, filters, out=OUT, layout="NHWC").data,
    }


def unpacked(rng: np.random.Generator) -> dict[str, Call]:
    """One small product, and the heads of an attention layer."""
    calls: dict[str, Call] = {}
    for shape in ((1, 16, 16, 16), (12, 128, 64, 128)):
        batch, m, k, n = shape
        a, b = rng.integers(0, 256, (batch, m, k), np.uint8), rng.integers(-128, 128, (batch, k, n), np.int8)
        calls["unpacked " + "x".join(map(str, shape))] = partial(pyq.matmul_integer, a, b)
    return calls


def elementwise(rng: np.random.Generator) -> dict[str, Call]:
    """Of 64 numbers: quantized, by themselves, and with parameters; back; a table; a sum; a pool of an 8x8 image."""
    x, q = rng.normal(size=64).astype(np.float32), pyq.QTensor(rng.integers(0, 256, 64, np.uint8), 0.5, 128)
    table, image = pyq.unary_table("hardswish", q.params, OUT), q.reshape(1, 8, 8, 1)
    return {
        "dynamic quantize": lambda: pyq.quantize(x).data,
        "quantize": lambda: pyq.quantize(x, OUT).data,
        "dequantize": q.dequantize,
        "table": lambda: table(q).data,
        "add": lambda: pyq.add(q, q, OUT).data,
        "max pool": lambda: pyq.max_pool(image, (2, 2), layout="NHWC").data,
    }


GROUPS = packed, unpacked, elementwise
NAMES = [name for group in GROUPS for name in group(np.random.default_rng(0))]


@pytest.mark.parametrize("name", NAMES)
def test_calls(name: str, seed: int, benchmark: BenchmarkFixture) -> None:
    """The reference gives the same; then timed, on one thread."""
    rng = np.random.default_rng(seed)
    call = {name: call for group in GROUPS for name, call in group(rng).items()}[name]
    with pyq.use_backend("reference"):
        expected = call()
    assert np.array_equal(call(), expected), f"seed {seed}"
    benchmark.group = "calls"
    before = pyq.get_num_threads()
    pyq.set_num_threads(1)
    try:
        benchmark(call)
    finally:
        pyq.set_num_threads(before)

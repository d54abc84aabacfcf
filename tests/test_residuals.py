"""A residual added in the epilogue has the bits of the product, the Add and the table one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range
from hypothesis import given
from hypothesis import strategies as st

import pyq
from pyq.backends import Backend, ConvGeometry, Epilogue, backend, requantize_epilogue, residual_epilogue
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor

every_backend = pytest.mark.parametrize("name", pyq.available_backends())
dtypes = st.sampled_from(["uint8", "int8"])
seeds = st.integers(0, 2**32 - 1)


def params(rng: np.random.Generator, dtype: str, scale: float = 0.1) -> QParams:
    """A scale near `scale` and any zero point; half of them with bounds, as a Relu or Clip leaves them."""
    limits = np.iinfo(dtype)
    low, high = np.sort(rng.choice(256, 2, replace=False)) if rng.random() < 0.5 else (0, 255)
    zero_point = rng.integers(limits.min, limits.max, endpoint=True)
    real = np.float32(scale * rng.uniform(0.5, 2))
    return QParams(real, zero_point, dtype, qmin=limits.min + low, qmax=limits.min + high)


class Chain:
    """The parameters of a product, an Add and perhaps a table, at random."""

    def __init__(self, rng: np.random.Generator, columns: int, dtypes: tuple[str, str, str]) -> None:
        self.product, self.operand, self.out = (params(rng, dtype) for dtype in dtypes)
        self.bias = rng.integers(-3000, 3000, columns, np.int32)
        self.scales = np.float32(0.02), rng.uniform(1e-4, 1e-2, columns).astype(np.float32)
        self.table = full_range(rng, (256,), "uint8") if rng.random() < 0.5 else None

    @property
    def fused(self) -> Epilogue:
        return residual_epilogue(*self.scales, self.product, self.operand, self.out, self.bias, self.table)

    def unfused(self, b: Backend, product: Any, residual: np.ndarray) -> np.ndarray:
        """product: a call of `b` that lacks its epilogue."""
        y = product(requantize_epilogue(*self.scales, self.product, self.bias))
        total = b.binary("add", y, self.product, residual, self.operand, self.out)
        return total if self.table is None else b.lookup(total, self.table, total.dtype)


@every_backend
@given(seeds, st.integers(1, 30), st.integers(1, 20), st.integers(1, 70), dtypes, dtypes, dtypes, dtypes)
def test_products(
    name: str, seed: int, m: int, k: int, n: int, x_type: str, product: str, operand: str, out: str
) -> None:
    rng, b = np.random.default_rng(seed), backend(name)
    chain, residual = Chain(rng, n, (product, operand, out)), full_range(rng, (m, n), operand)
    w = pack(QTensor(full_range(rng, (k, n), "int8"), 1.0))
    x = full_range(rng, (m, k), x_type)
    expected = chain.unfused(b, lambda epilogue: b.matmul(x, 5, w, epilogue), residual)
    assert_same(b.matmul(x, 5, w, chain.fused, residual=residual), expected, name)
    wide = np.repeat(residual, 2, axis=1)[:, ::2]
    result = np.empty((n, m), out).T
    assert b.matmul(x, 5, w, chain.fused, result, wide) is result
    assert_same(np.ascontiguousarray(result), expected, f"{name}, strided")


@every_backend
@pytest.mark.parametrize("channels", [16, 21, 64])
@pytest.mark.parametrize("group", [1, "channels"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(name: str, channels: int, group: Any, stride: int, rng: np.random.Generator) -> None:
    group = channels if group == "channels" else group
    b, geometry = backend(name), ConvGeometry((stride, stride), (1, 1, 1, 1))
    w = pack(QTensor(full_range(rng, (channels, channels // group, 3, 3), "int8"), 1.0), group=group)
    x = full_range(rng, (2, 9, 8, channels), "uint8")
    size = geometry.output_size((9, 8), (3, 3))
    for types in (("uint8", "int8", "uint8"), ("int8", "uint8", "int8")):
        chain, residual = Chain(rng, channels, types), full_range(rng, (2, *size, channels), types[1])
        expected = chain.unfused(b, lambda e: b.conv(x, 131, w, geometry, e), residual)
        assert_same(b.conv(x, 131, w, geometry, chain.fused, residual=residual), expected, name)


@every_backend
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [16, 40, 300])
def test_the_residual_may_be_the_output(name: str, threads: int, columns: int, rng: np.random.Generator) -> None:
    """Enough rows and columns for several tasks."""
    before = pyq.get_num_threads()
    pyq.set_num_threads(threads)
    try:
        b, chain = backend(name), Chain(rng, columns, ("uint8", "uint8", "uint8"))
        w, x = pack(QTensor(full_range(rng, (64, columns), "int8"), 1.0)), full_range(rng, (997, 64), "uint8")
        memory = full_range(rng, (997, columns), "uint8")
        expected = chain.unfused(b, lambda epilogue: b.matmul(x, 5, w, epilogue), memory)
        assert_same(b.matmul(x, 5, w, chain.fused, memory, memory), expected, name)
    finally:
        pyq.set_num_threads(before)


@every_backend
def test_every_pair_of_bytes(name: str) -> None:
    """With scales whose ratios are decimal fractions, sums often lie at a tie, or so near that a reciprocal errs."""
    integers = np.arange(256)
    acc = np.repeat(integers[:, None] - 120, 256, axis=1).astype(np.int32)
    residual = np.tile(integers.astype(np.uint8), (256, 1))
    product, operand, out = QParams(0.1, 120), QParams(0.07, 100), QParams(0.12, 40)
    b, epilogue = backend(name), residual_epilogue(product.scale, 1.0, product, operand, out)
    assert_same(b.requantize(acc, requantize_epilogue(product.scale, 1.0, product)), residual.T.copy(), "the product")
    expected = b.binary("add", residual.T, product, residual, operand, out)
    assert_same(b.requantize(acc, epilogue, residual=residual), np.ascontiguousarray(expected), name)

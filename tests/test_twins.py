"""The C kernels at every instruction set, and the Numba kernels, return the bytes of the reference.

Element-wise operations, ranges, pools, transposes, softmax and layer normalization, on drawn shapes and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from exact import assert_same, transposed
from hypothesis import given, settings
from hypothesis import strategies as st

from pyq._core import lib
from pyq.backends import ISA_NAMES, Backend, backend
from pyq.geometry import place
from pyq.qparams import QParams

REFERENCE = backend("reference")
VERSIONS = [*ISA_NAMES[: lib.pyq_isa_detected() + 1], "numba"]

seeds = st.integers(0, 2**32 - 1)
bytes_dtypes = st.sampled_from(["uint8", "int8"])
sizes = st.one_of(st.integers(1, 100), st.sampled_from([127, 128, 255, 1000, 1023, 1024, 1025, 2049, 5000]))
scales = st.one_of(
    st.sampled_from([1.0, 0.5, 0.05, 1e-38, 1e-39, 1e-45, 1e38, 2.0**-126, 2.0**120]),
    st.floats(2.0**-13, 2.0**13, width=32),
)


@pytest.fixture(params=VERSIONS, scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend to compare with the reference; the C kernels capped at one instruction set after the other."""
    before = lib.pyq_get_isa()
    if request.param in ISA_NAMES:
        lib.pyq_set_isa(ISA_NAMES.index(request.param))
    yield backend("numba" if request.param == "numba" else "c")
    lib.pyq_set_isa(before)


def compare(kernels: Backend, call: Callable[[Backend], Any]) -> None:
    found, expected = call(kernels), call(REFERENCE)
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        assert_same(np.asarray(one), np.asarray(other), kernels.name)


def params(draw: st.DrawFn) -> QParams:
    dtype = np.dtype(draw(bytes_dtypes))
    limits = np.iinfo(dtype)
    low = draw(st.integers(limits.min, limits.max - 1))
    scale, zero_point = np.float32(draw(scales)), draw(st.integers(limits.min, limits.max))
    return QParams(scale, zero_point, dtype, None, low, draw(st.integers(low + 1, limits.max)))


def integers(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8).view(dtype)


@given(st.data(), seeds, sizes)
def test_quantize(kernels: Backend, data: st.DataObject, seed: int, size: int) -> None:
    """Numbers around halves of the scale too, where a product with 1 / scale may round to the other side."""
    rng, to = np.random.default_rng(seed), data.draw(st.composite(params)())
    halves = rng.integers(-600, 600, size) / 2
    with np.errstate(over="ignore", under="ignore"):
        x = (halves * np.float64(to.scale)).astype(np.float32)
        x = np.where(rng.random(size) < 0.3, (rng.normal(0, 60, size) * to.scale).astype(np.float32), x)
        for towards in (-np.inf, np.inf):
            x = np.where(rng.random(size) < 0.2, np.nextafter(x, np.float32(towards)), x)
    x[rng.random(size) < 0.02] = rng.choice([-np.inf, np.inf])
    compare(kernels, lambda b: b.quantize(x, to))
    compare(kernels, lambda b: b.dequantize(integers(np.random.default_rng(seed), to.dtype, size), to))


def test_nan_is_found_everywhere(kernels: Backend) -> None:
    for size in (1, 31, 32, 33, 100, 70000):
        for at in {0, size // 2, size - 1}:
            x = np.ones(size, np.float32)
            x[at] = np.nan
            for call in (lambda x=x: kernels.quantize(x, QParams(0.1)), lambda x=x: kernels.value_range(x)):
                with pytest.raises(ValueError, match="x: expected real numbers, got NaN"):
                    call()


@given(seeds, sizes)
def test_value_range(kernels: Backend, seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    reals = rng.normal(rng.normal(), 1, size).astype(np.float32)
    for x in (reals, -np.abs(reals), -np.zeros_like(reals)):
        compare(kernels, lambda b, x=x: np.array(b.value_range(x)))
    assert kernels.value_range(np.array([3, -np.inf], np.float32)) == (-np.inf, 3)
    assert kernels.value_range(np.empty((0, 2), np.float32)) == (0, 0)


@given(st.data(), seeds, st.sampled_from(["add", "sub", "mul"]))
def test_arithmetic(kernels: Backend, data: st.DataObject, seed: int, op: str) -> None:
    """Scales whose ratio is a simple number give many sums that lie in the middle between two integers."""
    rng = np.random.default_rng(seed)
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    shapes = [[n if data.draw(st.booleans()) else 1 for n in shape], shape]
    if data.draw(st.booleans()):
        shapes.reverse()
    unit = data.draw(st.floats(2.0**-10, 2.0**10, width=32))
    ratio = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.7, 2.0])
    p, q, out = (
        QParams(np.float32(unit * data.draw(ratio)), data.draw(st.integers(0, 127)), data.draw(bytes_dtypes))
        for _ in range(3)
    )
    a, b = integers(rng, p.dtype, *shapes[0]), integers(rng, q.dtype, *shapes[1])
    compare(kernels, lambda backend: backend.binary(op, a, p, b, q, out))
    b = np.where(b == q.zero_point, b ^ b.dtype.type(1), b)
    compare(kernels, lambda backend: backend.binary("div", a, p, b, q, out))


@settings(max_examples=30)
@given(st.data(), st.sampled_from(["add", "sub"]), st.sampled_from([(None, None), (3, 90)]))
def test_sums_of_every_pair(kernels: Backend, data: st.DataObject, op: str, bounds: tuple[int | None, ...]) -> None:
    """Found in fixed point where the scales allow, and by division where a sum is close to a half."""
    unit = np.float32(data.draw(st.sampled_from([1e-36, 2.0**-10, 0.0371, 1.0, 1e32])))
    ratio = st.floats(2.0**-12, 2.0**12, width=32) | st.sampled_from([0.25, 0.5, 0.7, 1.0, 2.0])
    p, q = (
        QParams(unit * np.float32(data.draw(ratio)), data.draw(st.integers(0, 127)), data.draw(bytes_dtypes))
        for _ in range(2)
    )
    out = QParams(unit, data.draw(st.integers(0, 127)), data.draw(bytes_dtypes), None, *bounds)
    every = np.arange(256, dtype=np.uint8)
    a, b = np.broadcast_to(every[:, None], (256, 256)).copy().view(p.dtype), every.view(q.dtype)
    compare(kernels, lambda backend: backend.binary(op, a, p, b, q, out))


@given(st.data(), seeds, bytes_dtypes)
def test_pools(kernels: Backend, data: st.DataObject, seed: int, dtype: str) -> None:
    rank = data.draw(st.integers(1, 3))
    spatial = [data.draw(st.integers(1, 12)) for _ in range(rank)]
    kernel = [data.draw(st.integers(1, n)) for n in spatial]
    dilations = [
        data.draw(st.integers(1, max(1, (n - 1) // max(k - 1, 1)))) for n, k in zip(spatial, kernel, strict=True)
    ]
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    strides = [data.draw(st.integers(1, 3)) for _ in spatial]
    placement = place(spatial, kernel, strides, pads, dilations, ceil_mode=data.draw(st.booleans()))
    images, channels = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 3, 16, 31, 32, 33, 64, 100, 300]))
    x = integers(np.random.default_rng(seed), dtype, images, *spatial, channels)
    if not placement.counts(spatial).all():
        return  # refused by pyq.pooling
    given_params, out = (data.draw(st.composite(params)()) for _ in range(2))
    source = QParams(given_params.scale, given_params.zero_point % 128, dtype)
    compare(kernels, lambda b: b.max_pool(x, placement))
    for include_pad in (False, True):
        compare(kernels, lambda b, include=include_pad: b.average_pool(x, source, placement, include, out))


def test_windows_of_many_elements(kernels: Backend) -> None:
    """More than 16-bit sums hold, more than 32-bit sums hold."""
    for spatial in ((300, 7), (3, 2000), (1 << 22,), ((1 << 22) + 1,)):
        placement = place(spatial, spatial)
        for fill in (0, 255):
            x = np.full((1, *spatial, 1), fill, np.uint8)
            mean = QParams(np.float32(1), 0)
            assert kernels.average_pool(x, mean, placement, False, mean).ravel().tolist() == [fill]
            assert kernels.max_pool(x, placement).ravel().tolist() == [fill]


@given(st.data(), bytes_dtypes, st.sampled_from([(1, 2), (2, 2), (2, 3), (3, 3), (8, 8), (8, 16), (9, 16)]))
def test_every_sum_of_a_window(kernels: Backend, data: st.DataObject, dtype: str, kernel: tuple[int, int]) -> None:
    """Some scales have a multiplier that is as good as two divisions, others, of simple ratio, need these."""
    elements = kernel[0] * kernel[1]
    sums = np.arange(255 * elements + 1)
    # Of a window of sum s, the first elements are 255 each, and one is what is left.
    values = np.clip(sums[:, None] - 255 * np.arange(elements), 0, 255).astype(np.uint8)
    x = np.ascontiguousarray(values.reshape(1, -1, *kernel).transpose(0, 2, 3, 1)).view(dtype)
    if dtype == "int8":
        x ^= np.int8(-128)
    unit = np.float32(data.draw(st.floats(2.0**-10, 2.0**10, width=32)))
    ratio = np.float32(data.draw(st.sampled_from([0.25, 0.7, 1.0, 1.0, 1.25, 3.0])))
    source = QParams(unit, data.draw(st.integers(0, 127)), dtype)
    bounds = data.draw(st.sampled_from([(None, None), (3, 90)]))
    out = QParams(unit * ratio, data.draw(st.integers(0, 127)), data.draw(bytes_dtypes), None, *bounds)
    placement = place(kernel, kernel)
    for include_pad in (False, True):
        compare(kernels, lambda b, include=include_pad: b.average_pool(x, source, placement, include, out))


@given(seeds, st.integers(1, 3), st.integers(1, 150), st.integers(1, 150), st.sampled_from(["uint8", "uint32"]))
def test_transpose(kernels: Backend, seed: int, images: int, rows: int, columns: int, dtype: str) -> None:
    x = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (images, rows, columns), dtype, endpoint=True)
    compare(kernels, lambda b: transposed(b, x))


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
@pytest.mark.parametrize("shape", [(1, 3, 50000), (1, 50000, 3), (2, 1500, 100), (1, 65, 1100), (1, 24, 3136)])
def test_transpose_in_several_parts(kernels: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    compare(kernels, lambda b: transposed(b, x))


@given(seeds, st.integers(1, 5), sizes)
def test_rows(kernels: Backend, seed: int, rows: int, size: int) -> None:
    """Softmax and layer normalization, of numbers with and without -inf and NaN."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(rng.normal(), 1, (rows, size)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)
    masked = np.where(rng.random(x.shape) < 0.3, np.float32(-np.inf), x)
    broken = np.where(rng.random(x.shape) < 0.1, np.float32(np.nan), x)
    for y in (x, masked, broken, -x, np.zeros_like(x), x * np.float32(1e30)):
        compare(kernels, lambda b, y=y: b.softmax(y))
    scale, bias = rng.normal(0, 1, (2, size)).astype(np.float32)
    for y in (x, np.zeros_like(x), x * np.float32(1e30)):
        for offset in (None, bias):
            compare(kernels, lambda b, y=y, offset=offset: b.layer_norm(y, scale, offset, 1e-5))


@given(seeds, st.integers(1, 5), sizes, bytes_dtypes)
def test_softmax_of_bytes(kernels: Backend, seed: int, rows: int, size: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    q, table = integers(rng, dtype, rows, size), rng.integers(1, 2**23, 256, np.int32, endpoint=True)
    compare(kernels, lambda b: b.softmax_of_bytes(q, table))

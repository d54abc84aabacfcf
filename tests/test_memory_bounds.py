"""Backends read and write nothing beyond the arrays of the caller: each lies at a guard page.

The kernels themselves are held to their contract in test_kernels.py and test_epilogues.py; here the caller's arrays
have no slack at all, and what kernels need of it must have been copied.
"""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
from exact import assert_same, conv, full_range, matmul
from guarded import fatal_signal, guarded

from pyq import c_backend, ops
from pyq._core import ffi, lib
from pyq.backends import Epilogue, backend, residual_epilogue
from pyq.geometry import place
from pyq.packing import pack
from pyq.pool_windows import fixed_means, windows
from pyq.qparams import QParams
from pyq.tensor import QTensor

pytestmark = pytest.mark.usefixtures("each_isa")

REFERENCE = backend("reference")
SIZES = [1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1000]
UNSIGNED, SIGNED = QParams(np.float32(0.047), 131, "uint8"), QParams(np.float32(0.031), -9, "int8")

every_backend = pytest.mark.parametrize("name", ["c", "numba"])
every_edge = pytest.mark.parametrize("edge", ["end", "start"])


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """int8 weights of which the pack can prove most panels."""
    return np.clip(rng.normal(0, 9, shape).round(), -128, 127).astype(np.int8)


@every_backend
@every_edge
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("k", [1, 3, 4, 17, 64])
def test_products(name: str, edge: str, dtype: str, k: int, rng: np.random.Generator) -> None:
    """Activations and result; 21 columns leave a panel that must not be stored whole."""
    a, b = full_range(rng, (7, k), dtype), weights(rng, k, 21)
    for prove in (False, True):
        packed, out = pack(QTensor(b, 1.0), prove=prove), guarded(np.zeros((7, 21), np.int32), edge)
        result = backend(name).matmul(guarded(a, edge), 5, packed, Epilogue(np.dtype(np.int32)), out)
        assert result is out
        assert_same(out, matmul(a, b, 5), name)


@every_backend
@every_edge
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 21, 48])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8"])
def test_epilogue_arrays(name: str, edge: str, columns: int, dtype: str, rng: np.random.Generator) -> None:
    """Bias, multiplier, offset, table and result."""
    a, packed = full_range(rng, (7, 12), "uint8"), pack(QTensor(weights(rng, 12, columns), 1.0))
    arrays = {
        "bias": full_range(rng, (columns,), np.int32) >> 10,
        "multiplier": rng.uniform(1e-4, 1e-2, columns).astype(np.float32),
    }
    if dtype == "float32":
        arrays["offset"] = rng.normal(0, 100, columns).astype(np.float32)
    else:
        arrays["table"] = full_range(rng, (256,), np.uint8)
    epilogue = Epilogue(np.dtype(dtype), **arrays)
    guards: dict[str, Any] = {which: guarded(array, edge) for which, array in arrays.items()}
    tight = Epilogue(np.dtype(dtype), **guards)
    acc = matmul(a, packed.unpack(), 5)
    expected = REFERENCE.requantize(acc, epilogue)
    out = guarded(np.zeros((7, columns), dtype), edge)
    assert_same(backend(name).matmul(guarded(a, edge), 5, packed, tight, out), expected, name)
    out = guarded(np.zeros((7, columns), dtype), edge)
    assert_same(backend(name).requantize(guarded(acc, edge), tight, out), expected, name)


@every_backend
@every_edge
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 21, 48])
def test_residuals(name: str, edge: str, columns: int, rng: np.random.Generator) -> None:
    a, packed = full_range(rng, (7, 12), "uint8"), pack(QTensor(weights(rng, 12, columns), 1.0))
    epilogue = residual_epilogue(0.047, 0.01, SIGNED, UNSIGNED, SIGNED)
    residual = full_range(rng, (7, columns), "uint8")
    expected = REFERENCE.matmul(a, 5, packed, epilogue, residual=residual)
    out = guarded(np.zeros((7, columns), "int8"), edge)
    assert_same(backend(name).matmul(guarded(a, edge), 5, packed, epilogue, out, guarded(residual, edge)), expected)
    acc, out = matmul(a, packed.unpack(), 5), guarded(np.zeros((7, columns), "int8"), edge)
    assert_same(backend(name).requantize(guarded(acc, edge), epilogue, out, guarded(residual, edge)), expected)


@pytest.mark.parametrize("backend", ["c", "numba"], indirect=True)
@every_edge
@pytest.mark.parametrize(
    ("channels", "group", "filters"),
    [(3, 1, 5), (4, 1, 5), (4, 2, 6), (8, 4, 8), (12, 4, 20), (16, 16, 16), (17, 17, 17), (32, 32, 32), (2, 2, 2)],
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
def test_convolutions(
    backend: str, edge: str, channels: int, group: int, filters: int, kernel: tuple[int, int], rng: np.random.Generator
) -> None:
    """Images that lie channels last may be used where they are; the last quad of a group must not pass them."""
    x, w = full_range(rng, (1, 5, 6, channels), "uint8"), weights(rng, filters, channels // group, *kernel)
    expected = conv(np.moveaxis(x, -1, 1), w, 5, group=group)
    for packed in (w, pack(QTensor(w, 1.0), group=group)):
        acc = ops.conv_integer(guarded(x, edge), packed, 5, group=group, layout="NHWC")
        assert_same(np.ascontiguousarray(np.moveaxis(acc, -1, 1)), expected, backend)


@every_backend
@every_edge
@pytest.mark.parametrize("size", SIZES)
def test_element_wise(name: str, edge: str, size: int, rng: np.random.Generator) -> None:
    """Lookup, quantize, dequantize and arithmetic, with broadcasting."""
    b = backend(name)
    q, table = full_range(rng, (size,), "uint8"), full_range(rng, (256,), "uint8")
    x = rng.normal(0, 10, size).astype(np.float32)
    s = full_range(rng, (3, size), "int8")

    def at_edge(array: np.ndarray) -> np.ndarray:
        return guarded(array, edge)

    def out(*shape: int, dtype: str = "uint8") -> np.ndarray:
        return guarded(np.zeros(shape, dtype), edge)

    expected = REFERENCE.lookup(q, table, np.dtype("int8"))
    assert_same(b.lookup(at_edge(q), at_edge(table), np.dtype("int8"), out(size, dtype="int8")), expected, name)
    assert_same(b.quantize(at_edge(x), UNSIGNED, out(size)), REFERENCE.quantize(x, UNSIGNED), name)
    expected = REFERENCE.dequantize(q, UNSIGNED)
    assert_same(b.dequantize(at_edge(q), UNSIGNED, out(size, dtype="float32")), expected, name)
    for op in ("add", "sub", "mul"):
        for other in (q, q[:1]):
            expected = REFERENCE.binary(op, s, SIGNED, other, UNSIGNED, UNSIGNED)
            result = b.binary(op, at_edge(s), SIGNED, at_edge(other), UNSIGNED, UNSIGNED, out(3, size))
            assert_same(result, expected, f"{name} {op}")


@every_backend
@every_edge
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 31, 32, 33, 64, 100])
def test_pools(name: str, edge: str, channels: int, rng: np.random.Generator) -> None:
    x = full_range(rng, (2, 5, 6, channels), "int8")
    for placement in (place((5, 6), (3, 3), (2, 1), (1, 1, 1, 1)), place((5, 6), (5, 6)), place((5, 6), (2, 2))):
        maxima = backend(name).max_pool(guarded(x, edge), placement)
        assert_same(maxima, REFERENCE.max_pool(x, placement), name)
        means = backend(name).average_pool(guarded(x, edge), SIGNED, placement, False, UNSIGNED)
        assert_same(means, REFERENCE.average_pool(x, SIGNED, placement, False, UNSIGNED), name)


@every_backend
@every_edge
@pytest.mark.parametrize("size", SIZES)
def test_rows(name: str, edge: str, size: int, rng: np.random.Generator) -> None:
    """Range, softmax and layer normalization."""
    b, x, q = backend(name), rng.normal(0, 3, (3, size)).astype(np.float32), full_range(rng, (3, size), "uint8")
    exponentials = np.arange(256, 0, -1, np.int32)
    assert b.value_range(guarded(x, edge)) == REFERENCE.value_range(x)
    assert_same(b.softmax(guarded(x, edge)), REFERENCE.softmax(x), name)
    of_bytes = b.softmax_of_bytes(guarded(q, edge), guarded(exponentials, edge))
    assert_same(of_bytes, REFERENCE.softmax_of_bytes(q, exponentials), name)
    found = b.layer_norm(guarded(x, edge), guarded(x[0], edge), guarded(x[1], edge), 1e-5)
    for one, other in zip(found, REFERENCE.layer_norm(x, x[0], x[1], 1e-5), strict=True):
        assert_same(one, other, name)


@every_edge
@pytest.mark.parametrize("size", SIZES)
def test_results_of_c_kernels(edge: str, size: int, rng: np.random.Generator) -> None:
    """What the backend allocates itself, here by functions of the extension, which get guarded memory to write to."""
    x, q = rng.normal(0, 3, (3, size)).astype(np.float32), full_range(rng, (3, size), "uint8")
    reals, out = guarded(np.zeros_like(x), edge), ffi.from_buffer
    lib.pyq_softmax(out("float[]", x), 3, size, out("float[]", reals))
    assert_same(reals, REFERENCE.softmax(x))
    ones, mean = np.ones(size, np.float32), [guarded(np.zeros(3, np.float32), edge) for _ in range(2)]
    pointers = [out("float[]", array) for array in (reals, *mean)]
    lib.pyq_layer_norm(out("float[]", x), 3, size, out("float[]", ones), ffi.NULL, 1e-5, *pointers)
    assert_same(reals, REFERENCE.layer_norm(x, ones, None, 1e-5)[0])
    words = full_range(rng, (3, size), "uint32")
    tall = full_range(rng, (17, size), "uint8"), full_range(rng, (size, 40), "uint32")
    for matrix in (q, q.T.copy(), words, words.T.copy(), *tall):
        swapped = guarded(np.zeros_like(matrix.T), edge)
        source, target = out("uint8_t[]", guarded(matrix, edge)), out("uint8_t[]", swapped)
        lib.pyq_transpose(source, 1, *matrix.shape, matrix.itemsize, target)
        assert_same(swapped, matrix.T.copy())
    pooled = guarded(np.zeros((1, 2, 2, size), np.uint8), edge)
    placement = place((3, 3), (2, 2))
    images = full_range(rng, (1, 3, 3, size), "uint8")
    found = windows((3, 3), size, placement)
    pool = c_backend._pool(images, found)
    lib.pyq_max_pool(pool, out("uint8_t[]", pooled))
    assert_same(pooled, REFERENCE.max_pool(images, placement))
    affine = ffi.new("pyq_affine *", (0.05, 0, 0))
    same = QParams(0.05)
    factors = guarded(fixed_means(found, same, same), edge)
    lib.pyq_average_pool(pool, affine, affine, 0, 255, out("pyq_fixed_mean[]", factors), out("uint8_t[]", pooled))
    assert_same(pooled, REFERENCE.average_pool(images, same, placement, False, same))


@every_backend
def test_the_guard_pages_would_tell(name: str) -> None:
    """An `out` that is too small, which `pyq.ops` never passes on, kills the process."""
    x, table = np.zeros(4096, np.uint8), np.zeros(256, np.uint8)
    short = guarded(np.zeros(4095, np.uint8))
    assert fatal_signal(lambda: backend(name).lookup(x, table, np.dtype("uint8"), short)) == signal.SIGSEGV

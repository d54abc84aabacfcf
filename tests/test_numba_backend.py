"""The Numba backend, with each of its instruction sets, against the reference: the same bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyq.backends import ISA_NAMES, ConvGeometry, Epilogue
from pyq.kernels.backend import NumbaBackend
from pyq.kernels.host import available_isas
from pyq.packing import PackedWeight, pack
from pyq.panels import PAIRS8W, PAIRS16, QUADS8, QUADS8P2, QUADS8P4, QUADS32
from pyq.qparams import QParams
from pyq.reference import ReferenceBackend
from pyq.tensor import QTensor

REFERENCE = ReferenceBackend()
BYTES = ["uint8", "int8"]


@pytest.fixture(params=[ISA_NAMES[isa] for isa in available_isas()], scope="module")
def numba(request: pytest.FixtureRequest) -> NumbaBackend:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYQ_ISA", request.param)
        backend = NumbaBackend()
    assert ISA_NAMES[backend.isa] == request.param
    return backend


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def weights(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, axis: int, **options: Any) -> PackedWeight:
    """Packed weights with a scale and a zero point for each output column."""
    n = shape[axis]
    scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
    return pack(QTensor(random(rng, shape, dtype), scale, random(rng, (n,), dtype), axis), **options)


def epilogue(rng: np.random.Generator, dtype: str, columns: int) -> Epilogue:
    """An epilogue of each kind with all its parts."""
    bias = rng.integers(-1000, 1000, columns).astype(np.int32)
    if dtype == "int32":
        return Epilogue(np.dtype(dtype), bias)
    multiplier = rng.uniform(1e-4, 1e-3, columns).astype(np.float32)
    if dtype == "float32":
        return Epilogue(np.dtype(dtype), bias, multiplier, rng.standard_normal(columns).astype(np.float32), high=6.0)
    return Epilogue(np.dtype(dtype), bias, multiplier, None, 7, 0, 120, rng.permutation(256).astype(np.uint8))


def assert_same(y: np.ndarray, expected: np.ndarray) -> None:
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(y, expected)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 220), st.integers(1, 90), st.integers(1, 50)),
    st.sampled_from(BYTES),
    st.sampled_from(BYTES),
    st.sampled_from(["int32", "float32", "uint8", "int8"]),
)
def test_matmul(numba: NumbaBackend, shape: tuple[int, int, int], tx: str, tw: str, tout: str) -> None:
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    w = weights(rng, (k, n), tw, axis=1)
    case = random(rng, (m, k), tx), int(random(rng, (), tx)), w, epilogue(rng, tout, n)
    assert_same(numba.matmul(*case), REFERENCE.matmul(*case))


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 2000, 33), (97, 64, 100), (300, 260, 48)])
def test_matmul_sizes(numba: NumbaBackend, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(3)
    m, k, n = shape
    w = weights(rng, (k, n), "int8", axis=1)
    case = random(rng, (m, k), "uint8"), 128, w, Epilogue(np.dtype(np.int32))
    assert_same(numba.matmul(*case), REFERENCE.matmul(*case))


LARGEST = {PAIRS16: 127, PAIRS8W: 127, QUADS32: 127, QUADS8: 64, QUADS8P2: 32, QUADS8P4: 8}
"""Layouts, and the weights that packing puts into them where activations reach 255 and all are as large."""


def corner_weights(rng: np.random.Generator, levels: np.ndarray, columns: int = 40) -> PackedWeight:
    """Quads of four levels or their negatives each."""
    q = rng.choice([-1, 1], (4 * len(levels), columns)) * np.repeat(levels, 4)[:, None]
    return pack(QTensor(q.astype(np.int8), np.float32(1), np.int32(0)), isa="avx2")


@pytest.mark.parametrize("m", [1, 5, 11, 12, 13, 200])
@pytest.mark.parametrize("x", [0, 255, "random"])
@pytest.mark.parametrize("layout", [*LARGEST, "all"])
def test_corners_of_every_layout(numba: NumbaBackend, m: int, x: int | str, layout: int | str) -> None:
    """Panels of one segment, and of four, at the corners of what the proof allows.

    Where all is widened, and enough panels share the widening of the activations, the layout is PAIRS16 for a small
    matrix, PAIRS8W for a large one.
    """
    rng = np.random.default_rng(4)
    if layout == "all":
        w = corner_weights(rng, rng.permutation(np.repeat(list(LARGEST.values())[2:], (64, 32, 32, 64))))
        assert w.segments["layout"].tolist() == 3 * [*LARGEST][2:]
    else:
        columns = {PAIRS16: 160, PAIRS8W: 129 * 16, QUADS32: 16}.get(int(layout), 40)
        w = corner_weights(rng, np.full(32, LARGEST[int(layout)]), columns)
        assert w.layouts == {layout}
    shape = m, w.shape[0]
    activations = random(rng, shape, "uint8") if x == "random" else np.full(shape, x, np.uint8)
    case = activations, 7, w, Epilogue(np.dtype(np.int32))
    assert_same(numba.matmul(*case), REFERENCE.matmul(*case))


@pytest.mark.parametrize("prove", [True, False])
def test_folded_weights_that_need_16_bits(numba: NumbaBackend, prove: bool) -> None:
    rng = np.random.default_rng(11)
    w = pack(QTensor(random(rng, (52, 33), "int8"), np.float32(1), np.int8(100)), prove=prove)
    assert w.layouts == {PAIRS16}
    case = random(rng, (31, 52), "int8"), -4, w, Epilogue(np.dtype(np.int32))
    assert_same(numba.matmul(*case), REFERENCE.matmul(*case))


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tout", ["int32", "float32", "uint8"])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "group", "geometry"),
    [
        (3, 17, (3, 3), 1, ConvGeometry((2, 2), (1, 1, 1, 1))),
        (8, 20, (1, 1), 1, ConvGeometry()),
        (12, 8, (2, 3), 4, ConvGeometry((1, 2), (0, 1, 2, 3), (2, 1))),
        (5, 5, (3, 3), 5, ConvGeometry((1, 1), (1, 1, 1, 1))),
        (35, 35, (5, 5), 35, ConvGeometry((2, 1), (2, 2, 2, 2), (1, 2))),
    ],
)
def test_conv(
    numba: NumbaBackend,
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    group: int,
    geometry: ConvGeometry,
    tx: str,
    tout: str,
) -> None:
    rng = np.random.default_rng(channels)
    shape = filters, channels // group, *kernel
    w = weights(rng, shape, "int8", axis=0, group=group, dilations=geometry.dilations)
    case = random(rng, (2, 11, 13, channels), tx), 5, w, geometry, epilogue(rng, tout, filters)
    assert_same(numba.conv(*case), REFERENCE.conv(*case))


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize(
    ("size", "kernel", "group", "geometry"),
    [
        ((9,), (3,), 1, ConvGeometry((2,), (1, 2), (2,))),
        ((5, 6, 7), (3, 3, 3), 1, ConvGeometry((1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1))),
        ((7, 4, 9), (2, 1, 3), 2, ConvGeometry((2, 1, 2), (0, 1, 2, 1, 0, 0), (3, 1, 2))),
        ((5, 6, 7), (3, 2, 2), 6, ConvGeometry((1, 2, 1), (1, 0, 1, 1, 0, 1), (1, 2, 1))),
    ],
)
def test_conv_of_one_and_three_dimensions(
    numba: NumbaBackend, size: tuple[int, ...], kernel: tuple[int, ...], group: int, geometry: ConvGeometry, tx: str
) -> None:
    rng = np.random.default_rng(len(size))
    w = weights(rng, (18, 6 // group, *kernel), "int8", axis=0, group=group, dilations=geometry.dilations)
    case = random(rng, (2, *size, 6), tx), 5, w, geometry, epilogue(rng, "uint8", 18)
    assert_same(numba.conv(*case), REFERENCE.conv(*case))


def test_weights_mapped_from_a_file(numba: NumbaBackend, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    w = weights(rng, (70, 30), "int8", axis=1)
    w.save(tmp_path / "w.pyq")
    mapped = PackedWeight.load(tmp_path / "w.pyq", mmap=True)
    case = random(rng, (9, 70), "uint8"), 3
    int32 = Epilogue(np.dtype(np.int32))
    assert_same(numba.matmul(*case, mapped, int32), numba.matmul(*case, w, int32))


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_is_filled_and_returned(numba: NumbaBackend, order: Any) -> None:
    rng = np.random.default_rng(6)
    w = weights(rng, (20, 18), "int8", axis=1)
    case = random(rng, (9, 20), "int8"), 0, w, epilogue(rng, "uint8", 18)
    out = np.zeros((9, 18), np.uint8, order)
    assert numba.matmul(*case, out=out) is out
    assert_same(out, REFERENCE.matmul(*case))


# --- element-wise -------------------------------------------------------------------------------------------

VIEWS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(2, 0, 1),
    "reversed": lambda x: x[::-1, :, ::-1],
    "strided": lambda x: x[:, ::2, 1:],
}


@pytest.fixture(params=list(VIEWS))
def view(request: pytest.FixtureRequest) -> Any:
    return VIEWS[request.param]


@pytest.mark.parametrize("tx", BYTES)
def test_lookup(numba: NumbaBackend, view: Any, tx: str) -> None:
    rng = np.random.default_rng(7)
    x, table = view(random(rng, (5, 6, 7), tx)), rng.permutation(256).astype(np.uint8)
    for dtype in (np.dtype(np.uint8), np.dtype(np.int8)):
        assert_same(numba.lookup(x, table, dtype), REFERENCE.lookup(x, table, dtype))


@pytest.mark.parametrize("params", [QParams(0.1, 3), QParams(0.7, -9, "int8", None, -100, 90), "per axis"])
def test_quantize_and_dequantize(numba: NumbaBackend, view: Any, params: Any) -> None:
    rng = np.random.default_rng(8)
    ties = np.arange(-105, 105, dtype=np.float32).reshape(5, 6, 7) * np.float32(0.05)
    extreme = np.array([np.inf, -np.inf, 3e38, -0.0, 1e-45, 1e30], np.float32)[:, None]
    for x in (view(ties), view(np.ascontiguousarray(np.broadcast_to(extreme, (5, 6, 7))))):
        chosen = params
        if params == "per axis":
            size = x.shape[1]
            chosen = QParams(rng.uniform(0.01, 0.1, size).astype(np.float32), np.arange(size), "int8", axis=1)
        q = numba.quantize(x, chosen)
        assert_same(q, REFERENCE.quantize(x, chosen))
        assert_same(numba.dequantize(q, chosen), REFERENCE.dequantize(q, chosen))


def test_quantize_rejects_nan(numba: NumbaBackend) -> None:
    x = np.zeros(100, np.float32)
    x[77] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        numba.quantize(x, QParams(0.1))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize(("ta", "tb"), [("uint8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("b_shape", [(5, 6, 7), (6, 1), (7,), (), (5, 1, 7)])
def test_binary(numba: NumbaBackend, view: Any, op: str, ta: str, tb: str, b_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(9)
    a = random(rng, (5, 6, 7), ta)
    b = view(random(rng, a.shape, tb)) if b_shape == a.shape else random(rng, b_shape, tb)
    a = view(a) if b_shape in (a.shape, ()) else a
    b = np.where(b == 7, 8, b).astype(tb)  # no zero, so that division is defined
    operands = a, QParams(0.1, 3, ta), b, QParams(0.037, 7, tb)
    for out in (QParams(0.25, 100), QParams(1.5, -3, "int8", None, -90, 100)):
        assert_same(numba.binary(op, *operands, out), REFERENCE.binary(op, *operands, out))


def test_binary_lines_longer_than_a_chunk(numba: NumbaBackend) -> None:
    a = np.resize(np.arange(256, dtype=np.uint8), (3, 2500))
    operands = a, QParams(0.1, 3), a[:, ::-1].copy(), QParams(0.2, 100)
    assert_same(numba.binary("mul", *operands, QParams(3.0, 9)), REFERENCE.binary("mul", *operands, QParams(3.0, 9)))


# --- threads ------------------------------------------------------------------------------------------------


def test_four_threads_at_once(numba: NumbaBackend) -> None:
    rng = np.random.default_rng(10)
    w = weights(rng, (60, 40), "int8", axis=1)
    int32 = Epilogue(np.dtype(np.int32))
    inputs = [random(rng, (m, 60), "int8") for m in range(1, 60)]
    expected = [numba.matmul(x, 1, w, int32) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for y, alone in zip(pool.map(lambda x: numba.matmul(x, 1, w, int32), inputs), expected, strict=True):
            assert_same(y, alone)

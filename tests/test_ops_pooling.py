"""Pools against onnx.reference on the dequantized image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_node import run_node

from pyq.geometry import place
from pyq.pool_windows import fixed_means, windows
from pyq.pooling import average_pool, global_average_pool, global_max_pool, max_pool
from pyq.qparams import QParams
from pyq.tensor import QTensor

OUT = QParams(0.07, 90)
CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 8, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 2, 1]}),
    ((1, 2, 9, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 10, 7), {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 2, 11, 10), {"kernel_shape": [3, 2], "dilations": [2, 3]}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
    ((2, 3, 13), {"kernel_shape": [4], "strides": [3], "pads": [2, 1]}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 3]}),
]

# onnx.reference gives MaxPool with SAME_LOWER one row too few: these are the pads that it stands for.
SAME_LOWER: dict[Any, dict[str, Any]] = {
    "SAME_LOWER": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 0]}
}


def image(shape: tuple[int, ...], dtype: str = "uint8") -> QTensor:
    data = np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8).view(dtype)
    return QTensor(data, 0.06, 99)


def quantized_by_onnx(real: np.ndarray, out: QParams) -> np.ndarray:
    return run_node("QuantizeLinear", real.astype(np.float32), out.scale, out.zero_point.astype(out.dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("shape", "attributes"), CASES)
def test_max_pool_equals_onnx(shape: tuple[int, ...], attributes: dict[str, Any], dtype: str) -> None:
    x = image(shape, dtype)
    expected = run_node("MaxPool", x.data, **SAME_LOWER.get(attributes.get("auto_pad"), attributes))
    y = max_pool(x, **attributes)
    np.testing.assert_array_equal(y.data, expected)
    assert (y.scale, y.zero_point, y.dtype) == (x.scale, x.zero_point, x.dtype)
    again = max_pool(x, **attributes, out=OUT)
    np.testing.assert_array_equal(again.data, quantized_by_onnx(y.dequantize(), OUT))


def defined_average(x: QTensor, attributes: dict[str, Any], include: bool) -> np.ndarray:
    """The normative float32 chain, with sums and counts of windows that onnx.reference takes of exact integers."""
    integers = x.data.astype(np.float64) - x.zero_point
    size = int(np.prod(attributes["kernel_shape"]))
    options = {**attributes, "count_include_pad": include}
    means = run_node("AveragePool", integers, **options)
    shares = run_node("AveragePool", np.ones(x.shape), **{**attributes, "count_include_pad": 1})
    counts = np.full(means.shape, size) if include else np.rint(shares * size)
    return np.rint(means * counts).astype(np.float32) * x.scale / counts.astype(np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(("shape", "attributes"), [case for case in CASES if "ceil_mode" not in case[1]])
def test_average_pool_equals_onnx(shape: Any, attributes: dict[str, Any], include: bool, dtype: str) -> None:
    x = image(shape, dtype)
    y = average_pool(x, **attributes, count_include_pad=include, out=OUT)
    np.testing.assert_array_equal(y.data, quantized_by_onnx(defined_average(x, attributes, include), OUT))


def test_average_pool_counts_neither_padding_nor_the_rounded_up_end() -> None:
    x = QTensor(np.full((1, 1, 4, 4), 10, np.uint8), 1.0)
    attributes: dict[str, Any] = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 0, 0), "ceil_mode": True}
    assert (average_pool(x, **attributes).data == 10).all()
    with_pads = average_pool(x, **attributes, count_include_pad=True, out=QParams(0.125)).dequantize()[0, 0]
    # Each side sees windows of 3, 3 and 1 elements, the first of which has 1 of padding.
    counts, within = np.outer([3, 3], [3, 3]), np.outer([2, 3], [2, 3])
    np.testing.assert_allclose(with_pads, 10 * within / counts, atol=0.07)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 7), (1, 2, 3, 4, 5)])
def test_global_pools_equal_onnx(shape: tuple[int, ...], dtype: str) -> None:
    x = image(shape, dtype)
    spatial = tuple(range(2, len(shape)))
    np.testing.assert_array_equal(global_max_pool(x).data, x.data.max(axis=spatial, keepdims=True))
    sums = (x.data.astype(np.int64) - x.zero_point).sum(axis=spatial, keepdims=True)
    real = sums.astype(np.float32) * x.scale / np.float32(np.prod(shape[2:]))
    np.testing.assert_allclose(real, run_node("GlobalAveragePool", x.dequantize()), atol=1e-4)
    for out in (OUT, x.params):
        np.testing.assert_array_equal(global_average_pool(x, out).data, quantized_by_onnx(real, out))
    assert global_average_pool(x) == global_average_pool(x, x.params)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_layouts_agree_and_carry_the_memory_order(pool: Any) -> None:
    x = image((2, 5, 8, 9))
    first = pool(x, (3, 3), (2, 2), (1, 1, 1, 1))
    last = QTensor(np.ascontiguousarray(x.data.transpose(0, 2, 3, 1)), x.scale, x.zero_point)
    assert pool(last, (3, 3), (2, 2), (1, 1, 1, 1), layout="NHWC").transpose(0, 3, 1, 2) == first
    viewed = pool(last.transpose(0, 3, 1, 2), (3, 3), (2, 2), (1, 1, 1, 1))
    assert viewed == first
    assert viewed.data.transpose(0, 2, 3, 1).flags.c_contiguous
    for whole in (global_max_pool, global_average_pool):
        assert whole(last, layout="NHWC").transpose(0, 3, 1, 2) == whole(x)


def test_fixed_means_of_windows() -> None:
    """For each number of elements and count; none where sums are large."""
    sizes, p, q = (20, 20), QParams(0.0311, 110), QParams(0.0537, 90)
    padded = place(sizes, (3, 3), pads=(1, 1, 1, 1))
    found = fixed_means(windows(sizes, 4, padded), p, q)
    assert found.shape == (20, 20)
    some = found[[0, 0, 1], [0, 1, 1]]
    np.testing.assert_allclose(some["factor"] / 2.0 ** (16 + some["bits"]), 0.0311 / 0.0537 / np.array([4, 6, 9]), 1e-5)
    halves = windows(sizes, 4, place(sizes, (2, 2)))
    same = QParams(0.03)  # whose multiples, divided by it again, are not all what they were
    assert fixed_means(halves, same, same)["halves"].all() and not fixed_means(halves, p, q)["halves"].any()
    assert not fixed_means(windows(sizes, 4, place(sizes, (12, 12))), p, q)["bits"].any()


def test_sums_beyond_int32_are_exact() -> None:
    x = QTensor(np.broadcast_to(np.uint8(255), (1, 1, 3000, 3000)), 1.0)
    assert 255 * 3000 * 3000 > 2**31
    assert global_average_pool(x).data.item() == 255


X = image((1, 2, 4, 4))


@pytest.mark.parametrize("pool", [max_pool, average_pool])
@pytest.mark.parametrize(
    ("x", "arguments", "error", "message"),
    [
        (X.data, {}, TypeError, "x: expected a QTensor"),
        (X[0, 0], {}, ValueError, "x: expected at least 3 dimensions"),
        (X, {"kernel_shape": (2,)}, ValueError, "kernel_shape: expected 2 integers"),
        (X, {"kernel_shape": (5, 2)}, ValueError, "x: the kernel covers 5"),
        (X, {"kernel_shape": (0, 2)}, ValueError, "kernel_shape: expected 2 integers of at least 1"),
        (X, {"pads": (2, 0, 0, 0)}, ValueError, "pads: a window lies wholly in the padding"),
        (X, {"layout": "NWC"}, ValueError, "layout: expected one of"),
        (X, {"out": 3}, TypeError, "out: expected QParams"),
        (X[:, :, :0], {}, ValueError, "x: expected spatial dimensions of at least 1"),
    ],
)
def test_errors_name_the_argument(
    pool: Any, x: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pool(x, **{"kernel_shape": (2, 2), **arguments})

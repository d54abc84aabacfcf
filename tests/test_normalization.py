"""Softmax and layer normalization in float32: close to float64, for any axis and memory order, and special values."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_node import run_node

from pyq.normalization import layer_norm, softmax_float32
from pyq.reference_normalization import exponential

pytestmark = pytest.mark.usefixtures("backend")

EPS = 2.0**-24
"""Half a unit in the last place, relative: the error of one rounding."""


def exact_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = x.astype(np.float64) - x.max(axis=axis, keepdims=True).astype(np.float64)
    return np.exp(shifted) / np.exp(shifted).sum(axis=axis, keepdims=True)


def test_exponential_is_within_one_unit_in_the_last_place() -> None:
    t = -np.concatenate([np.linspace(0, 87.3, 500_001), np.geomspace(1e-30, 87, 100_001)]).astype(np.float32)
    exact = np.exp(t.astype(np.float64))
    assert (np.abs(exponential(t) - exact) <= np.spacing(exact.astype(np.float32))).all()
    assert exponential(np.array([0, -87.7, -1e30, -np.inf], np.float32)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_softmax_of_any_axis(axis: int, order: str) -> None:
    x = np.random.default_rng(5).normal(0, 4, (7, 30, 45)).astype(np.float32).copy(order=order)
    y, exact = softmax_float32(x, axis), exact_softmax(x, axis)
    distance = x.max(axis=axis, keepdims=True) - x
    # The difference rounds, exp has 2 EPS and its sum 2 and one for each of up to 7 additions, the quotient 1.
    assert (np.abs(y - exact) <= exact * EPS * (distance + 14)).all()
    np.testing.assert_allclose(y, run_node("Softmax", x, axis=axis), rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_long_rows_lose_little(size: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(2, 3, (3, size)).astype(np.float32)
    np.testing.assert_allclose(softmax_float32(x).sum(axis=1, dtype=np.float64), 1, rtol=2e-6)
    y, mean, inverse = layer_norm(x, np.ones(size, np.float32), None, 1, 1e-5)
    wide = x.astype(np.float64)
    deviation = np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(mean, wide.mean(axis=1, keepdims=True), rtol=2e-6)
    np.testing.assert_allclose(inverse, 1 / deviation, rtol=2e-6)
    np.testing.assert_allclose(y, (wide - wide.mean(axis=1, keepdims=True)) / deviation, rtol=0, atol=4e-6)


def test_special_values() -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[0, -inf], [inf, 0], [-inf, -inf], [nan, 0], [3e38, -3e38], [-0.0, 0]], np.float32)
    expected = [[1, 0], [nan, nan], [nan, nan], [nan, nan], [1, 0], [0.5, 0.5]]
    np.testing.assert_array_equal(softmax_float32(x), np.array(expected, np.float32))


@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 4, 50)), (1, (3, 4, 50)), (0, (3, 4)), (-2, (2, 17, 3))])
def test_layer_norm_over_several_axes(axis: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(1, 2, shape).astype(np.float32)
    scale, bias = rng.normal(0, 1, (2, *shape[axis:])).astype(np.float32)
    for b in (bias, None):
        y, mean, inverse = layer_norm(x, scale, b, axis, 1e-5)
        operands = [scale] if b is None else [scale, b]
        np.testing.assert_allclose(y, run_node("LayerNormalization", x, *operands, axis=axis), rtol=0, atol=5e-6)
        assert mean.shape == inverse.shape == tuple(1 if i >= axis % x.ndim else n for i, n in enumerate(shape))


def test_no_elements() -> None:
    assert softmax_float32(np.empty((0, 3), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="x: expected at least one element along axis 1"):
        softmax_float32(np.empty((3, 0), np.float32), 1)

"""Shorter ways to the integers of the numerics: taken where they are proved, and the same bytes as without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyq import c_backend, use_backend
from pyq.elementwise import add, mul, sub
from pyq.fixed_point import evaluate, fixed_mean
from pyq.pooling import average_pool
from pyq.qparams import QParams
from pyq.tensor import QTensor

ALL = np.arange(256, dtype=np.uint8)
FUNCTIONS = {"add": add, "sub": sub, "mul": mul}

# --- arithmetic ---------------------------------------------------------------------------------------------


def shortcut(op: str, a: QParams, b: QParams, out: QParams) -> str:
    """Which one the C kernels take."""
    found = c_backend._arithmetic(op, a.numbers, b.numbers, out.numbers, out.qmin, out.qmax)
    if found.product_factor > 0:
        return "product"
    return "none" if not found.sum.fraction_bits else "sum" if found.sum.close < 0 else "checked sum"


def assert_every_pair_is_right(op: str, a: QParams, b: QParams, out: QParams) -> None:
    x, y = QTensor.of(ALL.view(a.dtype)[:, None], a), QTensor.of(ALL.view(b.dtype), b)
    with use_backend("reference"):
        expected = FUNCTIONS[op](x, y, out)
    with use_backend("c"):
        np.testing.assert_array_equal(FUNCTIONS[op](x, y, out).data, expected.data)


P, Q, R = QParams(0.0311, 110), QParams(0.0233, -28, "int8"), QParams(0.0537, 120)


@pytest.mark.parametrize(
    ("op", "a", "b", "out", "way"),
    [
        ("add", P, Q, R, "sum"),
        ("sub", Q, P, QParams(0.0537, -9, "int8"), "sum"),
        ("mul", P, Q, R, "product"),
        ("mul", Q, P, QParams(0.01, 3, qmin=10, qmax=200), "product"),
        ("add", QParams(0.5, 3), QParams(0.25, 4), QParams(0.5, 5), "checked sum"),  # many halves, which go to even
        ("sub", QParams(0.5, 3), QParams(0.25, 4), QParams(0.5, 5), "checked sum"),
        ("add", P, Q, QParams(1e-4), "none"),  # sums of more than 32 bits
        ("mul", QParams(1e-30), QParams(1e-30), R, "none"),  # products are subnormal
    ],
)
def test_arithmetic(each_isa: str, op: str, a: QParams, b: QParams, out: QParams, way: str) -> None:
    if each_isa != "scalar":
        assert shortcut(op, a, b, out) == way
    assert_every_pair_is_right(op, a, b, out)


def test_arithmetic_of_any_parameters(each_isa: str, rng: np.random.Generator) -> None:
    def params(scale: float) -> QParams:
        lowest, dtype = [(0, "uint8"), (-128, "int8")][rng.integers(2)]
        return QParams(scale, int(rng.integers(lowest, lowest + 256)), dtype)

    for _ in range(20):
        scales = np.exp(rng.uniform(-6, 0, 2))
        a, b = params(scales[0]), params(scales[1])
        for op in ("add", "sub"):
            assert_every_pair_is_right(op, a, b, params(scales.max() * np.exp(rng.uniform(-1, 2))))
        assert_every_pair_is_right("mul", a, b, params(scales.prod() * np.exp(rng.uniform(0, 6))))


# --- averages -----------------------------------------------------------------------------------------------


@given(st.floats(-6, 2), st.integers(2, 2000), st.integers(-2000, 2000))
def test_a_line_in_fixed_point_is_exact(exponent: float, count: int, start: int) -> None:
    slope = float(np.exp(exponent))
    wanted = np.clip(np.rint((np.arange(count) + start) * slope), -128, 100).astype(np.int64)
    mean = fixed_mean(wanted, slope, 100)
    if mean["bits"]:
        words = ((np.arange(count) + int(mean["addend"])) * int(mean["factor"]) >> 16) + int(mean["offset"])
        signed = (words + 2**15) % 2**16 - 2**15 >> int(mean["bits"])
        np.testing.assert_array_equal(np.clip(signed, -128, 100), wanted)
        assert int(mean["addend"]) + count <= 2**16


@pytest.mark.parametrize("size", [2, 3, 4, 6, 9, 16, 25])
def test_lines_of_averages_are_found(size: int) -> None:
    for slope in np.sqrt([0.1, 0.2, 0.35, 0.5, 0.9, 1.3, 1.9]) / size:  # no halves
        wanted = np.rint((np.arange(255 * size + 1) - 110 * size) * slope)
        assert fixed_mean(np.clip(wanted, -128, 127).astype(np.int64), slope)["bits"]


@pytest.mark.parametrize("n", [2, 4, 16, 64])
@pytest.mark.parametrize("zero_point", [0, 1, 110, 255])
def test_halves_that_round_up_or_down(n: int, zero_point: int, rng: np.random.Generator) -> None:
    """Whatever each of them does, since that depends on roundings."""
    sums = np.arange(255 * n + 1) - zero_point * n
    up = rng.integers(0, 2, len(sums)) > 0
    wanted = np.where(up, np.floor(sums / n + 0.5), np.ceil(sums / n - 0.5)).astype(np.int64) + zero_point - 128
    mean = fixed_mean(wanted, 1 / n)
    assert mean["halves"]
    np.testing.assert_array_equal(evaluate(mean, len(wanted), 127), wanted)


def test_averages_that_do_not_reach_the_highest(each_isa: str, rng: np.random.Generator) -> None:
    """What the largest sums become is found by the line too, not by a bound."""
    del each_isa
    x = QTensor(np.r_[-128:128].astype(np.int8).reshape(1, 1, 1, 256), 0.3014043, 102)
    for scale in [0.07808723, *rng.uniform(0.05, 0.6, 200)]:
        out = QParams(scale, 111)
        with use_backend("reference"):
            expected = average_pool(x, (1, 1), out=out, layout="NHWC")
        with use_backend("c"):
            np.testing.assert_array_equal(average_pool(x, (1, 1), out=out, layout="NHWC").data, expected.data)


def test_no_line() -> None:
    halves = np.rint(np.arange(100) / 2).astype(np.int64)
    assert not fixed_mean(halves, 0.75)["bits"] and fixed_mean(np.arange(100) // 2, 0.5)["bits"]
    assert not fixed_mean(np.arange(10), 2.0)["bits"]  # the last would be too large
    assert not fixed_mean(np.rint(np.arange(100) / 6).astype(np.int64), 1 / 6)["bits"]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("shape", "kernel", "strides"),
    [
        ((5, 300, 2), (3, 3), (1, 1)),  # few channels, several pieces of a row
        ((5, 70, 34), (2, 3), (1, 1)),  # blocks that overlap
        ((7, 40, 34), (3, 5), (2, 2)),
        ((4, 40, 256), (3, 3), (1, 1)),  # the last piece overlaps the one before
        ((9, 21, 290), (5, 4), (1, 3)),  # channels in blocks
        ((4, 12, 290), (3, 3), (2, 1)),
        ((9, 31, 64), (4, 17), (1, 1)),  # too many columns
        ((4, 31, 33), (3, 3), (1, 1)),  # odd channels
        ((4, 9, 34), (3, 9), (1, 1)),
        ((3, 3, 34), (3, 3), (1, 1)),
        ((4, 20, 34), (2, 2), (1, 1)),  # halves, with the parameters of x
        ((6, 20, 64), (4, 4), (2, 2)),
        ((6, 20, 64), (2, 2), (2, 2)),  # no overlap
    ],
)
def test_windows_that_overlap(
    each_isa: str, shape: tuple[int, ...], kernel: Any, strides: Any, dtype: str, rng: np.random.Generator
) -> None:
    del each_isa
    x = QTensor(rng.integers(0, 256, (2, *shape)).astype(np.uint8).view(dtype), 0.0311, 27)
    pads = (kernel[0] // 2, kernel[1] // 2) * 2
    for out in (QParams(0.0237, 120), x.params, QParams(0.01, -5, "int8", qmin=-100, qmax=90)):
        for include in (False, True):
            arguments: dict[str, Any] = {"count_include_pad": include, "out": out, "layout": "NHWC"}
            with use_backend("reference"):
                expected = average_pool(x, kernel, strides, pads, **arguments)
            with use_backend("c"):
                np.testing.assert_array_equal(average_pool(x, kernel, strides, pads, **arguments).data, expected.data)

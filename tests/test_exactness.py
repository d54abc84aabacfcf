"""matmul_integer and conv_integer equal int64 NumPy on every backend: types, zero points, sizes, corners, geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from exact import assert_same, conv, corners, full_range, matmul, wide, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st

import pyq
from pyq import ops
from pyq.packing import pack
from pyq.panels import LAYOUT_NAMES
from pyq.tensor import QTensor

BACKENDS = pyq.available_backends()
BYTES = ("uint8", "int8")
MIXES = [(ta, tb) for ta in BYTES for tb in BYTES]
seeds = st.integers(0, 2**32 - 1)

every_backend = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.usefixtures("each_isa")
every_mix = pytest.mark.parametrize(("ta", "tb"), MIXES)
Fill = Callable[[np.random.Generator, Sequence[int], str], np.ndarray]


def extreme_zero(which: str, dtype: str) -> int:
    limits = np.iinfo(dtype)
    return {"low": int(limits.min), "zero": 0, "high": int(limits.max)}[which]


# --- matrix products ----------------------------------------------------------------------------------------


@every_backend
@every_mix
@given(seeds, st.integers(1, 40), st.integers(1, 90), st.integers(1, 50), st.booleans(), st.data())
def test_small_products(
    backend: str, ta: str, tb: str, seed: int, m: int, k: int, n: int, extreme: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    fill: Fill = corners if extreme else full_range
    a, b = fill(rng, (m, k), ta), fill(rng, (k, n), tb)
    za = fill(rng, data.draw(st.sampled_from([(), (m,), (m, 1)]), "za"), ta)
    zb = fill(rng, data.draw(st.sampled_from([(), (n,), (1, n)]), "zb"), tb)
    with pyq.use_backend(backend):
        acc = ops.matmul_integer(a, b, za, zb)
    assert_same(acc, matmul(a, b, za.reshape(-1, 1), zb.reshape(1, -1)), backend)


@every_mix
@pytest.mark.parametrize("za", ["low", "zero", "high"])
@pytest.mark.parametrize("zb", ["low", "zero", "high"])
def test_all_corners(backend: str, ta: str, tb: str, za: str, zb: str) -> None:
    """Every pairing of smallest and largest activations, weights and zero points, K = 300."""
    za_value, zb_value = extreme_zero(za, ta), extreme_zero(zb, tb)
    low, high = np.iinfo(ta).min, np.iinfo(ta).max
    a = np.array([[low] * 300, [high] * 300, [low, high] * 150, [high, low] * 150], ta)
    low, high = np.iinfo(tb).min, np.iinfo(tb).max
    b = np.array([[low] * 300, [high] * 300, [low, high] * 150, [low, low, high, high] * 75] * 5, tb).T.copy()
    assert_same(ops.matmul_integer(a, b, za_value, zb_value), matmul(a, b, za_value, zb_value), backend)


BIG = [
    (1, 2000, 2000),
    (2000, 1, 2000),
    (2000, 2000, 1),
    (1, 1, 1),
    (2000, 2000, 2000),
    (1999, 257, 130),
    (193, 1023, 17),
]


@every_mix
@pytest.mark.parametrize(("m", "k", "n"), BIG)
def test_big_products(backend: str, ta: str, tb: str, m: int, k: int, n: int, rng: np.random.Generator) -> None:
    """Sizes up to 2000, checked by Freivalds' identity in int64: (a b) v = a (b v) for three random vectors v.

    A wrong row escapes one vector of 2**16 values with probability 2**-16 at most; the whole products would take
    int64 NumPy minutes.
    """
    a, b = full_range(rng, (m, k), ta), full_range(rng, (k, n), tb)
    za, zb = full_range(rng, (), ta), full_range(rng, (n,), tb)
    acc = ops.matmul_integer(a, b, za, zb)
    assert (acc.dtype, acc.shape) == (np.int32, (m, n))
    v = rng.integers(-(2**15), 2**15, (n, 3))
    left, right = wide(a) - wide(za), wide(b) - wide(zb)
    np.testing.assert_array_equal(wide(acc) @ v, left @ (right @ v))


@every_mix
def test_sums_that_wrap(backend: str, ta: str, tb: str) -> None:
    """K = 40000 products of 255 * 255 pass 2**31."""
    a = np.stack([np.full(40_000, np.iinfo(ta).max, ta), np.full(40_000, np.iinfo(ta).min, ta)])
    b = np.stack([np.full(40_000, np.iinfo(tb).max, tb), np.full(40_000, np.iinfo(tb).min, tb)], axis=1)
    za, zb = int(np.iinfo(ta).min), int(np.iinfo(tb).min)
    acc = ops.matmul_integer(a, b, za, zb)
    assert acc[0, 0] == 40_000 * 255 * 255 - 2**32
    assert_same(acc, matmul(a, b, za, zb), backend)


@every_backend
@given(seeds, st.integers(1, 60), st.integers(1, 90), st.integers(1, 70), st.sampled_from(MIXES), st.booleans())
def test_packed_weights(backend: str, seed: int, m: int, k: int, n: int, mix: tuple[str, str], extreme: bool) -> None:
    """The proven panels, as `pack` makes them for repeated use: weights of a layer, or of corners only."""
    rng = np.random.default_rng(seed)
    ta, tb = mix
    limits = np.iinfo(tb)
    zb = full_range(rng, (n,), tb)
    b = corners(rng, (k, n), tb)
    if not extreme:
        b = np.clip(rng.laplace(0, 12, (k, n)).round() + zb, limits.min, limits.max).astype(tb)
    a, za = (corners if extreme else full_range)(rng, (m, k), ta), full_range(rng, (), ta)
    w = pack(QTensor(b, np.ones(n, np.float32), zb, 1))
    with pyq.use_backend(backend):
        assert_same(ops.matmul_integer(a, w, za), matmul(a, b, za, zb), f"{backend} {w.certificate}")


@every_backend
def test_narrow_last_panels(backend: str, rng: np.random.Generator) -> None:
    """Up to eight columns have kernels of their own, in every layout that such a panel can have."""
    layouts = set()
    for columns, largest in ((1, 127), (7, 64), (8, 32), (24, 8), (120, 127), (9, 100)):
        b = rng.choice([-largest, largest], (192, columns)).astype(np.int8)
        w = pack(QTensor(b, 1.0), isa="avx2")
        layouts |= {LAYOUT_NAMES[segment["layout"]] for segment in w.segments if segment["columns"] <= 8}
        for rows in range(1, 15):
            a = rng.choice([0, 1, 255], (rows, 192)).astype(np.uint8)
            with pyq.use_backend(backend):
                assert_same(ops.matmul_integer(a, w, 3), matmul(a, b, 3), f"{backend} {rows} rows {w.certificate}")
    assert layouts == ({"pairs8w", "quads32", "quads8", "quads8p2", "quads8p4"} if "c" in BACKENDS else {"pairs16"})


@every_backend
@pytest.mark.parametrize("depth", [3, 16, 131, 4099])
def test_pairs_of_panels(backend: str, depth: int, rng: np.random.Generator) -> None:
    """Where kernels compute two panels at once: the second whole or not, one left over, in the output or in a tile; the
    last of them with so many weights that they are asked for ahead."""
    for columns in (17, 25, 32, 40, 48, 64, 75, *((150,) if depth > 4096 else ())):
        b = corners(rng, (depth, columns), "int8")
        w = pack(QTensor(b, 0.01), isa="avx512vnni")
        bias, out = rng.normal(0, 9, columns), pyq.QParams(0.05 * depth**0.5, 120)
        for rows in (1, 2, 3, 4, 5, 8, 50):
            a = full_range(rng, (rows, depth), "uint8")
            with pyq.use_backend(backend):
                assert_same(ops.matmul_integer(a, w, 3), matmul(a, b, 3), f"{backend} {rows} x {columns}")
                requantized = ops.matmul(QTensor(a, 0.02, 3), w, bias, out)
            with pyq.use_backend("reference"):
                assert_same(requantized.data, ops.matmul(QTensor(a, 0.02, 3), w, bias, out).data, backend)


@every_backend
def test_activations_of_any_strides(backend: str, rng: np.random.Generator) -> None:
    b = full_range(rng, (24, 20), "int8")
    whole = full_range(rng, (50, 60), "uint8")
    for a in (
        whole[:, :24],
        whole[::2, :48:2],
        whole[::-1, 23::-1],
        whole[:24, :30].T,
        np.broadcast_to(whole[:1, :24], (7, 24)),
    ):
        assert_same(ops.matmul_integer(a, b, 3), matmul(a, b, 3), f"{backend} strides {a.strides}")


# --- convolutions -------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and attributes of a convolution that fits."""
    group = draw(st.sampled_from([1, 1, 2, 3]))
    depth, filters = draw(st.integers(1, 9)), group * draw(st.integers(1, 9))
    if draw(st.booleans()) and group > 1:  # depthwise
        group = filters = draw(st.sampled_from([2, 5, 16, 17, 33]))
        depth = 1
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilations = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    least = [max(1, r - pads[i] - pads[i + 2]) for i, r in enumerate(reach)]
    size = [n + draw(st.integers(0, 7)) for n in least]
    return {
        "x": (draw(st.integers(1, 2)), group * depth, *size),
        "w": (filters, depth, *kernel),
        "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "pads": pads,
        "dilations": dilations,
        "group": group,
    }


@every_backend
@settings(max_examples=120)
@given(seeds, geometries(), st.sampled_from(MIXES), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_small_convolutions(
    backend: str,
    seed: int,
    geometry: dict[str, Any],
    mix: tuple[str, str],
    extreme: bool,
    per_filter: bool,
    packed: bool,
    channels_last: bool,
) -> None:
    rng = np.random.default_rng(seed)
    fill: Fill = corners if extreme else full_range
    x_shape, w_shape, *_ = geometry.values()
    attributes = {name: value for name, value in geometry.items() if name not in ("x", "w")}
    x, w = fill(rng, x_shape, mix[0]), fill(rng, w_shape, mix[1])
    zx, zw = full_range(rng, (), mix[0]), full_range(rng, w_shape[:1] if per_filter else (), mix[1])
    expected = conv(x, w, int(zx), zw, **attributes)
    with pyq.use_backend(backend):
        if packed:
            zeros = np.broadcast_to(zw, w_shape[:1])
            tensor = QTensor(w, np.ones(w_shape[0], np.float32), zeros, 0)
            weights = (pack(tensor, group=attributes["group"], dilations=attributes["dilations"]),)
            acc = ops.conv_integer(x, *weights, zx, **attributes)
        elif channels_last:
            images = np.ascontiguousarray(np.moveaxis(x, 1, -1))
            acc = np.moveaxis(ops.conv_integer(images, w, zx, zw, **attributes, layout="NHWC"), -1, 1)
        else:
            acc = ops.conv_integer(x, w, zx, zw, **attributes)
    assert_same(np.ascontiguousarray(acc), expected, f"{backend} {geometry}")


LAYERS = {  # of real networks: x, w, attributes
    "stem": ((1, 3, 48, 64), (32, 3, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "7x7": ((1, 3, 40, 40), (16, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
    "pointwise": ((1, 96, 12, 80), (64, 96, 1, 1), {}),
    "3x3": ((2, 32, 14, 14), (48, 32, 3, 3), {"pads": (1, 1, 1, 1)}),
    "dilated": ((1, 16, 20, 20), (16, 16, 3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    "dilated, odd depth": ((1, 5, 20, 20), (16, 5, 3, 3), {"pads": (3, 3, 3, 3), "dilations": (3, 3)}),
    "asymmetric": ((1, 7, 9, 30), (20, 7, 1, 5), {"strides": (1, 3), "pads": (0, 4, 0, 1)}),
    "depthwise": ((1, 96, 12, 80), (96, 1, 3, 3), {"pads": (1, 1, 1, 1), "group": 96}),
    "depthwise 5x5": ((1, 33, 12, 20), (33, 1, 5, 5), {"pads": (2, 2, 2, 2), "strides": (2, 1), "group": 33}),
    "depthwise 7x7": ((1, 40, 11, 23), (40, 1, 7, 7), {"pads": (3, 3, 3, 3), "strides": (1, 2), "group": 40}),
    "multiplied depthwise": ((1, 8, 9, 9), (24, 1, 3, 3), {"group": 8}),
    "grouped": ((1, 24, 10, 10), (36, 6, 3, 3), {"pads": (1, 1, 1, 1), "group": 4}),
    "narrow groups": ((1, 8, 6, 6), (8, 2, 1, 1), {"group": 4}),
    "wide": ((1, 1, 1, 2000), (3, 1, 1, 3), {}),
}


@pytest.mark.parametrize("layer", LAYERS)
@every_mix
def test_layers(backend: str, ta: str, tb: str, layer: str, rng: np.random.Generator) -> None:
    x_shape, w_shape, attributes = LAYERS[layer]
    for fill in (full_range, corners):
        x, w = fill(rng, x_shape, ta), fill(rng, w_shape, tb)
        zx, zw = int(full_range(rng, (), ta)), full_range(rng, w_shape[:1], tb)
        acc = ops.conv_integer(x, w, zx, zw, **attributes)
        assert_same(np.ascontiguousarray(acc), conv(x, w, zx, zw, **attributes), f"{backend} {layer}")


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 6, 30), (9, 6, 3), {}),
        ((1, 5, 31), (20, 5, 4), {"strides": (2,), "pads": (3, 1)}),
        ((1, 4, 40), (8, 2, 3), {"dilations": (4,), "group": 2}),
        ((1, 40, 25), (40, 1, 5), {"pads": (2, 2), "group": 40}),
        ((1, 80, 2000), (16, 80, 3), {"strides": (2,)}),
    ],
)
@every_mix
def test_one_dimension(
    backend: str,
    ta: str,
    tb: str,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    """A 1-D convolution is a 2-D one of images of height 1."""
    x, w = full_range(rng, shape, ta), full_range(rng, kernel, tb)
    zx, zw = int(full_range(rng, (), ta)), full_range(rng, kernel[:1], tb)
    begin, end = attributes.get("pads", (0, 0))
    lifted = {
        "strides": (1, *attributes.get("strides", (1,))),
        "dilations": (1, *attributes.get("dilations", (1,))),
        "pads": (0, begin, 0, end),
        "group": attributes.get("group", 1),
    }
    acc = ops.conv_integer(x, w, zx, zw, **attributes)
    assert_same(np.ascontiguousarray(acc), conv(x[:, :, None], w[:, :, None], zx, zw, **lifted)[:, :, 0], backend)


def test_the_comparison_names_rows_and_columns() -> None:
    """A failure of this suite must tell where; the oracle itself must wrap."""
    right = np.zeros((4, 5), np.int32)
    wrong = right.copy()
    wrong[2, 1] = wrong[3, 4] = 7
    with pytest.raises(AssertionError, match=r"2 of 20 elements differ, in rows \[2, 3\] and columns \[1, 4\]"):
        assert_same(wrong, right)
    assert wrapped([2**31, -(2**31) - 1, 2**32]).tolist() == [-(2**31), 2**31 - 1, 0]

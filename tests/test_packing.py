"""Packing: every weight comes back, every certificate holds for the worst activations, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import assert_same, conv, corners, full_range, matmul, wide
from hypothesis import given
from hypothesis import strategies as st

import pyq
from pyq import ops, panels
from pyq.config import isa
from pyq.packing import PackedWeight, pack, verify_certificate
from pyq.panels import Panels
from pyq.tensor import QTensor

pytestmark = pytest.mark.usefixtures("each_isa")

DTYPES = ("uint8", "int8")
AMAX = (255, 254, 128, 127, 64, 15, 1)
seeds = st.integers(0, 2**32 - 1)


def quantized(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, per_channel: bool, extreme: bool
) -> QTensor:
    """Weights of full range (extreme: minima and maxima only), with zero points of full range."""
    data = (corners if extreme else full_range)(rng, shape, dtype)
    if not per_channel:
        return QTensor(data, 0.5, int(full_range(rng, (), dtype)))
    axis = 1 if len(shape) == 2 else 0
    zero_points = full_range(rng, shape[axis : axis + 1], dtype)
    return QTensor(data, rng.uniform(0.1, 1, len(zero_points)).astype(np.float32), zero_points, axis)


def folded(w: QTensor) -> np.ndarray:
    """The weights minus their zero points, int64."""
    return wide(w.data) - w.zero_point.reshape([-1 if a == w.axis else 1 for a in range(w.ndim)])


def worst(weights: np.ndarray, amax: int) -> np.ndarray:
    """[2 N + 2, K] activations for [K, N] weights: for each column, amax at all positive, then at all negative ones.

    No other activations make larger sums, in 16 bits or in 32: a quad's halves and groups keep the weights' signs.
    """
    positive, negative = (weights.T > 0), (weights.T < 0)
    whole = np.array([[False], [True]]).repeat(len(weights), axis=1)
    return (amax * np.concatenate([positive, negative, whole])).astype(np.uint8)


# --- the weights come back ----------------------------------------------------------------------------------


@given(
    seeds,
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from(AMAX),
    st.booleans(),
)
def test_matrix_round_trip(
    seed: int, k: int, n: int, dtype: str, per_channel: bool, extreme: bool, amax: int, prove: bool
) -> None:
    w = quantized(np.random.default_rng(seed), (k, n), dtype, per_channel, extreme)
    packed = pack(w, amax=amax, prove=prove)
    assert (packed.kind, packed.shape, packed.columns, packed.amax) == ("gemm", (k, n), n, amax)
    assert_same(packed.unpack(), np.asarray(w.data), "unpack")
    assert_same(packed.colsum, folded(w).sum(axis=0).astype(np.int32), "colsum")
    np.testing.assert_array_equal(packed.scale, w.scale)
    np.testing.assert_array_equal(packed.zero_point, w.zero_point)
    verify_certificate(packed)


@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 18),
    st.integers(1, 9),
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(AMAX),
    st.integers(1, 2),
)
def test_convolution_round_trip(
    seed: int,
    group: int,
    filters: int,
    channels: int,
    kernel: list[int],
    dtype: str,
    per_channel: bool,
    amax: int,
    dilation: int,
) -> None:
    w = quantized(np.random.default_rng(seed), (group * filters, channels, *kernel), dtype, per_channel, False)
    packed = pack(w, amax=amax, group=group, dilations=[dilation] * len(kernel))
    depthwise = group > 1 and filters == channels == 1
    assert (packed.kind, packed.group) == ("depthwise" if depthwise else "conv", group)
    assert_same(packed.unpack(), np.asarray(w.data), "unpack")
    assert_same(packed.colsum, folded(w).reshape(len(w.data), -1).sum(axis=1).astype(np.int32), "colsum")
    verify_certificate(packed)


@pytest.mark.parametrize(
    ("shape", "group", "columns"),
    [
        ((128, 4, 3, 3), 32, 16),  # four groups of four
        ((64, 8, 3, 3), 8, 16),  # two of eight, 18 quads
        ((64, 8, 5, 5), 8, 8),  # 50 quads: as narrow panels
        ((64, 4, 5, 5), 16, 8),  # two of four
        ((36, 4, 1, 1), 9, 12),  # three of four: four do not divide nine
        ((28, 4, 1, 1), 7, 4),  # no number above one divides seven
        ((64, 16, 3, 3), 4, 16),
        ((6, 3, 1, 3), 3, 6),  # all of them
    ],
)
def test_small_groups_share_a_panel(shape: tuple[int, ...], group: int, columns: int, rng: np.random.Generator) -> None:
    w = quantized(rng, shape, "int8", True, False)
    packed = pack(w, group=group)
    assert set(packed.segments["columns"].tolist()) == {columns}
    assert_same(packed.unpack(), np.asarray(w.data), "unpack")
    x = full_range(rng, (2, group * shape[1], *[5] * (len(shape) - 2)), "uint8")
    sums = conv(x, np.asarray(w.data), 3, np.asarray(w.zero_point), group=group)
    assert_same(ops.conv_integer(x, packed, 3), sums, "sums")


@pytest.mark.parametrize("channels", [2, 15, 16, 17, 40])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (2, 2), (7,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_round_trip(channels: int, kernel: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    w = quantized(rng, (channels, 1, *kernel), dtype, True, False)
    packed = pack(w, group=channels)
    assert packed.kind == "depthwise"
    assert (packed.certificate.panels, set(packed.certificate.steps)) == (-(-channels // 16), {"taps16"})
    assert_same(packed.unpack(), np.asarray(w.data), "unpack")


def test_panels_are_aligned_and_nothing_can_be_written(rng: np.random.Generator) -> None:
    packed = pack(quantized(rng, (37, 50), "int8", False, False))
    assert packed.data.ctypes.data % 64 == 0
    assert not (packed.segments["data"] % 64).any()
    for name in ("data", "order", "segments", "colsum", "scale", "zero_point"):
        assert not getattr(packed, name).flags.writeable
    assert repr(packed) == f"PackedWeight(gemm, shape=(37, 50), dtype=int8, amax=255, {packed.nbytes} bytes)"


@given(seeds, st.integers(1, 30), st.integers(1, 40))
def test_the_numpy_packer_equals_the_c_packer(seed: int, quads: int, columns: int) -> None:
    """What an installation without a compiler packs is what C packs without the search."""
    matrix = np.random.default_rng(seed).integers(-255, 256, (4 * quads, columns)).astype(np.int16)
    same_panels(panels.pack_pairs16(matrix), panels.pack_quads(matrix, 255, prove=False))


@given(seeds, st.integers(1, 120), st.integers(1, 40), st.sampled_from(["uint8", "int8"]), st.booleans())
def test_bytes_are_packed_as_folded_weights_are(seed: int, k: int, columns: int, dtype: str, middle: bool) -> None:
    """In one pass by C, in NumPy without a compiler: the same weights and sums. In bytes where that is faster."""
    random, limits = np.random.default_rng(seed), np.iinfo(dtype)
    b = random.integers(limits.min, limits.max + 1, (k, columns)).astype(dtype)
    zero_point = random.integers(limits.min, limits.max + 1, columns).astype(np.int32)
    if middle:
        zero_point[:] = (limits.min + limits.max + 1) // 2
    by_c, sums = panels.pack_bytes(b, zero_point)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "_core", None)
        by_numpy, expected = panels.pack_bytes(b, zero_point)
    if middle:
        quads32 = isa() == "avx512vnni"
        assert set(by_c.table["layout"]) == {panels.QUADS32 if quads32 else panels.PAIRS16}
    folded = [panels.unpack(each, -(-k // 4), columns, 1) for each in (by_c, by_numpy)]
    np.testing.assert_array_equal(*folded)
    np.testing.assert_array_equal(folded[0][0, :k], b - zero_point)
    np.testing.assert_array_equal(sums, expected)


def same_panels(left: Panels, right: Panels) -> None:
    """The same steps; panels may share one piece of the order, or each have their own."""
    np.testing.assert_array_equal(left.data, right.data)
    for field in set(left.table.dtype.names) - {"order"}:
        np.testing.assert_array_equal(left.table[field], right.table[field], err_msg=field)
    for index in range(len(left.table)):
        for mine, other in zip(panels.segment_weights(left, index), panels.segment_weights(right, index), strict=True):
            np.testing.assert_array_equal(mine, other)


# --- the certificate ----------------------------------------------------------------------------------------


def certified(w: PackedWeight, amax: int) -> None:
    """The fields agree with the panels, and the weights are exact on the worst activations of every column."""
    certificate = w.certificate
    assert certificate.amax == amax
    assert sum(certificate.steps.values()) == w.segments["steps"].sum()
    assert certificate.panels == len(set(w.segments["column"].tolist())) == -(-w.columns // 16)
    integers = wide(w.unpack()) - w.zero_point
    x = worst(integers, amax)
    assert_same(ops.matmul_integer(x, w), matmul(x, integers), str(certificate))


def distribution(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> np.ndarray:
    """int8 weights as layers have them, or as none has."""
    k, n = np.indices(shape)
    made = {
        "uniform": lambda: rng.integers(-128, 128, shape),
        "gaussian": lambda: rng.normal(0, 40, shape).round(),
        "laplace": lambda: rng.laplace(0, 16, shape).round(),
        "sparse": lambda: rng.integers(-128, 128, shape) * (rng.random(shape) < 0.1),
        "corners": lambda: rng.choice([-128, 127], shape),
        "smallest": lambda: np.full(shape, -128),
        "largest": lambda: np.full(shape, 127),
        "zero": lambda: np.zeros(shape),
        "alternating by row": lambda: np.where(k % 2, -128, 127),
        "alternating by pair": lambda: np.where(k % 4 < 2, -128, 127),
        "alternating by column": lambda: np.where(n % 2, -128, 127),
        "one column": lambda: np.where(n == 5, -128, 0),
        "one row": lambda: np.where(k == 5, 127, 0),
    }[name]()
    return np.clip(made, -128, 127).astype(np.int8)


DISTRIBUTIONS = ["uniform", "gaussian", "laplace", "sparse", "corners", "smallest", "largest", "zero"]
DISTRIBUTIONS += ["alternating by row", "alternating by pair", "alternating by column", "one column", "one row"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("amax", AMAX)
@pytest.mark.parametrize("backend", ["c", "numba"], indirect=True)
def test_certificates_hold_for_the_worst_activations(
    name: str, amax: int, backend: str, rng: np.random.Generator
) -> None:
    for shape in ((64, 32), (210, 37)):
        w = pack(QTensor(distribution(rng, name, shape), 1.0), amax=amax)
        verify_certificate(w)
        certified(w, amax)


@pytest.mark.parametrize("backend", ["c", "numba"])
@given(seeds, st.integers(1, 100), st.integers(1, 40), st.sampled_from(AMAX), st.floats(1, 90), st.sampled_from(DTYPES))
def test_certificates_hold_for_random_weights(
    backend: str, seed: int, k: int, n: int, amax: int, width: float, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    zero_point = int(limits.max) // 2 if dtype == "uint8" else 0
    data = np.clip(rng.normal(zero_point, width, (k, n)).round(), limits.min, limits.max).astype(dtype)
    w = pack(QTensor(data, 1.0, zero_point), amax=amax)
    verify_certificate(w)
    with pyq.use_backend(backend):
        certified(w, amax)


@pytest.mark.parametrize("name", ["laplace", "corners", "smallest", "alternating by pair"])
@pytest.mark.parametrize(("channels", "group"), [(3, 1), (8, 1), (8, 2), (6, 3)])
@pytest.mark.parametrize("amax", [255, 127])
def test_convolution_certificates_hold(
    name: str, channels: int, group: int, amax: int, rng: np.random.Generator
) -> None:
    """Every image is as large as the kernel, and holds the worst activations of one filter."""
    filters, depth = 6 * group, channels // group
    weights = distribution(rng, name, (depth * 9, filters)).T.reshape(filters, depth, 3, 3)
    w = pack(QTensor(weights, 1.0), amax=amax, group=group)
    verify_certificate(w)
    x = worst(np.tile(weights, (1, group, 1, 1)).reshape(filters, -1).T.astype(np.int64), amax)
    images = x.reshape(-1, channels, 3, 3)
    assert_same(ops.conv_integer(images, w), conv(images, weights, group=group), str(w.certificate))


def with_data(w: PackedWeight, data: np.ndarray) -> PackedWeight:
    fields = (w.kind, w.shape, w.dtype, w.scale, w.zero_point, w.group, w.amax, w.runs_per_row)
    return PackedWeight(*fields, Panels(w.segments, w.order, data), w.colsum)


def test_a_pack_beyond_its_bound_is_found_and_is_wrong() -> None:
    """The twin of the tests above: one tampered byte breaks the proof, and with it the kernel, so both can fail."""
    w = pack(QTensor(np.full((8, 16), 32, np.int8), 1.0), isa="avx2")
    assert w.certificate.steps == {"quads8p2": 2}
    verify_certificate(w)
    data = np.array(w.data)
    data.view(np.int8)[0] = 33  # 255 * (33 + 3 * 32) = 32895
    tampered = with_data(w, data)
    with pytest.raises(ValueError, match=r"segment 0: a 16-bit sum can reach 32895, the limit is 32767"):
        verify_certificate(tampered)
    x = np.full((1, 8), 255, np.uint8)
    right = matmul(x, tampered.unpack())
    with pyq.use_backend("c"):
        wrong = ops.matmul_integer(x, tampered)
    assert right[0, 0] == 255 * 257
    assert (wrong[0, 0] == right[0, 0]) == (isa() != "avx2")
    assert_same(wrong[:, 1:], right[:, 1:])


def test_what_is_grouped_and_what_is_widened() -> None:
    """255 * 128 is within 16 bits, 255 * 129 is not; 127 * 258 is, 127 * 259 is not."""

    def steps(rows: np.ndarray, amax: int, columns: int = 16) -> dict[str, int]:
        weights = np.repeat(rows.astype(np.int8)[:, None], columns, axis=1)
        return pack(QTensor(weights, 1.0), amax=amax, isa="avx2").certificate.steps

    def of_all(value: int, amax: int, columns: int = 16) -> dict[str, int]:
        return steps(np.full(64, value), amax, columns)

    assert of_all(16, 255) == {"quads8p4": 16}  # eight weights a sum: 128
    assert of_all(17, 255) == {"quads8p2": 16}
    assert of_all(32, 255) == {"quads8p2": 16}  # four weights
    assert of_all(33, 255) == {"quads8": 16}
    assert of_all(64, 255) == {"quads8": 16}  # two weights
    assert of_all(65, 255) == {"quads32": 16}
    assert of_all(-128, 255) == {"quads32": 16}
    assert of_all(-128, 255, columns=256) == {"pairs16": 256}  # sixteen panels share the widening of the activations
    assert of_all(-128, 255, columns=256 * 16) == {"pairs16": 256 * 16}  # 512 KiB of weights as int16
    assert of_all(-128, 255, columns=256 * 16 + 1) == {"pairs8w": 256 * 16 + 16}
    assert of_all(64, 127) == {"quads8p2": 16}
    assert of_all(127, 127) == {"quads8": 16}
    some_large = np.where(np.arange(64) // 4 % 4 == 3, 127, 1)
    assert steps(some_large, 255)["quads32"] == 4
    assert steps(some_large, 255, columns=256)["quads32"] == 4 * 16
    one_alone = np.where(np.arange(64) // 4 == 3, 64, 1)
    assert steps(one_alone, 255) == {"quads8p2": 18}  # with zeros: not worth a segment of its own


# --- what is refused ----------------------------------------------------------------------------------------

MATRIX = QTensor(np.ones((8, 4), np.int8), 1.0)
FILTERS = QTensor(np.ones((4, 2, 3, 3), np.int8), 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"qw": np.ones((8, 4), np.int8)}, TypeError, "qw: expected a QTensor, got ndarray"),
        ({"qw": QTensor(np.ones((8, 4), np.int32), 1.0)}, TypeError, "qw: expected int8 or uint8 weights, got int32"),
        ({"qw": MATRIX, "amax": 0}, ValueError, "amax: got 0, expected 1 to 255"),
        ({"qw": MATRIX, "amax": 256}, ValueError, "amax: got 256, expected 1 to 255"),
        ({"qw": QTensor(np.ones(8, np.int8), 1.0)}, ValueError, r"qw: got shape \(8,\)"),
        ({"qw": QTensor(np.ones((1,) * 6, np.int8), 1.0)}, ValueError, r"qw: got shape \(1, 1, 1, 1, 1, 1\)"),
        ({"qw": QTensor(np.ones((0, 4), np.int8), 1.0)}, ValueError, r"qw: got shape \(0, 4\)"),
        (
            {"qw": QTensor(np.ones((8, 4), np.int8), np.ones(8), np.zeros(8, np.int8), 0)},
            ValueError,
            "axis 0, expected 1",
        ),
        (
            {"qw": QTensor(np.ones((4, 2, 3, 3), np.int8), np.ones(2), np.zeros(2, np.int8), 1)},
            ValueError,
            "axis 1, expected 0",
        ),
        ({"qw": MATRIX, "group": 2}, ValueError, "group: got 2, expected 1 for a matrix"),
        ({"qw": FILTERS, "group": 3}, ValueError, "group: got 3, expected a divisor of the 4 output channels"),
        ({"qw": FILTERS, "group": 0}, ValueError, "group: got 0"),
        ({"qw": MATRIX, "isa": "sse"}, ValueError, "isa: got 'sse', expected one of"),
    ],
)
def test_bad_weights_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack(**arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amax", [254, 127, 15])
def test_activations_above_amax_are_refused(backend: str, dtype: str, amax: int) -> None:
    """Never a wrong result: the largest that is allowed passes, the next does not, at both ends."""
    matrix, filters = pack(MATRIX, amax=amax), pack(FILTERS, amax=amax)
    low = 0 if dtype == "uint8" else -((amax + 1) // 2)
    for value in (low, low + amax):
        x = np.full((2, 8), value, dtype)
        assert_same(ops.matmul_integer(x, matrix), matmul(x, MATRIX.data))
        images = np.full((1, 2, 4, 4), value, dtype)
        assert_same(np.ascontiguousarray(ops.conv_integer(images, filters)), conv(images, FILTERS.data))
    limits = np.iinfo(dtype)
    for value in {low - 1, low + amax + 1} & set(range(limits.min, limits.max + 1)):
        x = np.zeros((2, 8), dtype)
        x[1, 7] = value
        with pytest.raises(ValueError, match=f"amax={amax}"):
            ops.matmul_integer(x, matrix)
        images = np.zeros((1, 2, 4, 4), dtype)
        images[0, 1, 3, 3] = value
        with pytest.raises(ValueError, match=f"amax={amax}"):
            ops.conv_integer(images, filters)


@pytest.mark.parametrize("backend", ["c", "numba"], indirect=True)
def test_weights_packed_without_dilation_refuse_it(backend: str) -> None:
    """Three channels are packed as one run per kernel row, which a dilation would tear apart."""
    w = QTensor(np.ones((4, 3, 3, 3), np.int8), 1.0)
    x = np.ones((1, 3, 9, 9), np.uint8)
    with pytest.raises(ValueError, match=r"dilations: got \(2, 2\), but the weights were packed for 1"):
        ops.conv_integer(x, pack(w), dilations=(2, 2))
    y = ops.conv_integer(x, pack(w, dilations=(2, 2)), dilations=(2, 2))
    assert_same(np.ascontiguousarray(y), conv(x, w.data, dilations=(2, 2)))


def test_a_kernel_that_reaches_beyond_two_gigabytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: a kernel whose lines are 1500000000 bytes apart reaches beyond 2 GiB"):
        pack(FILTERS).offsets((0, 1_500_000_000, 2))

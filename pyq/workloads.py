"""Matrix products and convolutions to measure: shapes, full-range data, exact results, and how pyq computes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq import ops
from pyq.backends import ConvGeometry, current_backend, requantize_epilogue
from pyq.benchmark import Contender, Task
from pyq.checks import check_choice
from pyq.geometry import Placement, place
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor, quantize

DISTRIBUTIONS = ("laplace", "gaussian", "uniform")
ZERO_POINT = 128  # of the images: padding is then not the byte 0


def random_reals(rng: np.random.Generator, distribution: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Reals from "laplace", "gaussian" or "uniform". The weights of trained layers lie between the first two."""
    check_choice("distribution", distribution, DISTRIBUTIONS)
    size = tuple(shape)
    if distribution == "laplace":
        return rng.laplace(size=size).astype(np.float32)
    return (rng.normal(size=size) if distribution == "gaussian" else rng.uniform(-1, 1, size)).astype(np.float32)


def random_weights(rng: np.random.Generator, distribution: str, shape: Sequence[int], axis: int) -> QTensor:
    """int8 weights, `random_reals` quantized per channel of `axis`. Large ones are hard to pack."""
    return quantize(random_reals(rng, distribution, shape), "int8", axis=axis)


@dataclass(frozen=True)
class MatMul:
    """[m, k] activations times [k, n] weights."""

    m: int
    n: int
    k: int

    @property
    def label(self) -> str:
        """M x N x K."""
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.n * self.k

    @property
    def bytes(self) -> int:
        """Of int8 operands and the int32 result."""
        return self.m * self.k + self.k * self.n + 4 * self.m * self.n

    def weights(self, rng: np.random.Generator, distribution: str) -> QTensor:
        """Weights to multiply with, [k, n]."""
        return random_weights(rng, distribution, (self.k, self.n), axis=1)


class MatMulData(NamedTuple):
    """uint8 or int8 [M, K]; weights [K, N]; their exact product, int32."""

    activations: NDArray[Any]
    weights: QTensor
    expected: NDArray[np.int32]

    def signed(self) -> MatMulData:
        """The same with uint8 activations less 128, as int8."""
        activations = (self.activations ^ 0x80).view(np.int8)
        return MatMulData(
            activations, self.weights, self.expected - 128 * self.weights.data.sum(axis=0, dtype=np.int32)
        )


def matmul_data(shape: MatMul, rng: np.random.Generator, distribution: str, amax: int = 255) -> MatMulData:
    """Random uint8 activations from 0 to `amax`, and weights. Products of float64 are exact: below 2**53."""
    activations = rng.integers(0, amax, (shape.m, shape.k), np.uint8, endpoint=True)
    weights = shape.weights(rng, distribution)
    expected = activations.astype(np.float64) @ weights.data.astype(np.float64)
    return MatMulData(activations, weights, expected.astype(np.int64).astype(np.int32))


def numpy_matmul(data: MatMulData) -> Contender:
    """NumPy's float32 product of the same numbers: the baseline."""
    a, w = data.activations.astype(np.float32), data.weights.data.astype(np.float32)
    return Contender("NumPy float32", lambda: a @ w, data.expected)


def pyq_matmul(name: str, data: MatMulData, amax: int = 255) -> Contender:
    """`pyq.matmul_integer` with weights packed beforehand."""
    packed = pack(data.weights, amax=amax)
    return Contender(name, lambda: ops.matmul_integer(data.activations, packed), data.expected)


def matmul_task(shape: MatMul, seed: int, distributions: Sequence[str] = DISTRIBUTIONS) -> Task:
    """NumPy float32, pyq on weights of each distribution, and pyq with 7-bit activations (of the first of them)."""
    rng = np.random.default_rng(seed)
    data = {name: matmul_data(shape, rng, name) for name in distributions}
    first = distributions[0]
    reduced = matmul_data(shape, rng, first, amax=127)
    contenders = [
        numpy_matmul(data[first]),
        *(pyq_matmul(f"pyq {name}", values) for name, values in data.items()),
        pyq_matmul(f"pyq {first} 7-bit", reduced, amax=127),
    ]
    return Task(shape.label, shape.macs, shape.bytes, seed, contenders)


@dataclass(frozen=True)
class Conv:
    """A convolution of one image, padded by half the kernel; as many groups as `group`.

    size (of the image), kernel and stride: one number, or a pair: high, wide.
    """

    size: int | tuple[int, int]
    channels: int
    filters: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    group: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.group or self.filters % self.group:
            channels = f"{self.channels} channels and {self.filters} filters"
            raise ValueError(f"group: got {self.group}, expected a common divisor of {channels}")

    @property
    def label(self) -> str:
        """Kernel, stride, channels and filters (of depthwise, "dw", they are one), groups, and size."""
        place = self.placement
        form = "x".join(map(str, place.kernel))
        if place.strides != (1, 1):
            high, wide = place.strides
            form += f" s{high}" if high == wide else f" s{high}x{wide}"
        size = f"@{self.size}" if isinstance(self.size, int) else "@{}x{}".format(*self.size)
        if self.depthwise:
            return f"dw {form} {self.channels} {size}"
        group = f" g{self.group}" if self.group > 1 else ""
        return f"{form} {self.channels}-{self.filters}{group} {size}"

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a filter of its own."""
        return 1 < self.group == self.channels == self.filters

    @property
    def image(self) -> tuple[int, int, int, int]:
        """The shape of the image, NHWC."""
        return (1, *_pair(self.size), self.channels)

    @property
    def filter_shape(self) -> tuple[int, int, int, int]:
        """The shape of the weights, [filters, channels / group, *kernel]."""
        return (self.filters, self.channels // self.group, *_pair(self.kernel))

    @property
    def placement(self) -> Placement:
        """Where the kernel is placed on the image."""
        high, wide = _pair(self.kernel)
        pads = (high // 2, wide // 2) * 2
        return place(_pair(self.size), (high, wide), _pair(self.stride), pads)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return math.prod(self.placement.out) * math.prod(self.filter_shape)

    @property
    def bytes(self) -> int:
        """Of image, weights and result, all int8."""
        return math.prod(self.image) + math.prod(self.filter_shape) + math.prod(self.placement.out) * self.filters

    def weights(self, rng: np.random.Generator, distribution: str) -> QTensor:
        """Weights of `filter_shape`."""
        return random_weights(rng, distribution, self.filter_shape, axis=0)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class ConvData(NamedTuple):
    """An NHWC image, [M, C / group, kernel, kernel] weights, the result's parameters.

    sums: exact int32 accumulators, NHWC; expected: what they are, requantized.
    """

    image: QTensor
    weights: QTensor
    out: QParams
    sums: NDArray[np.int32]
    expected: NDArray[np.uint8]


def conv_data(shape: Conv, rng: np.random.Generator, distribution: str, amax: int = 255) -> ConvData:
    """Random data for `shape`; a scale of the result that uses its range, about three standard deviations."""
    image = rng.integers(0, amax, shape.image, np.uint8, endpoint=True)
    x = QTensor(image, 1 / 64, ZERO_POINT * (amax + 1) // 256)
    weights = shape.weights(rng, distribution)
    sums = exact_sums(windows(shape, image.astype(np.int64) - int(x.zero_point)), weights.data, shape.group)
    product = x.scale * weights.scale
    spread = float(np.std(sums * product)) or 1.0  # of a single output, 0
    out = QParams(spread / 40, ZERO_POINT, "uint8")
    multiplier = (product / out.scale).astype(np.float32)
    rounded = np.rint(sums.astype(np.float32) * multiplier).astype(np.int64)
    return ConvData(x, weights, out, sums, np.clip(rounded + ZERO_POINT, 0, 255).astype(np.uint8))


def windows(shape: Conv, image: NDArray[Any]) -> NDArray[Any]:
    """What the kernel covers at each output pixel, [N, OH, OW, C, kernel, kernel], a view; padding is 0."""
    placed = shape.placement
    top, left, bottom, right = placed.pads
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, placed.kernel, axis=(1, 2))
    return views[:, :: placed.strides[0], :: placed.strides[1]]


def exact_sums(covered: NDArray[np.int64], weights: NDArray[np.int8], group: int) -> NDArray[np.int32]:
    """The convolution of `windows`, one tap of the kernel after the other: products of float64, which are exact."""
    m, depth, *kernel = weights.shape
    pixels = covered.shape[:3]
    grouped = covered.reshape(-1, group, depth, *kernel) if group > 1 else covered.reshape(-1, 1, depth, *kernel)
    filters = weights.reshape(group, m // group, depth, *kernel).astype(np.float64)
    sums = np.zeros((group, len(grouped), m // group))
    for tap in np.ndindex(*kernel):
        values = grouped[..., tap[0], tap[1]].transpose(1, 0, 2).astype(np.float64)
        sums += np.matmul(values, filters[..., tap[0], tap[1]].transpose(0, 2, 1))
    return sums.transpose(1, 0, 2).reshape(*pixels, m).astype(np.int64).astype(np.int32)


def numpy_conv(shape: Conv, data: ConvData) -> Contender:
    """The same numbers in float32: windows gathered into a matrix (im2col), and NumPy's product."""
    image = (data.image.data.astype(np.int64) - int(data.image.zero_point)).astype(np.float32)
    depth = math.prod(shape.filter_shape[1:])
    filters = data.weights.data.reshape(shape.group, -1, depth).transpose(0, 2, 1).astype(np.float32)

    def call() -> NDArray[np.float32]:
        matrix = windows(shape, image).reshape(-1, shape.group, depth).transpose(1, 0, 2)
        return np.matmul(matrix, filters).transpose(1, 0, 2).reshape(data.sums.shape)

    return Contender("NumPy float32", call, data.sums)


def pyq_conv(name: str, shape: Conv, data: ConvData, amax: int = 255) -> Contender:
    """To uint8 as a layer of an ONNX session does it: weights packed and parameters prepared once, channels last."""
    packed = pack(data.weights, amax=amax, group=shape.group)
    top, left, bottom, right = shape.placement.pads
    geometry = ConvGeometry(_pair(shape.stride), (top, left, bottom, right))
    epilogue = requantize_epilogue(data.image.scale, data.weights.scale, data.out)
    image, zero_point, backend = data.image.data, int(data.image.zero_point), current_backend()
    return Contender(name, lambda: backend.conv(image, zero_point, packed, geometry, epilogue), data.expected)


def conv_task(shape: Conv, seed: int, distributions: Sequence[str] = DISTRIBUTIONS) -> Task:
    """As `matmul_task`, for a convolution with requantized result."""
    rng = np.random.default_rng(seed)
    data = {name: conv_data(shape, rng, name) for name in distributions}
    first = distributions[0]
    reduced = conv_data(shape, rng, first, amax=127)
    contenders = [
        numpy_conv(shape, data[first]),
        *(pyq_conv(f"pyq {name}", shape, values) for name, values in data.items()),
        pyq_conv(f"pyq {first} 7-bit", shape, reduced, amax=127),
    ]
    return Task(shape.label, shape.macs, shape.bytes, seed, contenders)


FORMS = {"gemm": "M N K", "conv": "SIZE CHANNELS FILTERS KERNEL [STRIDE [GROUP]]"}


def shape_of(kind: str, words: Sequence[str]) -> MatMul | Conv:
    """The shape that is written in words as `FORMS` has it, such as "56", or "24x160" for a pair.

    ValueError when there are too few or too many of them, or they do not go together.

    >>> shape_of("conv", ["24x160", "64", "64", "3", "2x1"]).label
    '3x3 s2x1 64-64 @24x160'
    """
    check_choice("kind", kind, tuple(FORMS))
    numbers = [tuple(map(int, word.split("x"))) for word in words if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", word)]
    pairs = {place for place, number in enumerate(numbers) if len(number) == 2}
    sizes: list[Any] = [number if place in pairs else number[0] for place, number in enumerate(numbers)]
    if len(sizes) == len(words):
        if kind == "gemm" and len(sizes) == 3 and not pairs:
            return MatMul(*sizes)
        if kind == "conv" and 4 <= len(sizes) <= 6 and pairs <= {0, 3, 4}:
            return Conv(*sizes)
    raise ValueError(f"shape: got {' '.join(words)!r}, expected {FORMS[kind]}, whole numbers above 0")


def task_of(shape: MatMul | Conv, seed: int, distributions: Sequence[str] = DISTRIBUTIONS) -> Task:
    """The task of a shape.

    >>> len(task_of(MatMul(4, 5, 6), seed=0).contenders)
    5
    """
    if isinstance(shape, MatMul):
        return matmul_task(shape, seed, distributions)
    return conv_task(shape, seed, distributions)

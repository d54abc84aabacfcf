"""Matrix products and convolutions to measure: shapes, full-range data, exact results, and how pyq computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq import ops
from pyq.backends import ConvGeometry, current_backend, requantize_epilogue
from pyq.benchmark import Contender, Task
from pyq.checks import check_choice, check_integer
from pyq.geometry import Placement, place
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor, quantize

DISTRIBUTIONS = ("laplace", "gaussian", "uniform")
ZERO_POINT = 128  # of the images: padding is then not the byte 0


def random_weights(rng: np.random.Generator, distribution: str, shape: Sequence[int], axis: int) -> QTensor:
    """int8 weights, quantized per channel of `axis`, of reals from "laplace", "gaussian" or "uniform".

    Trained layers lie between the first two. The more large weights, the harder they are to pack.
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    size = tuple(shape)
    if distribution == "laplace":
        reals = rng.laplace(size=size)
    else:
        reals = rng.normal(size=size) if distribution == "gaussian" else rng.uniform(-1, 1, size)
    return quantize(reals.astype(np.float32), "int8", axis=axis)


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
    weights = random_weights(rng, distribution, (shape.k, shape.n), axis=1)
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
    return Task(shape.label, shape.macs, seed, contenders)


@dataclass(frozen=True)
class Conv:
    """A convolution of one image, `size` pixels wide and high, padded by half the kernel; as many groups as `group`."""

    size: int
    channels: int
    filters: int
    kernel: int
    stride: int = 1
    group: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.group or self.filters % self.group:
            channels = f"{self.channels} channels and {self.filters} filters"
            raise ValueError(f"group: got {self.group}, expected a common divisor of {channels}")

    @property
    def label(self) -> str:
        """Kernel, stride, channels and filters (of depthwise, "dw", they are one), groups, and size."""
        form = f"{self.kernel}x{self.kernel}" + (f" s{self.stride}" if self.stride > 1 else "")
        if 1 < self.group == self.channels == self.filters:
            return f"dw {form} {self.channels} @{self.size}"
        group = f" g{self.group}" if self.group > 1 else ""
        return f"{form} {self.channels}-{self.filters}{group} @{self.size}"

    @property
    def placement(self) -> Placement:
        """Where the kernel is placed on the image."""
        pads = (self.kernel // 2,) * 4
        return place((self.size,) * 2, (self.kernel,) * 2, (self.stride,) * 2, pads)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        depth = self.channels // self.group * self.kernel**2
        return math.prod(self.placement.out) * self.filters * depth


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
    image = rng.integers(0, amax, (1, shape.size, shape.size, shape.channels), np.uint8, endpoint=True)
    x = QTensor(image, 1 / 64, ZERO_POINT * (amax + 1) // 256)
    filters = (shape.filters, shape.channels // shape.group, shape.kernel, shape.kernel)
    weights = random_weights(rng, distribution, filters, axis=0)
    sums = exact_sums(windows(shape, image.astype(np.int64) - int(x.zero_point)), weights.data, shape.group)
    product = x.scale * weights.scale
    out = QParams(float(np.std(sums * product)) / 40, ZERO_POINT, "uint8")
    multiplier = (product / out.scale).astype(np.float32)
    rounded = np.rint(sums.astype(np.float32) * multiplier).astype(np.int64)
    return ConvData(x, weights, out, sums, np.clip(rounded + ZERO_POINT, 0, 255).astype(np.uint8))


def windows(shape: Conv, image: NDArray[Any]) -> NDArray[Any]:
    """What the kernel covers at each output pixel, [N, OH, OW, C, kernel, kernel], a view; padding is 0."""
    pad = shape.kernel // 2
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (shape.kernel,) * 2, axis=(1, 2))
    return views[:, :: shape.stride, :: shape.stride]


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
    depth = shape.channels // shape.group * shape.kernel**2
    filters = data.weights.data.reshape(shape.group, -1, depth).transpose(0, 2, 1).astype(np.float32)

    def call() -> NDArray[np.float32]:
        matrix = windows(shape, image).reshape(-1, shape.group, depth).transpose(1, 0, 2)
        return np.matmul(matrix, filters).transpose(1, 0, 2).reshape(data.sums.shape)

    return Contender("NumPy float32", call, data.sums)


def pyq_conv(name: str, shape: Conv, data: ConvData, amax: int = 255) -> Contender:
    """To uint8 as a layer of an ONNX session does it: weights packed and parameters prepared once, channels last."""
    packed = pack(data.weights, amax=amax, group=shape.group)
    top, left, bottom, right = shape.placement.pads
    geometry = ConvGeometry((shape.stride, shape.stride), (top, left, bottom, right))
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
    return Task(shape.label, shape.macs, seed, contenders)


FORMS = {"gemm": "M N K", "conv": "SIZE CHANNELS FILTERS KERNEL [STRIDE [GROUP]]"}


def task_of(kind: str, numbers: Sequence[int], seed: int) -> Task:
    """The task of a "gemm" or "conv" whose shape is given as the numbers of `FORMS`.

    ValueError when there are too few or too many of them, or they do not go together.

    >>> task_of("conv", (56, 64, 64, 3), seed=0).label
    '3x3 64-64 @56'
    """
    sizes = [check_integer("shape", number, 1, 1) for number in numbers]
    if kind == "gemm" and len(sizes) == 3:
        return matmul_task(MatMul(*sizes), seed)
    if kind == "conv" and 4 <= len(sizes) <= 6:
        return conv_task(Conv(*sizes), seed)
    raise ValueError(f"shape: got {list(numbers)}, expected {FORMS[kind]}")

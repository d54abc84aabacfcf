"""Other libraries, each in a module that `bench.processes` imports in a process of its own.

A module has a function for each kind of work that the library can do, `matmul(shape, data, threads)` and
`conv(shape, data, threads)`, which return its contenders. What other software computes may be wrong: that is counted,
not an error.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.workloads import ZERO_POINT, ConvData, MatMulData

LIBRARIES = {
    "ort": "onnxruntime",
    "pytorch": "torch",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
    "numkong": "numkong",
}
"""Module of this package, and what it imports."""


def installed() -> list[str]:
    """The modules whose library is there."""
    return [name for name, library in LIBRARIES.items() if find_spec(library)]


class Requantized(NamedTuple):
    """uint8 results of a product: their scale, their zero point, and exact reals, of which they are roundings."""

    scale: float
    zero_point: int
    expected: NDArray[np.float64]

    def signed(self) -> Requantized:
        """The same as int8: 128 less."""
        return Requantized(self.scale, self.zero_point - 128, self.expected - 128)


def requantized_matmul(data: MatMulData) -> Requantized:
    """For operands of scale 1. A power of two as the scale: no multiplier is inexact."""
    scale = 2.0 ** np.ceil(np.log2(np.std(data.expected) / 40 + 1e-9))
    return Requantized(scale, ZERO_POINT, np.clip(data.expected / scale + ZERO_POINT, 0, 255))


def requantized_conv(data: ConvData) -> Requantized:
    """For the scales of `data`."""
    product = np.float64(data.image.scale) * data.weights.scale
    reals = data.sums * (product / np.float64(data.out.scale)) + ZERO_POINT
    return Requantized(float(data.out.scale), ZERO_POINT, np.clip(reals, 0, 255))


def channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """NHWC to NCHW, as a view."""
    return array.transpose(0, 3, 1, 2)


def float_image(data: ConvData) -> NDArray[np.float32]:
    """The image's integers less their zero point, NHWC."""
    return data.image.data.astype(np.float32) - np.float32(data.image.zero_point)

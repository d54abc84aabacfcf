"""What takes part in the benchmark of matrix products, and on what matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import pyq

SHAPES = [
    (64, 64, 64),
    (256, 256, 256),
    (512, 512, 512),
    (1024, 1024, 1024),
    (1, 4096, 4096),
    (8, 768, 768),
    (128, 3072, 768),
    (128, 768, 3072),
]
"""(M, N, K): squares, a large vector product, transformer layers."""


class Run(NamedTuple):
    """A contender: what to time, and what it should give (None: not integers, nothing to compare)."""

    call: Callable[[], np.ndarray]
    expected: np.ndarray | None

    def exact(self) -> bool:
        """Whether the result is the mathematical one."""
        return self.expected is None or np.array_equal(self.call(), self.expected)


class Product(NamedTuple):
    """uint8 activations over the full range, and int8 weights of two kinds."""

    activations: np.ndarray
    uniform: pyq.QTensor
    laplace: pyq.QTensor

    @classmethod
    def random(cls, shape: tuple[int, int, int], rng: np.random.Generator) -> Product:
        """Matrices of shape M x K and K x N. Trained weights look more like Laplace's distribution than uniform."""
        m, n, k = shape
        activations = rng.integers(0, 256, (m, k), np.uint8)
        uniform = pyq.QTensor(rng.integers(-127, 128, (k, n), np.int8), 1.0)
        return cls(activations, uniform, pyq.quantize(rng.laplace(size=(k, n)).astype(np.float32), "int8", axis=1))


def contenders(product: Product) -> dict[str, Run]:
    """NumPy's float32 first, the baseline; then pyq's int8 by weights and range, weights packed beforehand."""
    activations = product.activations
    floats = activations.astype(np.float32)
    float_weights = product.uniform.data.astype(np.float32)
    reduced = activations >> 1
    return {
        "NumPy float32": Run(lambda: floats @ float_weights, None),
        "uniform": _int8(activations, product.uniform, 255),
        "Laplace": _int8(activations, product.laplace, 255),
        "Laplace, 7-bit activations": _int8(reduced, product.laplace, 127),
    }


def _int8(activations: np.ndarray, weights: pyq.QTensor, amax: int) -> Run:
    packed = pyq.pack(pyq.QTensor(weights.data, 1.0), amax=amax)
    expected = (activations.astype(np.float64) @ weights.data.astype(np.float64)).astype(np.int32)
    return Run(lambda: pyq.matmul_integer(activations, packed), expected)

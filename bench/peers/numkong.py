"""NumKong: multiplies with a packed transpose, and only numbers of one type. It has no threads of its own."""

from __future__ import annotations

import numkong
import numpy as np

from pyq.benchmark import Contender
from pyq.workloads import MatMul, MatMulData


def matmul(shape: MatMul, data: MatMulData, threads: int) -> list[Contender]:
    """int8 x int8, on one thread whatever `threads` is."""
    signed = data.signed()
    packed = numkong.dots_pack(np.ascontiguousarray(signed.weights.data.T))
    name = "NumKong s8s8" + (" (1 thread)" if threads > 1 else "")
    return [Contender(name, lambda: numkong.dots_packed(signed.activations, packed), signed.expected, required=False)]

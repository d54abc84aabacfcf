"""pyq beside other libraries on the same full-range data: one process, one thread, all in turn.

NumPy and ONNX Runtime take part always, NumKong where it is installed. How many outputs are wrong is counted for
each; only pyq and NumPy have to be right.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from bench import ort
from pyq.benchmark import Contender, Task
from pyq.workloads import Conv, MatMul, MatMulData, conv_data, matmul_data, numpy_matmul, pyq_conv, pyq_matmul


def matmul_peers(shape: MatMul, seed: int, distribution: str) -> Task:
    """float32, then uint8 x int8, then int8 x int8, to int32."""
    rng = np.random.default_rng(seed)
    data = matmul_data(shape, rng, distribution)
    reduced = matmul_data(shape, rng, distribution, amax=127)
    contenders = [
        numpy_matmul(data),
        ort.float_matmul(data, threads=1),
        pyq_matmul("pyq u8s8", data),
        pyq_matmul("pyq u8s8 7-bit", reduced, amax=127),
        ort.integer_matmul("ORT u8s8", data, threads=1),
        ort.integer_matmul("ORT u8s8 exact", data, threads=1, precise=True),
        pyq_matmul("pyq s8s8", data.signed()),
        ort.integer_matmul("ORT s8s8", data.signed(), threads=1),
    ]
    if find_spec("numkong"):
        contenders.append(_numkong(data.signed()))
    return Task(shape.label, shape.macs, seed, contenders)


def conv_peers(shape: Conv, seed: int, distribution: str) -> Task:
    """float32 sums, then uint8 x int8 requantized to uint8."""
    rng = np.random.default_rng(seed)
    data = conv_data(shape, rng, distribution)
    reduced = conv_data(shape, rng, distribution, amax=127)
    contenders = [
        ort.float_conv(shape, data, threads=1),
        pyq_conv("pyq u8s8", shape, data),
        pyq_conv("pyq u8s8 7-bit", shape, reduced, amax=127),
        ort.quantized_conv("ORT u8s8", shape, data, threads=1),
        ort.quantized_conv("ORT u8s8 exact", shape, data, threads=1, precise=True),
    ]
    return Task(shape.label, shape.macs, seed, contenders)


def _numkong(data: MatMulData) -> Contender:
    """NumKong multiplies with a packed transpose, and only numbers of one type."""
    import numkong

    packed = numkong.dots_pack(np.ascontiguousarray(data.weights.data.T))
    return Contender(
        "NumKong s8s8",
        lambda: np.asarray(numkong.dots_packed(data.activations, packed)),
        data.expected,
        required=False,
    )

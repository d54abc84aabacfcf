"""The Numba backend: the compiled loops of this package."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.backends import Epilogue, Stacks
from pyq.kernel_backend import KernelBackend, Product, Taps
from pyq.lowering import BinaryLines, ConvPlace, LoweredEpilogue, activation_shift
from pyq.packing import PackedWeight
from pyq.panels import pack_bytes
from pyq.pool_windows import Windows
from pyq.qparams import QParams

from . import elementwise, normalize, pool
from . import epilogue as epilogue_kernels
from .calls import as_bytes, depthwise_layer, product
from .epilogue import FLOAT32, INT32, QUANTIZED
from .host import default_isa

OPERATIONS = {"add": elementwise.ADD, "sub": elementwise.SUB, "mul": elementwise.MUL, "div": elementwise.DIV}

KINDS = {
    np.dtype(np.int32): INT32,
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.uint8): QUANTIZED,
    np.dtype(np.int8): QUANTIZED,
}

_NO_FLOATS = np.empty(0, np.float32)


class NumbaBackend(KernelBackend):
    """See `pyq.kernel_backend.KernelBackend`. Runs in the calling thread, and releases the GIL while it computes."""

    name = "numba"

    def __init__(self) -> None:
        self.isa = default_isa()

    def prepare(self, epilogue: Epilogue, lowered: LoweredEpilogue, columns: int) -> tuple[Any, ...]:
        """Arguments of `epilogue.EPILOGUE`: what is absent becomes neutral or empty."""
        return (
            KINDS[epilogue.dtype],
            np.zeros(columns, np.int32) if lowered.bias is None else lowered.bias,
            np.ones(columns, np.float32) if lowered.multiplier is None else lowered.multiplier,
            np.full(columns, -0.0, np.float32) if lowered.offset is None else lowered.offset,  # x + -0.0 is x
            epilogue.zero_point,
            float(lowered.low),
            float(lowered.high),
            as_bytes(epilogue.table),
            np.array(() if lowered.sum is None else lowered.sum, np.float32),
        )

    def prepare_product(
        self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, place: ConvPlace, epilogue: Epilogue, taps: Taps
    ) -> Product:
        """See `calls.product` and `calls.depthwise_layer`."""
        zero = x_zero_point + activation_shift(x.dtype, w.amax)
        finish = self.epilogue_of(epilogue, w, zero)
        if taps is None:
            return product(self.isa, x, w, place, zero, finish)
        return depthwise_layer(self.isa, x, w, place, zero, taps, finish)

    def multiply(self, stacks: Stacks, epilogue: Epilogue) -> NDArray[Any]:
        """Each matrix of `b` packed, for the products with it."""
        a, zero_point, b, zeros, (first, left, right) = stacks
        (_, m, _), (count, _, n) = a.shape, b.shape
        out, scale = np.empty((len(right), m, n), epilogue.dtype), np.ones(n, np.float32)
        for matrix, zero, (start, end) in zip(b, np.broadcast_to(zeros, (count, n)), pairwise(first), strict=True):
            packed = PackedWeight("gemm", matrix.shape, matrix.dtype, scale, zero, 1, 255, 1, *pack_bytes(matrix, zero))
            for index in range(start, end):
                self.matmul(a[left[index]], zero_point, packed, epilogue, out[right[index]])
        return out

    def finish(
        self, acc: NDArray[np.int32], prepared: tuple[Any, ...], out: NDArray[Any], residual: NDArray[Any] | None
    ) -> None:
        """The epilogue of `epilogue.finish`."""
        epilogue_kernels.finish(acc, prepared, as_bytes(residual), as_bytes(out))

    def lookup_run(self, x: NDArray[np.uint8], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """See `elementwise.lookup`."""
        elementwise.lookup(x, table, out)

    def quantize_run(
        self, x: NDArray[np.float32], scale: float, zero_point: int, low: int, high: int, out: NDArray[np.uint8]
    ) -> bool:
        """See `elementwise.quantize`."""
        return bool(elementwise.quantize(x, scale, zero_point, low, high, out))

    def dequantize_run(
        self, q: NDArray[np.uint8], is_signed: bool, scale: float, zero_point: int, out: NDArray[np.float32]
    ) -> None:
        """See `elementwise.dequantize`."""
        elementwise.dequantize(q, scale, zero_point, 128 if is_signed else 0, out)

    def binary_lines(self, op: str, a: BinaryLines, b: BinaryLines, params: QParams, out: NDArray[np.uint8]) -> None:
        """See `elementwise.binary`."""
        zero_point = int(params.zero_point)
        elementwise.binary(
            OPERATIONS[op],
            *_lines(a),
            *_lines(b),
            float(params.scale),
            zero_point,
            params.qmin - zero_point,
            params.qmax - zero_point,
            out.reshape(-1, a.shape[-1]),
        )

    def range_run(self, x: NDArray[np.float32]) -> tuple[float, float, bool]:
        """See `elementwise.value_range`."""
        low, high, found_nan = elementwise.value_range(x)
        return float(low), float(high), bool(found_nan)

    def pool_max(self, x: NDArray[Any], windows: Windows, out: NDArray[Any]) -> None:
        """See `pool.max_pool`."""
        pool.max_pool(*_windows(x, windows), _matrix(out))

    def pool_average(
        self,
        x: NDArray[Any],
        params: QParams,
        windows: Windows,
        out_params: QParams,
        out: NDArray[Any],
    ) -> None:
        """See `pool.average_pool`."""
        zero_point = int(out_params.zero_point)
        pool.average_pool(
            *_windows(x, windows),
            float(params.scale),
            int(params.zero_point),
            float(out_params.scale),
            zero_point,
            out_params.qmin - zero_point,
            out_params.qmax - zero_point,
            _matrix(out),
        )

    def transpose(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """See `elementwise.transpose`."""
        elementwise.transpose(x, out)

    def softmax(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `normalize.softmax`."""
        out = np.empty_like(x)
        normalize.softmax(x, out)
        return out

    def softmax_of_bytes(self, q: NDArray[Any], exponentials: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `normalize.softmax_of_bytes`."""
        out = np.empty(q.shape, np.float32)
        normalize.softmax_of_bytes(q.view(np.uint8), 128 if q.dtype == np.int8 else 0, exponentials, out)
        return out

    def layer_norm(
        self, x: NDArray[np.float32], scale: NDArray[np.float32], bias: NDArray[np.float32] | None, epsilon: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """See `normalize.layer_norm`."""
        results = np.empty_like(x), np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        normalize.layer_norm(x, scale, _NO_FLOATS if bias is None else bias, epsilon, *results)
        return results


def _matrix(images: NDArray[Any]) -> NDArray[np.uint8]:
    """The pixels of images [..., C], by their bytes."""
    return images.reshape(-1, images.shape[-1]).view(np.uint8)


def _windows(x: NDArray[Any], windows: Windows) -> tuple[Any, ...]:
    """The first arguments of the pools."""
    flip = 128 if x.dtype == np.int8 else 0
    return x.reshape(len(x), -1).view(np.uint8), flip, *windows


def _lines(operand: BinaryLines) -> tuple[Any, ...]:
    """An operand of `elementwise.binary`: its memory as flat bytes, and where in it each line starts."""
    x = operand.array
    lowest = x[tuple(slice(-1, None) if stride < 0 else slice(None) for stride in x.strides)]
    reach = [(size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True)]
    size = 1 + sum(abs(distance) for distance in reach)
    memory = np.lib.stride_tricks.as_strided(lowest.view(np.uint8), (size,), (1,), writeable=False)
    starts = np.array([-sum(distance for distance in reach if distance < 0)])
    for count, stride in zip(operand.shape[:-1], operand.strides[:-1], strict=True):
        starts = (starts[:, None] + np.arange(count) * stride).reshape(-1)
    flip = 128 if x.dtype == np.int8 else 0
    return memory, starts, operand.strides[-1], float(operand.params.scale), int(operand.params.zero_point), flip

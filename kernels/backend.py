"""The Numba backend: `pyq.lowering` in front of the compiled loops of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq import lowering
from pyq.backends import ConvGeometry, Epilogue
from pyq.lowering import LoweredEpilogue, Rows
from pyq.packing import PackedWeight
from pyq.qparams import QParams, dequantize_array

from . import elementwise, gemm
from .epilogue import FLOAT32, INT32, QUANTIZED, finish_rows
from .host import default_isa

OPERATIONS = {"add": elementwise.ADD, "sub": elementwise.SUB, "mul": elementwise.MUL, "div": elementwise.DIV}

KINDS = {
    np.dtype(np.int32): INT32,
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.uint8): QUANTIZED,
    np.dtype(np.int8): QUANTIZED,
}

_NO_BYTES, _NO_WORDS = np.empty(0, np.uint8), np.empty(0, np.int16)


class NumbaBackend:
    """See `pyq.backends.Backend`. Runs in the calling thread, and releases the GIL while it computes."""

    name = "numba"

    def __init__(self) -> None:
        self.isa = default_isa()

    def matmul(
        self,
        x: NDArray[Any],
        x_zero_point: int,
        w: PackedWeight,
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """`[M, K] x [K, N]` to `[M, N]`."""
        rows = lowering.lower_matmul(x, x_zero_point, w)
        written = _destination(out, (x.shape[0], w.columns), epilogue.dtype)
        self._gemm(rows, w, w.offsets(), epilogue, written)
        return _result(written, out)

    def conv(
        self,
        x: NDArray[Any],
        x_zero_point: int,
        w: PackedWeight,
        geometry: ConvGeometry,
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """`[N, H, W, C]` to `[N, OH, OW, M]`."""
        offsets = lowering.conv_offsets(x, w, geometry)
        rows = lowering.lower_conv(x, x_zero_point, w, geometry)
        written = _destination(out, (rows.images, rows.height, rows.width, w.columns), epilogue.dtype)
        self._gemm(rows, w, offsets, epilogue, written)
        return _result(written, out)

    def _gemm(
        self, rows: Rows, w: PackedWeight, offsets: NDArray[np.int32], epilogue: Epilogue, out: NDArray[Any]
    ) -> None:
        lowered = lowering.lower_epilogue(epilogue, w.columns, lowering.zero_point_correction(rows, w))
        gemm.gemm(
            self.isa,
            _NO_BYTES if rows.data is None else rows.data,
            _NO_WORDS if rows.words is None else rows.words,
            rows.images,
            rows.height,
            rows.width,
            rows.stride_n,
            rows.stride_h,
            rows.stride_w,
            offsets,
            w.panels,
            w.data,
            *_epilogue_arguments(epilogue, lowered, w.columns, out),
        )

    def requantize(self, acc: NDArray[np.int32], epilogue: Epilogue, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Apply an epilogue to int32 accumulators `[..., N]`."""
        columns = acc.shape[-1]
        sums = np.ascontiguousarray(acc).reshape(-1, columns) if acc.size else np.empty((0, columns), np.int32)
        written = _destination(out, acc.shape, epilogue.dtype)
        lowered = lowering.lower_epilogue(epilogue, columns)
        finish_rows(sums, 0, 0, columns, *_epilogue_arguments(epilogue, lowered, columns, written))
        return _result(written, out)

    def lookup(
        self, x: NDArray[Any], table: NDArray[np.uint8], dtype: np.dtype[Any], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """`table[x as a byte]`, viewed as `dtype`."""
        walk = lowering.Walk.along(x)
        target = walk.target(out, dtype)
        elementwise.lookup(_as_bytes(walk.flat(x)), table, _as_bytes(target))
        return walk.result(target, out)

    def quantize(self, x: NDArray[np.float32], params: QParams, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Float32 to uint8 or int8; ValueError on NaN."""
        walk = lowering.Walk.along(x)
        source, target = walk.flat(x), walk.target(out, params.dtype)
        for part, scale, zero_point in walk.slices(params):
            low, high = params.qmin - zero_point, params.qmax - zero_point
            if elementwise.quantize(source[part], scale, zero_point, low, high, _as_bytes(target[part])):
                raise ValueError("x: contains NaN, which has no quantized value")
        return walk.result(target, out)

    def dequantize(
        self, q: NDArray[Any], params: QParams, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """uint8, int8 or int32 to float32."""
        if q.dtype == np.int32:  # biases: small, and exact in NumPy
            return _result(dequantize_array(q, params), out)
        walk = lowering.Walk.along(q)
        source, target = walk.flat(q), walk.target(out, np.dtype(np.float32))
        for part, scale, zero_point in walk.slices(params):
            elementwise.dequantize(_as_bytes(source[part]), scale, zero_point, _flip(q.dtype), target[part])
        return walk.result(target, out)

    def binary(
        self,
        op: str,
        a: NDArray[Any],
        a_params: QParams,
        b: NDArray[Any],
        b_params: QParams,
        out_params: QParams,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """`add`, `sub`, `mul` or `div` of two quantized arrays, with broadcasting."""
        operands = lowering.lower_binary(op, a, a_params, b, b_params)
        dims, a_strides, b_strides = lowering.merged_dimensions(operands.a, operands.b)
        walk = lowering.Walk(operands.a.shape, operands.order)
        target = walk.target(out, out_params.dtype)
        zero_point = int(out_params.zero_point)
        if target.size:
            elementwise.binary(
                OPERATIONS[op],
                *_lines(operands.a, dims, a_strides, a_params),
                *_lines(operands.b, dims, b_strides, b_params),
                float(out_params.scale),
                zero_point,
                out_params.qmin - zero_point,
                out_params.qmax - zero_point,
                _as_bytes(target).reshape(-1, dims[-1]),
            )
        return walk.result(target, out)


def _destination(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Where the kernel writes: `out` when it is contiguous, else memory of its own."""
    return out if out is not None and out.flags.c_contiguous else np.empty(shape, dtype)


def _result(written: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None or out is written:
        return written
    out[...] = written
    return out


def _as_bytes(x: NDArray[Any]) -> NDArray[Any]:
    """int8 as uint8; other types as they are."""
    return x.view(np.uint8) if x.dtype == np.int8 else x


def _flip(dtype: np.dtype[Any]) -> int:
    return 128 if dtype == np.int8 else 0


def _epilogue_arguments(
    epilogue: Epilogue, lowered: LoweredEpilogue, columns: int, out: NDArray[Any]
) -> tuple[Any, ...]:
    """Arguments of `epilogue.ARGUMENTS`: what is absent becomes a neutral or an empty array."""
    return (
        KINDS[epilogue.dtype],
        np.zeros(columns, np.int32) if lowered.bias is None else lowered.bias,
        np.ones(columns, np.float32) if lowered.multiplier is None else lowered.multiplier,
        np.empty(0, np.float32) if lowered.offset is None else lowered.offset,
        epilogue.zero_point,
        float(lowered.low),
        float(lowered.high),
        _NO_BYTES if epilogue.table is None else epilogue.table,
        out.reshape(-1).view(np.uint8),
    )


def _lines(x: NDArray[Any], dims: list[int], strides: list[int], params: QParams) -> tuple[Any, ...]:
    """An operand of `elementwise.binary`: its memory as flat bytes, and where in it each line starts."""
    lowest = x[tuple(slice(-1, None) if stride < 0 else slice(None) for stride in x.strides)]
    reach = [(size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True)]
    size = 1 + sum(abs(distance) for distance in reach)
    memory = np.lib.stride_tricks.as_strided(_as_bytes(lowest), (size,), (1,), writeable=False)
    starts = np.array([-sum(distance for distance in reach if distance < 0)])
    for count, stride in zip(dims[:-1], strides[:-1], strict=True):
        starts = (starts[:, None] + np.arange(count) * stride).reshape(-1)
    return memory, starts, strides[-1], float(params.scale), int(params.zero_point), _flip(x.dtype)

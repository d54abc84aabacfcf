"""The backend of hand-written C and SIMD kernels: :mod:`pyq.lowering` in front of the extension ``pyq._core``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq import lowering
from pyq._core import ffi, lib
from pyq.backends import ConvGeometry, Epilogue
from pyq.lowering import Rows
from pyq.packing import PackedWeight
from pyq.qparams import QParams, dequantize_array

OUTPUT_TYPES = {
    np.dtype(np.int32): lib.PYQ_OUT_INT32,
    np.dtype(np.float32): lib.PYQ_OUT_FLOAT32,
    np.dtype(np.uint8): lib.PYQ_OUT_QUANTIZED,
    np.dtype(np.int8): lib.PYQ_OUT_QUANTIZED,
}
OPERATIONS = ("add", "sub", "mul", "div")


def _address(kind: str, array: NDArray[Any] | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer(kind, array)


def _destination(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Where the kernel writes: ``out`` when it is contiguous, else memory of its own."""
    return out if out is not None and out.flags.c_contiguous else np.empty(shape, dtype)


def _result(written: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None or out is written:
        return written
    out[...] = written
    return out


class CBackend:
    """See :class:`pyq.backends.Backend`."""

    name = "c"

    def matmul(
        self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, epilogue: Epilogue, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
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
        offsets = lowering.conv_offsets(x, w, geometry)
        rows = lowering.lower_conv(x, x_zero_point, w, geometry)
        shape = (rows.images, rows.height, rows.width, w.columns)
        written = _destination(out, shape, epilogue.dtype)
        self._gemm(rows, w, offsets, epilogue, written)
        return _result(written, out)

    def _gemm(
        self, rows: Rows, w: PackedWeight, offsets: NDArray[np.int32], epilogue: Epilogue, out: NDArray[Any]
    ) -> None:
        lowered = lowering.lower_epilogue(epilogue, w.columns, lowering.zero_point_correction(rows, w))
        c_epilogue = self._epilogue(epilogue, lowered)
        c_rows = ffi.new(
            "pyq_rows *", (_address("uint8_t[]", rows.data), _address("int16_t[]", rows.words), *rows[2:8])
        )
        tables = (ffi.from_buffer("pyq_panel[]", w.panels), len(w.panels))
        packed = (_address("int32_t[]", offsets), _address("uint8_t[]", w.data))
        c_weights = ffi.new("pyq_weights *", (*tables, *packed))
        lib.pyq_gemm(c_rows, c_weights, c_epilogue, ffi.from_buffer(out, require_writable=True), w.columns)

    def _epilogue(self, epilogue: Epilogue, lowered: lowering.LoweredEpilogue) -> Any:
        """The C struct; the arrays it points to stay alive as long as ``epilogue`` and ``lowered`` do."""
        return ffi.new(
            "pyq_epilogue *",
            (
                OUTPUT_TYPES[epilogue.dtype],
                epilogue.zero_point,
                _address("int32_t[]", lowered.bias),
                _address("float[]", lowered.multiplier),
                _address("float[]", lowered.offset),
                lowered.low,
                lowered.high,
                _address("uint8_t[]", epilogue.table),
            ),
        )

    def requantize(self, acc: NDArray[np.int32], epilogue: Epilogue, out: NDArray[Any] | None = None) -> NDArray[Any]:
        acc = np.ascontiguousarray(acc)
        columns = acc.shape[-1]
        lowered = lowering.lower_epilogue(epilogue, columns)
        written = _destination(out, acc.shape, epilogue.dtype)
        lib.pyq_apply_epilogue(
            ffi.from_buffer("int32_t[]", acc),
            acc.size // columns if columns else 0,
            columns,
            self._epilogue(epilogue, lowered),
            ffi.from_buffer(written, require_writable=True),
        )
        return _result(written, out)

    def lookup(
        self, x: NDArray[Any], table: NDArray[np.uint8], dtype: np.dtype[Any], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        walk = lowering.Walk.along(x)
        source, target = walk.flat(x), walk.target(out, dtype)
        lib.pyq_lookup(
            ffi.from_buffer("uint8_t[]", source),
            ffi.from_buffer("uint8_t[]", table),
            ffi.from_buffer("uint8_t[]", target, require_writable=True),
            source.size,
        )
        return walk.result(target, out)

    def quantize(self, x: NDArray[np.float32], params: QParams, out: NDArray[Any] | None = None) -> NDArray[Any]:
        walk = lowering.Walk.along(x)
        source, target = walk.flat(x), walk.target(out, params.dtype)
        found_nan = ffi.new("int32_t *")
        for part, scale, zero_point in walk.slices(params):
            lib.pyq_quantize(
                ffi.from_buffer("float[]", source[part]),
                ffi.from_buffer("uint8_t[]", target[part], require_writable=True),
                part.stop - part.start,
                scale,
                zero_point,
                params.qmin - zero_point,
                params.qmax - zero_point,
                found_nan,
            )
            if found_nan[0]:
                raise ValueError("x: contains NaN, which has no quantized value")
        return walk.result(target, out)

    def dequantize(
        self, q: NDArray[Any], params: QParams, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        if q.dtype == np.int32:  # biases: small, and exact in NumPy
            return _result(dequantize_array(q, params), out)
        walk = lowering.Walk.along(q)
        source, target = walk.flat(q), walk.target(out, np.dtype(np.float32))
        for part, scale, zero_point in walk.slices(params):
            lib.pyq_dequantize(
                ffi.from_buffer("uint8_t[]", source[part]),
                q.dtype == np.int8,
                ffi.from_buffer("float[]", target[part], require_writable=True),
                part.stop - part.start,
                scale,
                zero_point,
            )
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
        operands = lowering.lower_binary(op, a, a_params, b, b_params)
        dims, a_strides, b_strides = lowering.merged_dimensions(operands.a, operands.b)
        walk = lowering.Walk(operands.a.shape, operands.order)
        target = walk.target(out, out_params.dtype)
        zero_point = int(out_params.zero_point)
        lib.pyq_binary(
            OPERATIONS.index(op),
            len(dims),
            dims,
            ffi.cast("uint8_t *", operands.a.ctypes.data),
            a_strides,
            ffi.cast("uint8_t *", operands.b.ctypes.data),
            b_strides,
            _affine(a_params),
            _affine(b_params),
            _affine(out_params),
            out_params.qmin - zero_point,
            out_params.qmax - zero_point,
            ffi.from_buffer("uint8_t[]", target, require_writable=True),
        )
        return walk.result(target, out)


def _affine(params: QParams) -> Any:
    return ffi.new("pyq_affine *", (float(params.scale), int(params.zero_point), params.dtype == np.int8))

"""The backend of hand-written C and SIMD kernels, the extension ``pyq._core``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq._core import ffi, lib
from pyq.backends import Epilogue
from pyq.kernel_backend import KernelBackend
from pyq.lowering import BinaryLines, LoweredEpilogue, Rows
from pyq.packing import PackedWeight
from pyq.qparams import QParams

OUTPUT_TYPES = {
    np.dtype(np.int32): lib.PYQ_OUT_INT32,
    np.dtype(np.float32): lib.PYQ_OUT_FLOAT32,
    np.dtype(np.uint8): lib.PYQ_OUT_QUANTIZED,
    np.dtype(np.int8): lib.PYQ_OUT_QUANTIZED,
}
OPERATIONS = ("add", "sub", "mul", "div")


def _pointer(kind: str, array: NDArray[Any] | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer(kind, array)


class Struct(NamedTuple):
    """A C struct, and the arrays that it points into, which it does not keep alive by itself."""

    c: Any
    arrays: tuple[Any, ...]


class CBackend(KernelBackend):
    """See :class:`pyq.kernel_backend.KernelBackend`."""

    name = "c"

    def prepare(self, epilogue: Epilogue, lowered: LoweredEpilogue, columns: int) -> Struct:
        """A ``pyq_epilogue``."""
        fields = (
            OUTPUT_TYPES[epilogue.dtype],
            epilogue.zero_point,
            _pointer("int32_t[]", lowered.bias),
            _pointer("float[]", lowered.multiplier),
            _pointer("float[]", lowered.offset),
            lowered.low,
            lowered.high,
            _pointer("uint8_t[]", epilogue.table),
        )
        return Struct(ffi.new("pyq_epilogue *", fields), (epilogue, lowered))

    def gemm(
        self, rows: Rows, w: PackedWeight, offsets: NDArray[np.int32], prepared: Struct, out: NDArray[Any]
    ) -> None:
        """``pyq_gemm``."""
        weights = w.cached(("pyq_weights", id(offsets)), lambda: _weights(w, offsets))
        elements = (_pointer("uint8_t[]", rows.data), _pointer("int16_t[]", rows.words))
        c_rows = ffi.new("pyq_rows *", (*elements, *rows[2:8]))
        lib.pyq_gemm(c_rows, weights.c, prepared.c, ffi.from_buffer(out, require_writable=True), w.columns)

    def finish(self, acc: NDArray[np.int32], prepared: Struct, out: NDArray[Any]) -> None:
        """``pyq_apply_epilogue``."""
        to = ffi.from_buffer(out, require_writable=True)
        lib.pyq_apply_epilogue(ffi.from_buffer("int32_t[]", acc), *acc.shape, prepared.c, to)

    def lookup_run(self, x: NDArray[np.uint8], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """``pyq_lookup``."""
        lib.pyq_lookup(
            ffi.from_buffer("uint8_t[]", x),
            ffi.from_buffer("uint8_t[]", table),
            ffi.from_buffer("uint8_t[]", out, require_writable=True),
            x.size,
        )

    def quantize_run(
        self, x: NDArray[np.float32], scale: float, zero_point: int, low: int, high: int, out: NDArray[np.uint8]
    ) -> bool:
        """``pyq_quantize``."""
        source, target = ffi.from_buffer("float[]", x), ffi.from_buffer("uint8_t[]", out, require_writable=True)
        return bool(lib.pyq_quantize(source, target, x.size, scale, zero_point, low, high))

    def dequantize_run(
        self, q: NDArray[np.uint8], is_signed: bool, scale: float, zero_point: int, out: NDArray[np.float32]
    ) -> None:
        """``pyq_dequantize``."""
        source, target = ffi.from_buffer("uint8_t[]", q), ffi.from_buffer("float[]", out, require_writable=True)
        lib.pyq_dequantize(source, is_signed, target, q.size, scale, zero_point)

    def binary_lines(self, op: str, a: BinaryLines, b: BinaryLines, params: QParams, out: NDArray[np.uint8]) -> None:
        """``pyq_binary``."""
        zero_point = int(params.zero_point)
        lib.pyq_binary(
            OPERATIONS.index(op),
            len(a.shape),
            a.shape,
            ffi.cast("uint8_t *", a.array.ctypes.data),
            a.strides,
            ffi.cast("uint8_t *", b.array.ctypes.data),
            b.strides,
            _affine(a.params),
            _affine(b.params),
            _affine(params),
            params.qmin - zero_point,
            params.qmax - zero_point,
            ffi.from_buffer("uint8_t[]", out, require_writable=True),
        )


def _weights(w: PackedWeight, offsets: NDArray[np.int32]) -> Struct:
    fields = (
        ffi.from_buffer("pyq_panel[]", w.panels),
        len(w.panels),
        ffi.from_buffer("int32_t[]", offsets),
        ffi.from_buffer("uint8_t[]", w.data),
    )
    return Struct(ffi.new("pyq_weights *", fields), (w.panels, offsets, w.data))


def _affine(params: QParams) -> Any:
    return ffi.new("pyq_affine *", (float(params.scale), int(params.zero_point), params.dtype == np.int8))

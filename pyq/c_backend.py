"""The backend of hand-written C and SIMD kernels, the extension ``pyq._core``."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyq._core import ffi, lib
from pyq.backends import Epilogue, Stacks
from pyq.kernel_backend import KernelBackend, Product, Taps
from pyq.lowering import (
    BinaryLines,
    ConvPlace,
    LoweredEpilogue,
    above_amax,
    activation_shift,
    lower_epilogue,
    reads_exactly,
)
from pyq.packing import PackedWeight
from pyq.pool_windows import Windows, fixed_means
from pyq.qparams import QParams
from pyq.windows import quads_for

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
        total = ffi.NULL if lowered.sum is None else ffi.new("pyq_sum *", lowered.sum)
        fields = (
            OUTPUT_TYPES[epilogue.dtype],
            epilogue.zero_point,
            _pointer("int32_t[]", lowered.bias),
            _pointer("float[]", lowered.multiplier),
            _pointer("float[]", lowered.offset),
            lowered.low,
            lowered.high,
            _pointer("uint8_t[]", epilogue.table),
            total,
        )
        return Struct(ffi.new("pyq_epilogue *", fields), (epilogue, lowered, total))

    def prepare_product(
        self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, place: ConvPlace, epilogue: Epilogue, taps: Taps
    ) -> Product:
        """``pyq_run`` on a ``pyq_call``."""
        shift, channels = activation_shift(x.dtype, w.amax), x.shape[-1]
        zero = x_zero_point + shift
        weights, finish = _weights(w, place.offsets), self.epilogue_of(epilogue, w, zero)
        windowed = taps is not None
        images = (place.size, channels, place.begin, place.end, place.out_size, place.stride, place.dilation)
        counts = (shift, zero, w.amax, windowed or reads_exactly(w, channels), w.kernel_shape[2] if windowed else 0)
        quads = quads_for(w) if windowed and lib.pyq_use_vbmi() else None
        windows = _pointer("int16_t[]", taps), _pointer("int8_t[]", quads)
        call = ffi.new("pyq_call *", (weights.c, finish.c, w.columns, *images, *counts, *windows))
        return _product(Struct(call, (weights, finish, taps, quads)))

    def matmul_dynamic(
        self,
        x: NDArray[np.float32],
        w: PackedWeight,
        offset: NDArray[np.float32] | None,
        low: float,
        high: float,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """``pyq_run_dynamic``."""
        key = self, "dynamic", low, high
        call = w.kept.get(key) or w.keep(key, _dynamic(w, low, high))
        if out is None:
            out = np.empty((len(x), w.columns), np.float32)
        addend = 0 if offset is None else id(offset)
        status = lib.pyq_run_dynamic_arrays(call.c, id(x), len(x), addend, id(out))
        if status == lib.PYQ_NO_MEMORY:
            raise MemoryError(f"x: no memory for {x.size} quantized numbers")
        return out if status == lib.PYQ_OK else None

    def multiply(self, stacks: Stacks, epilogue: Epilogue) -> NDArray[Any]:
        """``pyq_multiply``."""
        a, b, zeros = np.ascontiguousarray(stacks.a), np.ascontiguousarray(stacks.b), stacks.b_zero_points
        (_, m, k), (count, _, n) = a.shape, b.shape
        out = np.empty((len(stacks.pairing.out), m, n), epilogue.dtype)
        shift, finish = activation_shift(a.dtype, 255), self._finish_of(epilogue, n)
        bytes_of, indices_of = partial(ffi.from_buffer, "uint8_t[]"), partial(ffi.from_buffer, "int64_t[]")
        kinds = shift, stacks.a_zero_point + shift, b.dtype == np.int8, len(zeros) == 1
        sizes, pairs = (m, k, n, count), map(indices_of, stacks.pairing)
        fields = bytes_of(a), bytes_of(b), *sizes, *pairs, *kinds, ffi.from_buffer("int32_t[]", zeros)
        if lib.pyq_multiply(ffi.new("pyq_products *", (*fields, finish.c, bytes_of(out)))) != lib.PYQ_OK:
            raise MemoryError(f"a, b: no memory for copies of {a.nbytes} and {b.nbytes} bytes")
        return out

    @lru_cache(maxsize=64)  # noqa: B019 (there is one backend of a kind)
    def _finish_of(self, epilogue: Epilogue, columns: int) -> Struct:
        return self.prepare(epilogue, lower_epilogue(epilogue, columns), columns)

    def finish(
        self, acc: NDArray[np.int32], prepared: Struct, out: NDArray[Any], residual: NDArray[Any] | None
    ) -> None:
        """``pyq_apply_epilogue``."""
        to = ffi.from_buffer(out, require_writable=True)
        addend = _pointer("uint8_t[]", residual)
        lib.pyq_apply_epilogue(ffi.from_buffer("int32_t[]", acc), *acc.shape, prepared.c, addend, to)

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
        lib.pyq_binary(
            _arithmetic(op, a.params.numbers, b.params.numbers, params.numbers, params.qmin, params.qmax),
            len(a.shape),
            a.shape,
            lib.pyq_array_data(id(a.array)),
            a.strides,
            lib.pyq_array_data(id(b.array)),
            b.strides,
            ffi.from_buffer("uint8_t[]", out, require_writable=True),
        )

    def range_run(self, x: NDArray[np.float32]) -> tuple[float, float, bool]:
        """``pyq_range``."""
        bounds = ffi.new("float[2]")
        found_nan = lib.pyq_range(ffi.from_buffer("float[]", x), x.size, bounds, bounds + 1)
        return bounds[0], bounds[1], bool(found_nan)

    def pool_max(self, x: NDArray[Any], windows: Windows, out: NDArray[Any]) -> None:
        """``pyq_max_pool``."""
        lib.pyq_max_pool(_pool(x, windows), _pointer("uint8_t[]", out))

    def pool_average(
        self,
        x: NDArray[Any],
        params: QParams,
        windows: Windows,
        out_params: QParams,
        out: NDArray[Any],
    ) -> None:
        """``pyq_average_pool``."""
        zero_point = int(out_params.zero_point)
        bounds = out_params.qmin - zero_point, out_params.qmax - zero_point
        fixed = _pointer("pyq_fixed_mean[]", fixed_means(windows, params, out_params))
        target = _pointer("uint8_t[]", out)
        lib.pyq_average_pool(_pool(x, windows), _affine(params), _affine(out_params), *bounds, fixed, target)

    def transpose(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """``pyq_transpose``."""
        lib.pyq_transpose(_pointer("uint8_t[]", x), *x.shape, x.itemsize, _pointer("uint8_t[]", out))

    def softmax(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """``pyq_softmax``."""
        out = np.empty_like(x)
        lib.pyq_softmax(_pointer("float[]", x), *x.shape, _pointer("float[]", out))
        return out

    def softmax_of_bytes(self, q: NDArray[Any], exponentials: NDArray[np.int32]) -> NDArray[np.float32]:
        """``pyq_softmax_of_bytes``."""
        out = np.empty(q.shape, np.float32)
        source, table = _pointer("uint8_t[]", q), _pointer("int32_t[]", exponentials)
        lib.pyq_softmax_of_bytes(source, q.dtype == np.int8, *q.shape, table, _pointer("float[]", out))
        return out

    def layer_norm(
        self, x: NDArray[np.float32], scale: NDArray[np.float32], bias: NDArray[np.float32] | None, epsilon: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """``pyq_layer_norm``."""
        results = np.empty_like(x), np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        operands = _pointer("float[]", scale), _pointer("float[]", bias), epsilon
        lib.pyq_layer_norm(_pointer("float[]", x), *x.shape, *operands, *(_pointer("float[]", y) for y in results))
        return results


def _pool(x: NDArray[Any], windows: Windows) -> Any:
    """A ``pyq_pool``, valid as long as its arguments live."""
    positions = (_pointer("int64_t[]", array) for array in windows[:4])
    return ffi.new(
        "pyq_pool *",
        (
            _pointer("uint8_t[]", x),
            x.dtype == np.int8,
            len(x),
            x[0].size,
            x.shape[-1],
            *windows.counts.shape,
            *positions,
            windows.step,
            _pointer("float[]", windows.counts),
        ),
    )


def _product(call: Struct) -> Product:
    """Of a small product every look-up of a name counts: here all are local. For ``id`` see csrc/arrays.h."""
    run, fine = lib.pyq_run_arrays, lib.PYQ_OK

    def product(x: NDArray[Any], w: PackedWeight, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        status = run(call.c, id(x), len(x), 0 if residual is None else id(residual), id(out))
        if status != fine:
            _fail(status, x, w)

    return product


def _fail(status: int, x: NDArray[Any], w: PackedWeight) -> NoReturn:
    if status == lib.PYQ_ABOVE_AMAX:
        raise above_amax(x, w)
    raise MemoryError(f"x: no memory for a copy of {x.nbytes} bytes")


def _weights(w: PackedWeight, offsets: NDArray[np.int32]) -> Struct:
    fields = (
        ffi.from_buffer("pyq_segment[]", w.segments),
        len(w.segments),
        ffi.from_buffer("int32_t[]", offsets),
        _pointer("uint16_t[]", w.quads),
        ffi.from_buffer("uint8_t[]", w.data),
    )
    return Struct(ffi.new("pyq_weights *", fields), (w.segments, offsets, w.quads, w.data))


def _dynamic(w: PackedWeight, low: float, high: float) -> Struct:
    weights, one = _weights(w, w.offsets()), (1, 1, 1)
    scale = np.ascontiguousarray(np.broadcast_to(w.scale, w.columns))
    images = one, w.shape[0], (0, 0, 0), (0, 0, 0), one, one, one
    call = weights.c, ffi.NULL, w.columns, *images, 0, 0, w.amax, True, 0, ffi.NULL
    fields = call, _pointer("float[]", scale), _pointer("int32_t[]", w.colsum), low, high
    return Struct(ffi.new("pyq_dynamic *", fields), (weights, scale, w.colsum))


_Affine: TypeAlias = tuple[float, int, bool]


def _affine(params: QParams) -> Any:
    return ffi.new("pyq_affine *", params.numbers)


@lru_cache(maxsize=1024)
def _arithmetic(op: str, a: _Affine, b: _Affine, out: _Affine, qmin: int, qmax: int) -> Any:
    """A ``pyq_arithmetic``, which is kept because to look for shorter ways takes as long as some 100000 results."""
    prepared = ffi.new("pyq_arithmetic *")
    operands = (ffi.new("pyq_affine *", each) for each in (a, b, out))
    lib.pyq_prepare_binary(OPERATIONS.index(op), *operands, qmin - out[1], qmax - out[1], prepared)
    return prepared

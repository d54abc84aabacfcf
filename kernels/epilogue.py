"""From int32 sums to the output: bias, multiplier, offset, clamp, zero point, table.

    INT32      acc + bias
    FLOAT32    clamp(float32(acc + bias) * multiplier + offset, low, high)
    QUANTIZED  rne(clamp(float32(acc + bias) * multiplier, low, high)) + zero_point, then the table

The addition of the bias wraps modulo 2^32. Multiply and add stay two float32 operations (no FMA: `fastmath` is
off). For QUANTIZED, low and high are integers with the zero point already subtracted: clamping before rounding then
equals clamping after it, and keeps the conversion to int32 in range.

Sixteen columns are one LLVM vector, because its own vectorizer wants loops of 32. With AVX2 they become twice vpaddd,
vcvtdq2ps, vmulps, vmaxps, vminps, vcvtps2dq (which rounds half to even), vpaddd; and one store. Without it, what the
target has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import NR

from .host import Bytes, Floats, Int32s, array, inlined, jit

INT32, FLOAT32, QUANTIZED = range(3)
"""Kinds of output. Its memory is given as bytes."""

ROWS = 64
"""Rows that `finish` takes at once: the parts of a line of output are written before it leaves the cache."""

EPILOGUE = types.Tuple(
    (
        types.int64,
        array(types.int32),
        array(types.float32),
        array(types.float32),
        types.int64,
        types.float64,
        types.float64,
        array(types.uint8),
    )
)
"""Kind, bias [N], multiplier [N], offset [N], zero_point, low, high, table [256 or 0]."""

OUT = types.Array(types.uint8, 1, "C")
"""The bytes of [M, N]."""

Epilogue = tuple[int, Int32s, Floats, Floats, int, float, float, Bytes]

_INTS, _FLOATS, _BYTES = (ir.VectorType(kind, NR) for kind in (ir.IntType(32), ir.FloatType(), ir.IntType(8)))


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, NR), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTS, [0] * NR))


def _clamp(builder: ir.IRBuilder, reals: Any, low: Any, high: Any) -> Any:
    lowest, highest = (_splat(builder, builder.fptrunc(bound, ir.FloatType())) for bound in (low, high))
    reals = builder.select(builder.fcmp_ordered(">", reals, lowest), reals, lowest)
    return builder.select(builder.fcmp_ordered("<", reals, highest), reals, highest)


def _quantize(builder: ir.IRBuilder, reals: Any, zero_point: Any) -> Any:
    nearest = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_INTS, [_FLOATS]), f"llvm.lrint.v{NR}i32.v{NR}f32"
    )
    zero = _splat(builder, builder.trunc(zero_point, ir.IntType(32)))
    return builder.trunc(builder.add(builder.call(nearest, [reals]), zero), _BYTES)


def _vector(kind: int) -> Any:
    """The intrinsic that finishes NR columns: acc from element `first` on, into out from element `to` on."""

    @intrinsic
    def finish_vector(
        typing: Any,
        acc: Any,
        first: Any,
        bias: Any,
        multiplier: Any,
        offset: Any,
        column: Any,
        zero_point: Any,
        low: Any,
        high: Any,
        out: Any,
        to: Any,
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
            def pointer(array: int, position: int, vector: ir.VectorType) -> Any:
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                elements = builder.bitcast(data, vector.element.as_pointer())
                return builder.bitcast(builder.gep(elements, [arguments[position]]), vector.as_pointer())

            zero_point, low, high = arguments[6:9]
            result = builder.add(*(builder.load(pointer(*place, _INTS), align=4) for place in ((0, 1), (2, 5))))
            if kind != INT32:
                result = builder.fmul(builder.sitofp(result, _FLOATS), builder.load(pointer(3, 5, _FLOATS), align=4))
                if kind == FLOAT32:
                    result = builder.fadd(result, builder.load(pointer(4, 5, _FLOATS), align=4))
                result = _clamp(builder, result, low, high)
            if kind == QUANTIZED:
                result = _quantize(builder, result, zero_point)
            builder.store(result, pointer(9, 10, result.type), align=1)
            return context.get_dummy_value()

        arguments = acc, first, bias, multiplier, offset, column, zero_point, low, high, out, to
        return types.void(*arguments), codegen

    return finish_vector


_int32_vector, _float32_vector, _quantized_vector = (_vector(kind) for kind in (INT32, FLOAT32, QUANTIZED))


@inlined()
def _finish_one(
    kind: int,
    acc: int,
    bias: int,
    multiplier: float,
    offset: float,
    zero_point: int,
    low: float,
    high: float,
    out: Bytes,
    index: int,
) -> None:
    """Finish one column, into element `index` of out."""
    total = np.int32(acc + bias)
    if kind == INT32:
        out.view(np.int32)[index] = total
        return
    lowest, highest = np.float32(low), np.float32(high)
    real = np.float32(total) * multiplier
    if kind == FLOAT32:
        real += offset
    real = real if real > lowest else lowest
    real = real if real < highest else highest
    if kind == FLOAT32:
        out.view(np.float32)[index] = real
    else:
        out[index] = np.int32(np.rint(real)) + np.int32(zero_point)


@inlined()
def finish_columns(
    acc: Int32s, source: int, begin: int, column: int, columns: int, epilogue: Epilogue, out: Bytes
) -> None:
    """Write out[begin : begin + len(acc), column : column + columns] from acc[:, source:]; columns is at most NR."""
    kind, bias, multiplier, offset, zero_point, low, high, table = epilogue
    total, stride = len(bias), acc.shape[1]
    first = begin * total + column
    rest = (bias, multiplier, offset, column, zero_point, low, high, out)
    if columns < NR:
        for r in range(len(acc)):
            for c in range(columns):
                n, to = column + c, first + r * total + c
                _finish_one(kind, acc[r, source + c], bias[n], multiplier[n], offset[n], zero_point, low, high, out, to)
    elif kind == INT32:
        for r in range(len(acc)):
            _int32_vector(acc, r * stride + source, *rest, first + r * total)
    elif kind == FLOAT32:
        for r in range(len(acc)):
            _float32_vector(acc, r * stride + source, *rest, first + r * total)
    else:
        for r in range(len(acc)):
            _quantized_vector(acc, r * stride + source, *rest, first + r * total)
    if len(table):
        for r in range(len(acc)):
            for i in range(first + r * total, first + r * total + columns):
                out[i] = table[out[i]]


@jit(types.void(array(types.int32, 2), EPILOGUE, OUT))
def finish(acc: Int32s, epilogue: Epilogue, out: Bytes) -> None:
    """Write out [M, N] from acc [M, N]."""
    for begin in range(0, len(acc), ROWS):
        for c in range(0, acc.shape[1], NR):
            finish_columns(acc[begin : begin + ROWS], c, begin, c, min(acc.shape[1] - c, NR), epilogue, out)

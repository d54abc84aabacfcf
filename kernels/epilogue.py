"""From int32 sums to the output: bias, multiplier, offset, clamp, zero point, table.

    INT32      acc + bias
    FLOAT32    clamp(float32(acc + bias) * multiplier + offset, low, high)
    QUANTIZED  rne(clamp(float32(acc + bias) * multiplier, low, high)) + zero_point, then the table;
               with a residual the product is rounded first, and its sum with the residual takes its place

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

INT32, FLOAT32, QUANTIZED, SUM = range(4)
"""Kinds of output, whose memory is given as bytes; SUM only chooses a vector."""

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
        array(types.float32),
    )
)
"""Kind, bias [N], multiplier [N], offset [N], zero_point, low, high, table [256 or 0], addition [7 or 0]: the numbers
of a `pyq.lowering.LoweredSum`, all exact in float32."""

RESIDUAL = array(types.uint8)
"""The bytes of [M, N] that an addition adds; else empty."""

OUT = types.Array(types.uint8, 1, "C")
"""The bytes of [M, N]."""

Epilogue = tuple[int, Int32s, Floats, Floats, int, float, float, Bytes, Floats]

_INTS, _FLOATS, _BYTES = (ir.VectorType(kind, NR) for kind in (ir.IntType(32), ir.FloatType(), ir.IntType(8)))


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, NR), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_INTS, [0] * NR))


def _clamp(builder: ir.IRBuilder, reals: Any, lowest: Any, highest: Any) -> Any:
    reals = builder.select(builder.fcmp_ordered(">", reals, lowest), reals, lowest)
    return builder.select(builder.fcmp_ordered("<", reals, highest), reals, highest)


def _round(builder: ir.IRBuilder, reals: Any) -> Any:
    nearest = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_INTS, [_FLOATS]), f"llvm.lrint.v{NR}i32.v{NR}f32"
    )
    return builder.call(nearest, [reals])


def _add_residual(builder: ir.IRBuilder, product: Any, numbers: list[Any], residual: Any) -> Any:
    """The product, rounded to its own integers, plus bytes of the residual; in units of the sum."""
    low, high, product_scale, residual_scale, zero_point, is_signed, scale = numbers
    integers = builder.sitofp(_round(builder, _clamp(builder, product, low, high)), _FLOATS)
    as_signed, as_unsigned = builder.sitofp(residual, _FLOATS), builder.uitofp(residual, _FLOATS)
    bytes_are_signed = builder.fcmp_ordered("!=", is_signed, ir.Constant(_FLOATS, [0.0] * NR))
    values = builder.fsub(builder.select(bytes_are_signed, as_signed, as_unsigned), zero_point)
    total = builder.fadd(builder.fmul(integers, product_scale), builder.fmul(values, residual_scale))
    return builder.fdiv(total, scale)


def _vector(kind: int) -> Any:
    """The intrinsic that finishes NR columns: acc from element `first` on, into out from element `to` on.

    SUM is QUANTIZED with a residual, whose bytes lie as those of out.
    """

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
        addition: Any,
        residual: Any,
        out: Any,
        to: Any,
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
            def pointer(array: int, position: int, vector: ir.VectorType) -> Any:
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                elements = builder.bitcast(data, vector.element.as_pointer())
                return builder.bitcast(builder.gep(elements, [arguments[position]]), vector.as_pointer())

            def number(index: int) -> Any:
                data = context.make_array(signature.args[9])(context, builder, arguments[9]).data
                return _splat(builder, builder.load(builder.gep(data, [ir.IntType(64)(index)])))

            zero_point, low, high = arguments[6:9]
            result = builder.add(*(builder.load(pointer(*place, _INTS), align=4) for place in ((0, 1), (2, 5))))
            if kind != INT32:
                result = builder.fmul(builder.sitofp(result, _FLOATS), builder.load(pointer(3, 5, _FLOATS), align=4))
                if kind == FLOAT32:
                    result = builder.fadd(result, builder.load(pointer(4, 5, _FLOATS), align=4))
                if kind == SUM:
                    addends = builder.load(pointer(10, 12, _BYTES), align=1)
                    result = _add_residual(builder, result, [number(i) for i in range(7)], addends)
                bounds = (_splat(builder, builder.fptrunc(bound, ir.FloatType())) for bound in (low, high))
                result = _clamp(builder, result, *bounds)
            if kind in (QUANTIZED, SUM):
                zero = _splat(builder, builder.trunc(zero_point, ir.IntType(32)))
                result = builder.trunc(builder.add(_round(builder, result), zero), _BYTES)
            builder.store(result, pointer(11, 12, result.type), align=1)
            return context.get_dummy_value()

        arguments = acc, first, bias, multiplier, offset, column, zero_point, low, high, addition, residual, out, to
        return types.void(*arguments), codegen

    return finish_vector


_int32_vector, _float32_vector, _quantized_vector = (_vector(kind) for kind in (INT32, FLOAT32, QUANTIZED))
_sum_vector = _vector(SUM)


@inlined()
def _add_residual_one(product: float, addition: Floats, byte: int) -> float:
    """`_add_residual` for one column."""
    product = product if product > addition[0] else addition[0]
    product = product if product < addition[1] else addition[1]
    value = np.float32(byte - 256 if byte > 127 and addition[5] else byte) - addition[4]
    return (np.float32(np.rint(product)) * addition[2] + value * addition[3]) / addition[6]


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
    addition: Floats,
    residual: Bytes,
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
    if len(addition):
        real = _add_residual_one(real, addition, residual[index])
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
    acc: Int32s, source: int, begin: int, column: int, columns: int, epilogue: Epilogue, residual: Bytes, out: Bytes
) -> None:
    """Write out[begin : begin + len(acc), column : column + columns] from acc[:, source:]; columns is at most NR."""
    kind, bias, multiplier, offset, zero_point, low, high, table, addition = epilogue
    total, stride = len(bias), acc.shape[1]
    first = begin * total + column
    ends = (zero_point, low, high, addition, residual, out)
    rest = (bias, multiplier, offset, column, *ends)
    if columns < NR:
        for r in range(len(acc)):
            for c in range(columns):
                n, to = column + c, first + r * total + c
                _finish_one(kind, acc[r, source + c], bias[n], multiplier[n], offset[n], *ends, to)
    elif kind == INT32:
        for r in range(len(acc)):
            _int32_vector(acc, r * stride + source, *rest, first + r * total)
    elif kind == FLOAT32:
        for r in range(len(acc)):
            _float32_vector(acc, r * stride + source, *rest, first + r * total)
    elif len(addition):
        for r in range(len(acc)):
            _sum_vector(acc, r * stride + source, *rest, first + r * total)
    else:
        for r in range(len(acc)):
            _quantized_vector(acc, r * stride + source, *rest, first + r * total)
    if len(table):
        for r in range(len(acc)):
            for i in range(first + r * total, first + r * total + columns):
                out[i] = table[out[i]]


@jit(types.void(array(types.int32, 2), EPILOGUE, RESIDUAL, OUT))
def finish(acc: Int32s, epilogue: Epilogue, residual: Bytes, out: Bytes) -> None:
    """Write out [M, N] from acc [M, N]."""
    for begin in range(0, len(acc), ROWS):
        for c in range(0, acc.shape[1], NR):
            columns = min(acc.shape[1] - c, NR)
            finish_columns(acc[begin : begin + ROWS], c, begin, c, columns, epilogue, residual, out)

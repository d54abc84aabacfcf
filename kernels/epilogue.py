"""From int32 sums to the output: bias, multiplier, offset, clamp, zero point, table.

    INT32      acc + bias
    FLOAT32    clamp(float32(acc + bias) * multiplier + offset, low, high)
    QUANTIZED  rne(clamp(float32(acc + bias) * multiplier, low, high)) + zero_point, then the table;
               with a residual the product is rounded first, and its sum with the residual takes its place

The addition of the bias wraps modulo 2^32. Multiply and add stay two float32 operations (no FMA: `fastmath` is
off). For QUANTIZED, low and high are integers with the zero point already subtracted: clamping before rounding then
equals clamping after it, and keeps the conversion to int32 in range.

Sixteen columns are one LLVM vector, because its own vectorizer wants loops of 32. With AVX2 they become twice vpaddd,
vcvtdq2ps, vmulps, vmaxps, vminps, vcvtps2dq (which rounds half to even), vpaddd, vpand; four packs and shuffles; one
store. Without it, what the target has. Of a last panel that is not full, only columns that exist are read and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import NR

from .host import Bytes, Floats, Int32s, array, inlined, jit
from .llvm import I32, I64, Builder, load, load_first, splat, store, store_first

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


def _splat(builder: Builder, value: Any) -> Any:
    return splat(builder, value, NR)


def _clamp(builder: Builder, reals: Any, lowest: Any, highest: Any) -> Any:
    reals = builder.select(builder.fcmp_ordered(">", reals, lowest), reals, lowest)
    return builder.select(builder.fcmp_ordered("<", reals, highest), reals, highest)


def _round(builder: Builder, reals: Any) -> Any:
    nearest = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_INTS, [_FLOATS]), f"llvm.lrint.v{NR}i32.v{NR}f32"
    )
    return builder.call(nearest, [reals])


def _add_residual(builder: Builder, product: Any, numbers: list[Any], residual: Any) -> Any:
    """The product, rounded to its own integers, plus bytes of the residual; in units of the sum."""
    low, high, product_scale, residual_scale, zero_point, is_signed, scale = numbers
    integers = builder.sitofp(_round(builder, _clamp(builder, product, low, high)), _FLOATS)
    as_signed, as_unsigned = builder.sitofp(residual, _FLOATS), builder.uitofp(residual, _FLOATS)
    bytes_are_signed = builder.fcmp_ordered("!=", is_signed, ir.Constant(_FLOATS, [0.0] * NR))
    values = builder.fsub(builder.select(bytes_are_signed, as_signed, as_unsigned), zero_point)
    total = builder.fadd(builder.fmul(integers, product_scale), builder.fmul(values, residual_scale))
    return builder.fdiv(total, scale)


class Columns(NamedTuple):
    """What the columns of a vector have of their own: vectors of NR."""

    bias: Any
    multiplier: Any
    offset: Any


COLUMNS = Columns(_INTS, _FLOATS, _FLOATS)


class Limits(NamedTuple):
    """low, high: float32 numbers; zero_point: int32."""

    low: Any
    high: Any
    zero_point: Any


def finish_vector(
    builder: Builder, kind: int, sums: Any, columns: Columns, limits: Limits, residual: Sequence[Any] = ()
) -> Any:
    """The outputs of NR columns. residual: for SUM, the numbers of a `LoweredSum` and the bytes to be added."""
    result = builder.add(sums, columns.bias)
    if kind == INT32:
        return result
    result = builder.fmul(builder.sitofp(result, _FLOATS), columns.multiplier)
    if kind == FLOAT32:
        result = builder.fadd(result, columns.offset)
    if kind == SUM:
        result = _add_residual(builder, result, *residual)
    result = _clamp(builder, result, _splat(builder, limits.low), _splat(builder, limits.high))
    if kind == FLOAT32:
        return result
    return builder.trunc(builder.add(_round(builder, result), _splat(builder, limits.zero_point)), _BYTES)


def _rows(kind: int, partial: bool) -> Any:
    """The intrinsic that finishes `count` columns of all rows of acc, into out from element `to` on.

    SUM is QUANTIZED with a residual, whose bytes lie as those of out. Unless `partial`, count is NR.
    """

    @intrinsic
    def rows(
        typing: Any,
        acc: Any,
        source: Any,
        bias: Any,
        multiplier: Any,
        offset: Any,
        column: Any,
        count: Any,
        zero_point: Any,
        low: Any,
        high: Any,
        addition: Any,
        residual: Any,
        out: Any,
        to: Any,
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Any]) -> Any:
            source, column, count, zero_point, low, high, to = (arguments[i] for i in (1, 5, 6, 7, 8, 9, 13))
            length = builder.trunc(count, I32)

            def array(number: int) -> Any:
                return context.make_array(signature.args[number])(context, builder, arguments[number])

            def read(start: Any, index: Any, vector: ir.VectorType) -> Any:
                place = builder.gep(start, [index])
                return load_first(builder, place, vector, length) if partial else load(builder, place, vector)

            def number(index: int) -> Any:
                return _splat(builder, builder.load(builder.gep(array(10).data, [I64(index)])))

            columns = Columns(*(read(array(2 + i).data, column, vector) for i, vector in enumerate(COLUMNS)))
            low, high = (builder.fptrunc(bound, ir.FloatType()) for bound in (low, high))
            limits = Limits(low, high, builder.trunc(zero_point, I32))
            numbers = [number(i) for i in range(7)] if kind == SUM else []
            height, stride = (builder.extract_value(array(0).shape, i) for i in range(2))
            total = array(2).nitems
            with cgutils.for_range(builder, height) as loop:
                sums = read(array(0).data, builder.add(builder.mul(loop.index, stride), source), _INTS)
                place = builder.add(builder.mul(loop.index, total), to)
                addends = (numbers, read(array(11).data, place, _BYTES)) if kind == SUM else ()
                result = finish_vector(builder, kind, sums, columns, limits, addends)
                target = builder.gep(builder.bitcast(array(12).data, result.type.element.as_pointer()), [place])
                if partial:
                    store_first(builder, result, target, length)
                else:
                    store(builder, result, target)
            return context.get_dummy_value()

        numbers = count, zero_point, low, high
        arguments = acc, source, bias, multiplier, offset, column, *numbers, addition, residual, out, to
        return types.void(*arguments), codegen

    return rows


_int32_rows, _float32_rows, _quantized_rows, _sum_rows = (_rows(kind, False) for kind in range(4))
_int32_parts, _float32_parts, _quantized_parts, _sum_parts = (_rows(kind, True) for kind in range(4))


@inlined()
def finish_columns(
    acc: Int32s, source: int, begin: int, column: int, columns: int, epilogue: Epilogue, residual: Bytes, out: Bytes
) -> None:
    """Write out[begin : begin + len(acc), column : column + columns] from acc[:, source:]; columns is at most NR."""
    kind, bias, multiplier, offset, zero_point, low, high, table, addition = epilogue
    total = len(bias)
    first = begin * total + column
    numbers = (column, columns, zero_point, low, high, addition, residual, out, first)
    operands = (acc, source, bias, multiplier, offset, *numbers)
    if kind == QUANTIZED and len(addition):
        kind = SUM
    if columns == NR:
        if kind == INT32:
            _int32_rows(*operands)
        elif kind == FLOAT32:
            _float32_rows(*operands)
        elif kind == QUANTIZED:
            _quantized_rows(*operands)
        else:
            _sum_rows(*operands)
    elif kind == INT32:
        _int32_parts(*operands)
    elif kind == FLOAT32:
        _float32_parts(*operands)
    elif kind == QUANTIZED:
        _quantized_parts(*operands)
    else:
        _sum_parts(*operands)
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

"""AVX2 microkernels: each is one LLVM loop whose mr x 16 tile of int32 stays in registers.

What a turn of the loop costs for each row, and how many products it adds:

    PAIRS16  1 step    2 vpbroadcastd, 4 vpmaddwd, 4 vpaddd                                            64
    QUADS8   2 steps   2 vpbroadcastd, 4 vpmaddubsw, 2 vpaddw, 2 vpmaddwd, 2 vpaddd                   128
    TAPS16   2 steps   2 loads, vpunpcklbw, vpunpckhbw, 2 vpmovzxbw, 2 vpmaddwd, 2 vpaddd              32

and for each turn 4 loads of weights (TAPS16: 2). Zen 3 has two multiplies, two loads and four vector operations a
cycle: with 4 rows PAIRS16 peaks at 32 products a cycle and QUADS8 at 43; float32 FMA at 16.

Exactness. PAIRS16, TAPS16: `vpmaddwd` adds two products of at most 255 * 255 in int32. QUADS8: `vpmaddubsw`
saturates at int16 and `vpaddw` wraps; the pack has proven for each lane of a group of two steps that
amax * max(sum of its positive weights, sum of its |negative| ones) <= 32767. Sums in int32 wrap modulo 2^32.

Bytes are regrouped by bitcasts between vector types: free, and right on a little-endian CPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import NR

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
I8X16, I8X32, I16X16, I32X8 = (ir.VectorType(t, n) for t, n in ((I8, 16), (I8, 32), (I16, 16), (I32, 8)))

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = Any  # an ir.Value; llvmlite has no types
Sums: TypeAlias = list[list[Value]]  # for each row, what to add to the left and to the right half of its tile
Emit: TypeAlias = Callable[[Builder, list[Value], list[Value], Value], Sums]  # offsets of the steps, rows, weights


def _load(builder: Builder, pointer: Value, kind: ir.Type, index: int = 0) -> Value:
    """Value number `index` of a type, counted from a pointer, at any alignment."""
    typed = builder.bitcast(pointer, kind.as_pointer())
    return builder.load(builder.gep(typed, [I64(index)]), align=1)


def _call(builder: Builder, name: str, result: ir.Type, left: Value, right: Value) -> Value:
    kind = ir.FunctionType(result, [left.type, right.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.avx2.{name}")
    return builder.call(function, [left, right])


def _pmaddwd(builder: Builder, left: Value, right: Value) -> Value:
    return _call(builder, "pmadd.wd", I32X8, left, right)


def _pmaddubsw(builder: Builder, unsigned: Value, signed: Value) -> Value:
    return _call(builder, "pmadd.ub.sw", I16X16, unsigned, signed)


def _shuffle(builder: Builder, left: Value, right: Value, lanes: list[int]) -> Value:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _broadcast32(builder: Builder, pointer: Value, kind: ir.Type, index: int = 0) -> Value:
    """The 4 bytes number `index` from a pointer on, repeated (`vpbroadcastd`)."""
    undefined = ir.Constant(I32X8, ir.Undefined)
    single = builder.insert_element(undefined, _load(builder, pointer, I32, index), I32(0))
    return builder.bitcast(_shuffle(builder, single, undefined, [0] * 8), kind)


def _emit_pairs16(builder: Builder, offsets: list[Value], rows: list[Value], weights: Value) -> Sums:
    """One step: elements (0, 1) and (2, 3) of the quad, in int16 already, times the weights paired alike."""
    panel = [_load(builder, weights, I16X16, i) for i in range(4)]
    sums = []
    for row in rows:
        quad = builder.gep(row, [offsets[0]])
        first, second = (_broadcast32(builder, quad, I16X16, i) for i in (0, 1))
        sums.append(
            [
                builder.add(_pmaddwd(builder, first, panel[half]), _pmaddwd(builder, second, panel[2 + half]))
                for half in (0, 1)
            ]
        )
    return sums


def _emit_quads8(builder: Builder, offsets: list[Value], rows: list[Value], weights: Value) -> Sums:
    """A group of two steps: its sums in int16 are proven to fit, and are widened once."""
    panel = [_load(builder, weights, I8X32, i) for i in range(4)]
    ones = ir.Constant(I16X16, [1] * 16)
    sums = []
    for row in rows:
        first, second = (_broadcast32(builder, builder.gep(row, [offset]), I8X32) for offset in offsets)
        group = [
            builder.add(_pmaddubsw(builder, first, panel[half]), _pmaddubsw(builder, second, panel[2 + half]))
            for half in (0, 1)
        ]
        sums.append([_pmaddwd(builder, sum16, ones) for sum16 in group])
    return sums


def _emit_taps16(builder: Builder, offsets: list[Value], rows: list[Value], weights: Value) -> Sums:
    """Two taps of 16 channels: the two bytes of each channel side by side, as a pair of int16."""
    panel = [_load(builder, weights, I16X16, i) for i in range(2)]
    halves = [[lane for c in range(start, start + 8) for lane in (c, 16 + c)] for start in (0, 8)]
    sums = []
    for row in rows:
        first, second = (_load(builder, builder.gep(row, [offset]), I8X16) for offset in offsets)
        pairs = [builder.zext(_shuffle(builder, first, second, lanes), I16X16) for lanes in halves]
        sums.append([_pmaddwd(builder, *factors) for factors in zip(pairs, panel, strict=True)])
    return sums


def _microkernel(emit: Emit, steps: int, weight_bytes: int) -> Any:
    """The intrinsic `kernel(mr, base, rows, first, offsets, weights, acc)`: `emit` over all steps of a panel.

    mr is a literal: rows[first : first + mr] give acc[first : first + mr]; base is data or words, the rest as in
    `tile.tiles`. A turn of the loop takes `steps` steps and `weight_bytes` bytes of weights.
    """

    @intrinsic(prefer_literal=True)
    def kernel(
        typing: Any, mr: Any, base: Any, rows: Any, first: Any, offsets: Any, weights: Any, acc: Any
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
            base, rows, offsets, weights, acc = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (1, 2, 4, 5, 6)
            )
            first = arguments[3]
            starts = [builder.gep(rows.data, [builder.add(first, I64(r))]) for r in range(mr.literal_value)]
            row_pointers = [builder.gep(base.data, [builder.load(start)]) for start in starts]
            zero = ir.Constant(I32X8, [0] * 8)
            tile = [[cgutils.alloca_once(builder, I32X8) for _ in (0, 1)] for _ in row_pointers]
            for half in (half for row in tile for half in row):
                builder.store(zero, half)
            with cgutils.for_range(builder, builder.udiv(offsets.nitems, I64(steps))) as turn:
                step = builder.mul(turn.index, I64(steps))
                pointers = [builder.gep(offsets.data, [builder.add(step, I64(i))]) for i in range(steps)]
                now = [builder.sext(builder.load(pointer), I64) for pointer in pointers]
                panel = builder.gep(weights.data, [builder.mul(turn.index, I64(weight_bytes))])
                for row, sums in zip(tile, emit(builder, now, row_pointers, panel), strict=True):
                    for half, sum32 in zip(row, sums, strict=True):
                        builder.store(builder.add(builder.load(half), sum32), half)
            target = builder.gep(acc.data, [builder.mul(first, I64(NR))])
            vectors = builder.bitcast(target, I32X8.as_pointer())
            for i, half in enumerate(half for row in tile for half in row):
                builder.store(builder.load(half), builder.gep(vectors, [I64(i)]), align=4)
            return context.get_dummy_value()

        return types.void(mr, base, rows, first, offsets, weights, acc), codegen

    return kernel


pairs16 = _microkernel(_emit_pairs16, steps=1, weight_bytes=128)
quads8 = _microkernel(_emit_quads8, steps=2, weight_bytes=128)
taps16 = _microkernel(_emit_taps16, steps=2, weight_bytes=64)

"""AVX2 microkernels: each is one LLVM loop whose MR x 16 int32 tile stays in registers.

Instructions and cost of a tile of 4 rows, one Zen3 core (two multiplies and two 256-bit loads a cycle):

    PAIRS16  a step (4 k):  vpbroadcastd, vpand, vpsrlw, 4 vpmaddwd, 4 vpaddd a row        40 operations, 256 MAC
    QUADS8   two steps (8 k): 2 vpbroadcastd, 4 vpmaddubsw, 2 vpaddw, 2 vpmaddwd, 2 vpaddd a row   48, 512 MAC
    TAPS16   two taps:      2 loads, vpunpcklbw, vpunpckhbw, 2 vpmovzxbw, 2 vpmaddwd, 2 vpaddd a row   128 MAC

Exactness. PAIRS16 and TAPS16: |u8 * folded weight| <= 255 * 255, and a sum of two fits int32, so `vpmaddwd` never
wraps (it would for (-32768)^2 * 2 only). QUADS8: `vpmaddubsw` saturates at int16 and `vpaddw` wraps at it; the pack
has proven for each lane of a group that amax * max(sum of positive, sum of |negative| weights) <= 32767. All sums in
int32 wrap modulo 2^32, as the numerics demand.

Bytes are regrouped by bitcasts between vector types, which are free on a little-endian CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import NR

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
I8X16, I8X32, I16X16, I32X8 = (ir.VectorType(t, n) for t, n in ((I8, 16), (I8, 32), (I16, 16), (I32, 8)))

Emit = Callable[[ir.IRBuilder, list[Any], list[Any], Any], list[list[Any]]]
"""Emits one turn of the loop: (builder, offsets of its two steps, row pointers, weights) -> what each row adds to its tile."""


def _load(builder: ir.IRBuilder, pointer: Any, kind: ir.Type, index: int = 0) -> Any:
    """Value number `index` of a type, counted from a byte pointer."""
    typed = builder.bitcast(pointer, kind.as_pointer())
    return builder.load(builder.gep(typed, [I64(index)]), align=1)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, left: Any, right: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [left.type, right.type]), f"llvm.x86.avx2.{name}"
    )
    return builder.call(function, [left, right])


def _pmaddwd(builder: ir.IRBuilder, left: Any, right: Any) -> Any:
    return _call(builder, "pmadd.wd", I32X8, left, right)


def _pmaddubsw(builder: ir.IRBuilder, unsigned: Any, signed: Any) -> Any:
    return _call(builder, "pmadd.ub.sw", I16X16, unsigned, signed)


def _splat(builder: ir.IRBuilder, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _broadcast_quad(builder: ir.IRBuilder, row: Any, offset: Any, kind: ir.Type) -> Any:
    """The 4 bytes at row + offset, in all lanes (`vpbroadcastd`)."""
    quad = _load(builder, builder.gep(row, [offset]), I32)
    return builder.bitcast(_splat(builder, quad, 8), kind)


def _emit_pairs16(builder: ir.IRBuilder, offsets: list[Any], rows: list[Any], weights: Any) -> list[list[Any]]:
    """One step: bytes (k0, k2) and (k1, k3) of the quad as pairs of int16, against the weights paired alike."""
    panel = [_load(builder, weights, I16X16, i) for i in range(4)]
    low_bytes, shift = ir.Constant(I16X16, [255] * 16), ir.Constant(I16X16, [8] * 16)
    sums = []
    for row in rows:
        quad = _broadcast_quad(builder, row, offsets[0], I16X16)
        even, odd = builder.and_(quad, low_bytes), builder.lshr(quad, shift)
        sums.append(
            [
                builder.add(_pmaddwd(builder, even, panel[half]), _pmaddwd(builder, odd, panel[2 + half]))
                for half in (0, 1)
            ]
        )
    return sums


def _emit_quads8(builder: ir.IRBuilder, offsets: list[Any], rows: list[Any], weights: Any) -> list[list[Any]]:
    """A group of two steps: its int16 sums are proven to fit, and are widened once."""
    panel = [_load(builder, weights, I8X32, i) for i in range(4)]
    ones = ir.Constant(I16X16, [1] * 16)
    sums = []
    for row in rows:
        quads = [_broadcast_quad(builder, row, offset, I8X32) for offset in offsets]
        group = [
            builder.add(_pmaddubsw(builder, quads[0], panel[half]), _pmaddubsw(builder, quads[1], panel[2 + half]))
            for half in (0, 1)
        ]
        sums.append([_pmaddwd(builder, half_sum, ones) for half_sum in group])
    return sums


def _emit_taps16(builder: ir.IRBuilder, offsets: list[Any], rows: list[Any], weights: Any) -> list[list[Any]]:
    """Two taps of 16 channels: each channel's two bytes are interleaved to one pair of int16."""
    panel = [_load(builder, weights, I16X16, i) for i in range(2)]
    sums = []
    for row in rows:
        first, second = (_load(builder, builder.gep(row, [offset]), I8X16) for offset in offsets)
        halves = []
        for half in (0, 1):
            lanes = [lane for c in range(8 * half, 8 * half + 8) for lane in (c, 16 + c)]
            mask = ir.Constant(ir.VectorType(I32, 16), lanes)
            pairs = builder.zext(builder.shuffle_vector(first, second, mask), I16X16)
            halves.append(_pmaddwd(builder, pairs, panel[half]))
        sums.append(halves)
    return sums


def _microkernel(emit: Emit, steps_a_turn: int, bytes_a_turn: int) -> Any:
    """The intrinsic that runs `emit` over all steps of a panel, for a literal number of rows."""

    @intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
    def kernel(
        typing: Any, mr: Any, base: Any, rows: Any, first: Any, offsets: Any, weights: Any, acc: Any
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            arrays = {
                i: context.make_array(signature.args[i])(context, builder, args[i]) for i in (1, 2, 4, 5, 6)
            }
            base_pointer, weight_pointer = arrays[1].data, arrays[5].data
            row_pointers = []
            for r in range(mr.literal_value):
                index = builder.add(args[3], I64(r))
                start = builder.load(builder.gep(arrays[2].data, [index]))
                row_pointers.append(builder.gep(base_pointer, [start]))
            turns = builder.udiv(arrays[4].nitems, I64(steps_a_turn))
            zero = ir.Constant(I32X8, [0] * 8)
            tile = [[cgutils.alloca_once_value(builder, zero) for _ in (0, 1)] for _ in row_pointers]
            for slot in (slot for row in tile for slot in row):
                builder.store(zero, slot)
            with cgutils.for_range(builder, turns, intp=I64) as turn:
                step = builder.mul(turn.index, I64(steps_a_turn))
                offsets_now = [
                    builder.sext(builder.load(builder.gep(arrays[4].data, [builder.add(step, I64(i))])), I64)
                    for i in range(steps_a_turn)
                ]
                weights_now = builder.gep(weight_pointer, [builder.mul(turn.index, I64(bytes_a_turn))])
                for slots, sums in zip(tile, emit(builder, offsets_now, row_pointers, weights_now)):
                    for slot, value in zip(slots, sums):
                        builder.store(builder.add(builder.load(slot), value), slot)
            tile_start = builder.gep(arrays[6].data, [builder.mul(args[3], I64(NR))])
            out = builder.bitcast(tile_start, I32X8.as_pointer())
            for number, slot in enumerate(slot for row in tile for slot in row):
                builder.store(builder.load(slot), builder.gep(out, [I64(number)]), align=4)
            return context.get_dummy_value()

        return types.void(mr, base, rows, first, offsets, weights, acc), codegen

    return kernel


pairs16 = _microkernel(_emit_pairs16, steps_a_turn=1, bytes_a_turn=128)
quads8 = _microkernel(_emit_quads8, steps_a_turn=2, bytes_a_turn=128)
taps16 = _microkernel(_emit_taps16, steps_a_turn=2, bytes_a_turn=64)

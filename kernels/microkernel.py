"""The microkernels written in instructions: each is one LLVM function, whose tile of int32 stays in registers.

`avx2` and `avx512` have the instructions of a row, inline assembly, all in one order: LLVM, which would schedule
intrinsics, moves the loads of weights and the products of several rows together, and then spills accumulators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.backends import ISA_NAMES
from pyq.panels import LAYOUT_NAMES, NR, STEP_BYTES, WORDS

from . import avx2, avx512
from .host import AVX2, AVX512VNNI, available_isas
from .llvm import I8, I16, I32, I64, Builder, Value, assemble, load, store
from .registry import MICROKERNELS, Microkernel
from .turn import Turn

INSTRUCTIONS = {AVX2: avx2.INSTRUCTIONS, AVX512VNNI: avx512.INSTRUCTIONS}

Tile = list[list[Value]]
"""Of each row the places of its vectors of sums."""


def _vector(kernel: Microkernel) -> ir.VectorType:
    """Of sums: as wide as the instruction set has them, but not wider than the tile."""
    return ir.VectorType(I32, min(INSTRUCTIONS[kernel.isa].vector.count, kernel.nr))


def _places(tile: Tile) -> list[Value]:
    return [place for sums in tile for place in sums]


def _width(kernel: Microkernel) -> int:
    """Columns of a row of the tile in memory: those of a panel, however few are computed, or of two."""
    return max(kernel.nr, NR)


class Segment(NamedTuple):
    """What a microkernel reads: rows, offsets and weights of its steps, constants of its texts.

    apart: bytes from the weights of one panel to those of the next.
    """

    rows: list[Value]
    offsets: Value
    weights: Value
    apart: Value
    constants: dict[str, Value]


def _emit_turn(builder: Builder, kernel: Microkernel, turn: Turn, segment: Segment, step: Value, tile: Tile) -> None:
    """Add the products of the turn that begins at `step` to the tile."""
    places = [builder.gep(segment.offsets, [builder.add(step, I64(i))]) for i in range(turn.steps)]
    inputs = {f"offset{i}": builder.sext(builder.load(place), I64) for i, place in enumerate(places)}
    weights = builder.gep(segment.weights, [builder.mul(step, I64(STEP_BYTES[kernel.layout]))])
    vector = _vector(kernel)

    def loaded(i: int) -> Value:
        if kernel.nr <= NR:
            return turn.load(builder, weights, vector, i)
        return turn.load(builder, builder.gep(weights, [builder.mul(segment.apart, I64(i))]), vector, 0)

    for part in turn.parts:
        kept = {f"w{i}": loaded(i) for i in part.kept}
        for row, sums in zip(segment.rows, tile, strict=True):
            before = {f"acc{i}": builder.load(place) for i, place in enumerate(sums)}
            known = {"row": row, "weights": weights, **segment.constants, **inputs, **kept}
            after = assemble(builder, part.text, before, known, vector=vector)
            for place, value in zip(sums, after, strict=True):
                builder.store(value, place)


def _emit_loops(builder: Builder, kernel: Microkernel, segment: Segment, total: Value, tile: Tile) -> None:
    """Add the products of all steps to the tile: of as many turns at once as there are chains, then of those left."""
    instructions = INSTRUCTIONS[kernel.isa]
    turn = instructions.turns[kernel.layout, kernel.nr]
    zero = ir.Constant(_vector(kernel), None)
    count = turn.chains.get(kernel.mr, 1)
    others = [[[cgutils.alloca_once_value(builder, zero) for _ in sums] for sums in tile] for _ in range(1, count)]
    together = I64(count * turn.steps)
    end = builder.sub(total, builder.urem(total, together))
    with cgutils.for_range_slice(builder, I64(0), end, together) as (step, _):
        for i, chain in enumerate([tile, *others]):
            _emit_turn(builder, kernel, turn, segment, builder.add(step, I64(i * turn.steps)), chain)
    if not others:
        return
    for chain in others:
        for place, other in zip(_places(tile), _places(chain), strict=True):
            builder.store(builder.add(builder.load(place), builder.load(other)), place)
    with cgutils.for_range_slice(builder, end, total, I64(turn.steps)) as (step, _):
        _emit_turn(builder, kernel, turn, segment, step, tile)


def _function(module: ir.Module, kernel: Microkernel) -> ir.Function:
    """The function (base, rows, offsets, steps, weights, acc): add the sums of all steps to mr rows, nr columns of acc.

    A function of its own, because LLVM shares out registers for a whole one.
    """
    element = I16 if kernel.layout in WORDS else I8
    arguments = [element.as_pointer(), I64.as_pointer(), I32.as_pointer(), I64, I8.as_pointer(), I32.as_pointer()]
    kind = ir.FunctionType(ir.VoidType(), arguments)
    name = f"pyq_numba_{ISA_NAMES[kernel.isa]}_{LAYOUT_NAMES[kernel.layout]}_{kernel.mr}x{kernel.nr}"
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    base, starts, offsets, total, weights, acc = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    rows = [builder.gep(base, [builder.load(builder.gep(starts, [I64(r)]))]) for r in range(kernel.mr)]
    vector, constants = _vector(kernel), INSTRUCTIONS[kernel.isa].constants
    targets = [
        [builder.gep(acc, [I64(_width(kernel) * r + c)]) for c in range(0, kernel.nr, vector.count)]
        for r in range(kernel.mr)
    ]
    tile = [[cgutils.alloca_once_value(builder, load(builder, target, vector)) for target in row] for row in targets]
    apart = builder.mul(total, I64(STEP_BYTES[kernel.layout]))
    _emit_loops(builder, kernel, Segment(rows, offsets, weights, apart, constants(builder)), total, tile)
    for place, target in zip(_places(tile), _places(targets), strict=True):
        store(builder, builder.load(place), target)
    builder.ret_void()
    return function


@intrinsic
def run(
    typing: Any, number: Any, count: Any, data: Any, words: Any, rows: Any, offsets: Any, weights: Any, acc: Any
) -> tuple[Any, Any]:
    """Call the microkernel of this number in `MICROKERNELS` for the first `count` tiles; the rest as in `tile.tiles`.

    What the target lacks is left out: LLVM could not compile it.
    """

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        data, words, rows, offsets, weights, acc = (
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args[2:], arguments[2:], strict=True)
        )
        end = builder.append_basic_block()
        number, count = arguments[:2]
        choice = builder.switch(number, end)
        for number, kernel in enumerate(MICROKERNELS):
            if kernel.isa in INSTRUCTIONS and kernel.isa in available_isas():
                with builder.goto_block(builder.append_basic_block()):
                    choice.add_case(I64(number), builder.block)
                    base = words.data if kernel.layout in WORDS else data.data
                    function = _function(builder.module, kernel)
                    with cgutils.for_range(builder, count) as loop:
                        first = builder.mul(loop.index, I64(kernel.mr))
                        starts = builder.gep(rows.data, [first])
                        tile = builder.gep(acc.data, [builder.mul(first, I64(_width(kernel)))])
                        builder.call(function, [base, starts, offsets.data, offsets.nitems, weights.data, tile])
                    builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(number, count, data, words, rows, offsets, weights, acc), codegen

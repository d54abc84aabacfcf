"""AVX2 microkernels: each is one LLVM function, whose mr x 16 tile of int32 stays in registers.

What a turn of the loop costs for each row, and how many products it adds:

    PAIRS16   1 step    2 vpbroadcastd, 4 vpmaddwd, 4 vpaddd                                             64
    PAIRS8    1 step    the same; and for all rows 4 vpmovsxbw, which widen the weights                  64
    QUADS8    1 step    1 vpbroadcastd, 2 vpmaddubsw, 2 vpmaddwd, 2 vpaddd                               64
    QUADS8P2  2 steps   2 vpbroadcastd, 4 vpmaddubsw, 2 vpaddw, 2 vpmaddwd, 2 vpaddd                    128
    QUADS8P4  4 steps   4 vpbroadcastd, 8 vpmaddubsw, 6 vpaddw, 2 vpmaddwd, 2 vpaddd                    256
    TAPS16    2 steps   2 loads, vpunpcklbw, vpunpckhbw, 2 vpmovzxbw, 2 vpmaddwd, 2 vpaddd               32

Zen 3 has two multiplies, two loads and four vector operations a cycle: PAIRS16 and QUADS8 peak at 32 products a
cycle, QUADS8P2 at 43, QUADS8P4 at 51, TAPS16 at 16; float32 FMA at 16.

Exactness. PAIRS16, PAIRS8, TAPS16: `vpmaddwd` adds two products of at most 255 * 255 in int32. The others:
`vpmaddubsw` saturates at int16 and `vpaddw` wraps; the pack has proven for each lane of the steps of a turn that
amax * max(sum of its positive weights, sum of its |negative| ones) <= 32767. Sums in int32 wrap modulo 2^32.

Bytes are regrouped by bitcasts between vector types: free, and right on a little-endian CPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import LAYOUT_NAMES, NR, PAIRS8, PAIRS16, QUADS8, QUADS8P2, QUADS8P4, STEP_BYTES, TAPS16, WORDS

from .host import AVX2
from .registry import MAX_MR, MICROKERNELS

binding.initialize_native_asmparser()

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
I8X16, I8X32, I16X16, I32X8 = (ir.VectorType(t, n) for t, n in ((I8, 16), (I8, 32), (I16, 16), (I32, 8)))
ONES = ir.Constant(I16X16, [1] * 16)

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = Any  # an ir.Value; llvmlite has no types
Sums: TypeAlias = tuple[Value, Value]  # what to add to the left and to the right half of a row of the tile


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


def _load_words(builder: Builder, weights: Value, count: int) -> list[Value]:
    return [_load(builder, weights, I16X16, i) for i in range(count)]


def _load_widened(builder: Builder, weights: Value, count: int) -> list[Value]:
    return [builder.sext(_load(builder, weights, I8X16, i), I16X16) for i in range(count)]


def _load_bytes(builder: Builder, weights: Value, count: int) -> list[Value]:
    return [_load(builder, weights, I8X32, i) for i in range(count)]


def _multiply_pairs(builder: Builder, row: Value, offsets: list[Value], panel: list[Value]) -> Sums:
    """Elements (0, 1) and (2, 3) of the quad, in int16 already, times the weights paired alike."""
    quad = builder.gep(row, offsets)
    first, second = (_broadcast32(builder, quad, I16X16, i) for i in (0, 1))
    left, right = (
        builder.add(_pmaddwd(builder, first, panel[half]), _pmaddwd(builder, second, panel[2 + half]))
        for half in (0, 1)
    )
    return left, right


def _multiply_quads(builder: Builder, row: Value, offsets: list[Value], panel: list[Value]) -> Sums:
    """A group of quads: its sums in int16 are proven to fit, and are widened once."""
    quads = [_broadcast32(builder, builder.gep(row, [offset]), I8X32) for offset in offsets]
    left, right = (_pmaddubsw(builder, quads[0], panel[half]) for half in (0, 1))
    for i, quad in enumerate(quads[1:], 1):
        left = builder.add(left, _pmaddubsw(builder, quad, panel[2 * i]))
        right = builder.add(right, _pmaddubsw(builder, quad, panel[2 * i + 1]))
    return _pmaddwd(builder, left, ONES), _pmaddwd(builder, right, ONES)


def _multiply_taps(builder: Builder, row: Value, offsets: list[Value], panel: list[Value]) -> Sums:
    """Two taps of 16 channels: the two bytes of each channel side by side, as a pair of int16."""
    first, second = (_load(builder, builder.gep(row, [offset]), I8X16) for offset in offsets)
    halves = [[lane for c in range(start, start + 8) for lane in (c, 16 + c)] for start in (0, 8)]
    left, right = (builder.zext(_shuffle(builder, first, second, lanes), I16X16) for lanes in halves)
    return _pmaddwd(builder, left, panel[0]), _pmaddwd(builder, right, panel[1])


class Recipe(NamedTuple):
    """How a layout is computed: steps of a turn of the loop; its weights as `count` vectors; and what a row adds."""

    steps: int
    load: Callable[[Builder, Value, int], list[Value]]
    count: int
    multiply: Callable[[Builder, Value, list[Value], list[Value]], Sums]


RECIPES = {
    PAIRS16: Recipe(1, _load_words, 4, _multiply_pairs),
    PAIRS8: Recipe(1, _load_widened, 4, _multiply_pairs),
    QUADS8: Recipe(1, _load_bytes, 2, _multiply_quads),
    QUADS8P2: Recipe(2, _load_bytes, 4, _multiply_quads),
    QUADS8P4: Recipe(4, _load_bytes, 8, _multiply_quads),
    TAPS16: Recipe(2, _load_words, 2, _multiply_taps),
}


def _microkernel(module: ir.Module, layout: int, mr: int) -> ir.Function:
    """The function (base, rows, offsets, steps, weights, acc): add the sums of `steps` steps to mr rows of acc.

    A function of its own, because LLVM shares out registers for a whole one.
    """
    steps, load, count, multiply = RECIPES[layout]
    element = I16 if layout in WORDS else I8
    arguments = [element.as_pointer(), I64.as_pointer(), I32.as_pointer(), I64, I8.as_pointer(), I32.as_pointer()]
    kind = ir.FunctionType(ir.VoidType(), arguments)
    function = ir.Function(module, kind, f"pyq_numba_avx2_{LAYOUT_NAMES[layout]}_{mr}x{NR}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    base, starts, offsets, total, weights, acc = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    rows = [builder.gep(base, [builder.load(builder.gep(starts, [I64(r)]))]) for r in range(mr)]
    memory = builder.bitcast(acc, I32X8.as_pointer())
    targets = [builder.gep(memory, [I64(i)]) for i in range(2 * mr)]
    tile = [cgutils.alloca_once_value(builder, builder.load(target, align=4)) for target in targets]
    with cgutils.for_range(builder, builder.udiv(total, I64(steps))) as turn:
        step = builder.mul(turn.index, I64(steps))
        pointers = [builder.gep(offsets, [builder.add(step, I64(i))]) for i in range(steps)]
        now = [builder.sext(builder.load(pointer), I64) for pointer in pointers]
        panel = load(builder, builder.gep(weights, [builder.mul(step, I64(STEP_BYTES[layout]))]), count)
        for r, row in enumerate(rows):
            for half, sums in zip(tile[2 * r :], multiply(builder, row, now, panel), strict=False):
                builder.store(builder.add(builder.load(half), sums), half)
    for half, target in zip(tile, targets, strict=True):
        builder.store(builder.load(half), target, align=4)
    builder.ret_void()
    return function


@intrinsic
def run(
    typing: Any, layout: Any, mr: Any, data: Any, words: Any, rows: Any, offsets: Any, weights: Any, acc: Any
) -> tuple[Any, Any]:
    """Call the microkernel of a layout for the first mr rows; the rest as in `tile.tiles`."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        layout, mr = arguments[:2]
        data, words, rows, offsets, weights, acc = (
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args[2:], arguments[2:], strict=True)
        )
        end = builder.append_basic_block()
        choice = builder.switch(builder.add(builder.mul(layout, I64(MAX_MR + 1)), mr), end)
        for _, number, height in (row for row in MICROKERNELS if row[0] == AVX2):
            with builder.goto_block(builder.append_basic_block()):
                choice.add_case(I64(number * (MAX_MR + 1) + height), builder.block)
                base = words.data if number in WORDS else data.data
                function = _microkernel(builder.module, number, height)
                builder.call(function, [base, rows.data, offsets.data, offsets.nitems, weights.data, acc.data])
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(layout, mr, data, words, rows, offsets, weights, acc), codegen

"""AVX2 microkernels: each is one LLVM function, whose mr x 16 tile of int32 stays in registers.

What a turn of the loop costs for each row, and how many products it adds:

    PAIRS16   1 step    2 vpbroadcastd, 4 vpmaddwd, 4 vpaddd                                             64
    PAIRS8W   1 step    the same; and for all rows 4 vpmovsxbw, which widen the weights                  64
    QUADS32   1 step    the same, 1 vpand, 1 vpsrlw, which make pairs of bytes; 6 shifts for the weights   64
    QUADS8    1 step    1 vpbroadcastd, 2 vpmaddubsw, 2 vpmaddwd, 2 vpaddd                               64
    QUADS8P2  2 steps   2 vpbroadcastd, 4 vpmaddubsw, 2 vpaddw, 2 vpmaddwd, 2 vpaddd                    128
    QUADS8P4  4 steps   4 vpbroadcastd, 8 vpmaddubsw, 6 vpaddw, 2 vpmaddwd, 2 vpaddd                    256
    TAPS16    2 steps   2 loads, vpunpcklbw, vpunpckhbw, 2 vpmovzxbw, 2 vpmaddwd, 2 vpaddd               32

and for each turn the loads of its weights. Kernels for a last panel of at most eight columns compute half of it.
Zen 3 has two multiplies, two loads and four vector operations a cycle: PAIRS16, QUADS32 and QUADS8 peak at 32 products
a cycle, QUADS8P2 at 43, QUADS8P4 at 51, TAPS16 at 16; float32 FMA at 16.

The instructions of a row are inline assembly, all in one order: LLVM, which would schedule intrinsics, moves the loads
of weights and the products of several rows together, and then spills accumulators.

Exactness. PAIRS16, PAIRS8W, QUADS32, TAPS16: `vpmaddwd` adds two products of at most 255 * 255 in int32. The others:
`vpmaddubsw` saturates at int16 and `vpaddw` wraps; the pack has proven for each lane of the steps of a turn that
amax * max(sum of its positive weights, sum of its |negative| ones) <= 32767. Sums in int32 wrap modulo 2^32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, NR, PAIRS8W, PAIRS16, QUADS32, STEP_BYTES, TAPS16, WORDS

from .host import AVX2
from .llvm import I8, I8X16, I16, I16X16, I32, I32X8, I64, Builder, Value, assemble, load
from .registry import MAX_MR, MICROKERNELS, NARROW


class Part(NamedTuple):
    """Part of a turn of the loop: the weights, as numbers of vectors, kept in registers while `text` goes by all rows.

    text adds the products of one row to `left` and `right`. It knows `row`, `offset0` ... (of each step), `weights`
    (of the turn), `w0` ... (those kept) and `ones`; what else it names is a temporary.
    """

    kept: tuple[int, ...]
    text: str


WORD_PAIRS = [f"vpbroadcastd {4 * number}({{row}},{{offset0}},2), {{pair}}" for number in (0, 1)]
BYTE_PAIRS = [
    f"""vpbroadcastd ({{row}},{{offset0}}), {{pair}}
        {select}, {{pair}}, {{pair}}"""
    for select in ("vpand ({even})", "vpsrlw $$8")
]
"""Of a quad the even bytes, then the odd ones."""


def _pair(number: int, load: str) -> Part:
    """Half a quad, of which `load` makes two int16 elements."""
    text = f"""
        {load}
        vpmaddwd {{w{2 * number}}}, {{pair}}, {{product}}
        vpaddd {{product}}, {{left}}, {{left}}
        vpmaddwd {{w{2 * number + 1}}}, {{pair}}, {{pair}}
        vpaddd {{pair}}, {{right}}, {{right}}"""
    return Part((2 * number, 2 * number + 1), text)


def _narrow_pair(number: int, load: str) -> Part:
    """The same for eight columns."""
    text = f"""
        {load}
        vpmaddwd {{w{2 * number}}}, {{pair}}, {{pair}}
        vpaddd {{pair}}, {{left}}, {{left}}"""
    return Part((2 * number,), text)


def _quads(count: int) -> Part:
    """Quads that share a 16-bit sum. Beside eight accumulators there is room for three vectors of weights."""
    kept = tuple(range(min(2 * count, 3)))
    weights = [f"{{w{i}}}" if i in kept else f"{32 * i}({{weights}})" for i in range(2 * count)]
    text = f"""
        vpbroadcastd ({{row}},{{offset0}}), {{quad}}
        vpmaddubsw {weights[0]}, {{quad}}, {{sum0}}
        vpmaddubsw {weights[1]}, {{quad}}, {{sum1}}"""
    for i in range(1, count):
        text += f"""
        vpbroadcastd ({{row}},{{offset{i}}}), {{quad}}
        vpmaddubsw {weights[2 * i]}, {{quad}}, {{product}}
        vpaddw {{product}}, {{sum0}}, {{sum0}}
        vpmaddubsw {weights[2 * i + 1]}, {{quad}}, {{quad}}
        vpaddw {{quad}}, {{sum1}}, {{sum1}}"""
    text += """
        vpmaddwd {ones}, {sum0}, {sum0}
        vpaddd {sum0}, {left}, {left}
        vpmaddwd {ones}, {sum1}, {sum1}
        vpaddd {sum1}, {right}, {right}"""
    return Part(kept, text)


def _narrow_quads(count: int) -> Part:
    """The same for eight columns. Beside six accumulators there is room for all weights."""
    text = """
        vpbroadcastd ({row},{offset0}), {sum}
        vpmaddubsw {w0}, {sum}, {sum}"""
    for i in range(1, count):
        text += f"""
        vpbroadcastd ({{row}},{{offset{i}}}), {{quad}}
        vpmaddubsw {{w{2 * i}}}, {{quad}}, {{quad}}
        vpaddw {{quad}}, {{sum}}, {{sum}}"""
    text += """
        vpmaddwd {ones}, {sum}, {sum}
        vpaddd {sum}, {left}, {left}"""
    return Part(tuple(range(0, 2 * count, 2)), text)


TAPS = Part(
    (0, 1),
    """
        vmovdqu ({row},{offset0}), {tap:x}
        vpunpcklbw ({row},{offset1}), {tap:x}, {pairs:x}
        vpmovzxbw {pairs:x}, {pairs}
        vpmaddwd {w0}, {pairs}, {pairs}
        vpaddd {pairs}, {left}, {left}
        vpunpckhbw ({row},{offset1}), {tap:x}, {tap:x}
        vpmovzxbw {tap:x}, {tap}
        vpmaddwd {w1}, {tap}, {tap}
        vpaddd {tap}, {right}, {right}""",
)

TURNS = {
    (PAIRS16, NR): (1, [_pair(i, load) for i, load in enumerate(WORD_PAIRS)]),
    (PAIRS8W, NR): (1, [_pair(i, load) for i, load in enumerate(WORD_PAIRS)]),
    (PAIRS8W, NARROW): (1, [_narrow_pair(i, load) for i, load in enumerate(WORD_PAIRS)]),
    (QUADS32, NR): (1, [_pair(i, load) for i, load in enumerate(BYTE_PAIRS)]),
    (QUADS32, NARROW): (1, [_narrow_pair(i, load) for i, load in enumerate(BYTE_PAIRS)]),
    **{(layout, NR): (count, [_quads(count)]) for layout, count in GROUP_SIZE.items()},
    **{(layout, NARROW): (count, [_narrow_quads(count)]) for layout, count in GROUP_SIZE.items()},
    (TAPS16, NR): (2, [TAPS]),
}
"""Of each layout, and columns of a tile: steps of a turn of the loop, and its parts."""


def _load_weights(builder: Builder, layout: int, weights: Value, index: int) -> Value:
    """Vector number `index` of a turn. QUADS32: the even bytes of both halves of the columns, then the odd ones."""
    if layout == PAIRS8W:
        return builder.bitcast(builder.sext(load(builder, weights, I8X16, index), I16X16), I32X8)
    if layout == QUADS32:
        eight, words = ir.Constant(I16X16, [8] * 16), load(builder, weights, I16X16, index % 2)
        return builder.bitcast(builder.ashr(builder.shl(words, eight) if index < 2 else words, eight), I32X8)
    return load(builder, weights, I32X8, index)


def _emit_turn(
    builder: Builder, layout: int, rows: list[Value], tile: list[list[Value]], inputs: dict[str, Value]
) -> None:
    """Add the products of a turn to the tile, of which each row has its columns in vectors of eight."""
    _steps, parts = TURNS[layout, 8 * len(tile[0])]
    for part in parts:
        kept = {f"w{i}": _load_weights(builder, layout, inputs["weights"], i) for i in part.kept}
        for row, halves in zip(rows, tile, strict=True):
            before = {name: builder.load(half) for name, half in zip(("left", "right"), halves, strict=False)}
            after = assemble(builder, part.text, before, {"row": row, **inputs, **kept})
            for half, value in zip(halves, after, strict=True):
                builder.store(value, half)


def _microkernel(module: ir.Module, layout: int, mr: int, nr: int) -> ir.Function:
    """The function (base, rows, offsets, steps, weights, acc): add the sums of all steps to mr rows, nr columns of acc.

    A function of its own, because LLVM shares out registers for a whole one.
    """
    steps, _parts = TURNS[layout, nr]
    element = I16 if layout in WORDS else I8
    arguments = [element.as_pointer(), I64.as_pointer(), I32.as_pointer(), I64, I8.as_pointer(), I32.as_pointer()]
    kind = ir.FunctionType(ir.VoidType(), arguments)
    function = ir.Function(module, kind, f"pyq_numba_avx2_{LAYOUT_NAMES[layout]}_{mr}x{nr}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    base, starts, offsets, total, weights, acc = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    rows = [builder.gep(base, [builder.load(builder.gep(starts, [I64(r)]))]) for r in range(mr)]
    targets = [builder.gep(acc, [I64(NR * r + c)]) for r in range(mr) for c in range(0, nr, 8)]
    halves = [cgutils.alloca_once_value(builder, load(builder, target, I32X8, 0)) for target in targets]
    tile = [halves[r * nr // 8 : (r + 1) * nr // 8] for r in range(mr)]
    ones = builder.bitcast(ir.Constant(I16X16, [1] * 16), I32X8)
    even = cgutils.global_constant(builder, "even", ir.Constant(I16X16, [255] * 16))
    with cgutils.for_range(builder, builder.udiv(total, I64(steps))) as turn:
        step = builder.mul(turn.index, I64(steps))
        pointers = [builder.gep(offsets, [builder.add(step, I64(i))]) for i in range(steps)]
        inputs = {f"offset{i}": builder.sext(builder.load(pointer), I64) for i, pointer in enumerate(pointers)}
        inputs["weights"] = builder.gep(weights, [builder.mul(step, I64(STEP_BYTES[layout]))])
        inputs["ones"] = ones
        inputs["even"] = even
        _emit_turn(builder, layout, rows, tile, inputs)
    for half, target in zip(halves, targets, strict=True):
        builder.store(builder.load(half), builder.bitcast(target, I32X8.as_pointer()), align=4)
    builder.ret_void()
    return function


@intrinsic
def run(
    typing: Any, layout: Any, mr: Any, nr: Any, data: Any, words: Any, rows: Any, offsets: Any, weights: Any, acc: Any
) -> tuple[Any, Any]:
    """Call the microkernel of a layout for the first mr rows and nr columns; the rest as in `tile.tiles`."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        layout, mr, nr = arguments[:3]
        data, words, rows, offsets, weights, acc = (
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(signature.args[3:], arguments[3:], strict=True)
        )
        end = builder.append_basic_block()
        tile = builder.add(builder.mul(mr, I64(NR + 1)), nr)
        choice = builder.switch(builder.add(builder.mul(layout, I64((MAX_MR + 1) * (NR + 1))), tile), end)
        for _, number, height, width in (row for row in MICROKERNELS if row[0] == AVX2):
            with builder.goto_block(builder.append_basic_block()):
                choice.add_case(I64((number * (MAX_MR + 1) + height) * (NR + 1) + width), builder.block)
                base = words.data if number in WORDS else data.data
                function = _microkernel(builder.module, number, height, width)
                builder.call(function, [base, rows.data, offsets.data, offsets.nitems, weights.data, acc.data])
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(layout, mr, nr, data, words, rows, offsets, weights, acc), codegen

"""AVX2 microkernels: the 16 columns of a row are two vectors of sums. The machinery is `microkernel`'s.

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

Exactness. PAIRS16, PAIRS8W, QUADS32, TAPS16: `vpmaddwd` adds two products of at most 255 * 255 in int32. The others:
`vpmaddubsw` saturates at int16 and `vpaddw` wraps; the pack has proven for each lane of the steps of a turn that
amax * max(sum of its positive weights, sum of its |negative| ones) <= 32767. Sums in int32 wrap modulo 2^32.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from pyq.panels import GROUP_SIZE, NR, PAIRS8W, PAIRS16, QUADS32, TAPS16

from .llvm import I8X16, I16X16, I32X8, Builder, Value, load
from .registry import NARROW
from .turn import Instructions, Part, Turn

WORD_PAIRS = [f"vpbroadcastd {4 * number}({{row}},{{offset0}},2), {{pair}}" for number in (0, 1)]
BYTE_PAIRS = [
    f"""vpbroadcastd ({{row}},{{offset0}}), {{pair}}
        {select}, {{pair}}, {{pair}}"""
    for select in ("vpand ({even})", "vpsrlw $$8")
]
"""Of a quad the even bytes, then the odd ones."""


def _pair(number: int, make_pair: str) -> Part:
    """Half a quad, of which `make_pair` makes two int16 elements."""
    text = f"""
        {make_pair}
        vpmaddwd {{w{2 * number}}}, {{pair}}, {{product}}
        vpaddd {{product}}, {{acc0}}, {{acc0}}
        vpmaddwd {{w{2 * number + 1}}}, {{pair}}, {{pair}}
        vpaddd {{pair}}, {{acc1}}, {{acc1}}"""
    return Part((2 * number, 2 * number + 1), text)


def _narrow_pair(number: int, make_pair: str) -> Part:
    """The same for eight columns."""
    text = f"""
        {make_pair}
        vpmaddwd {{w{2 * number}}}, {{pair}}, {{pair}}
        vpaddd {{pair}}, {{acc0}}, {{acc0}}"""
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
        vpaddd {sum0}, {acc0}, {acc0}
        vpmaddwd {ones}, {sum1}, {sum1}
        vpaddd {sum1}, {acc1}, {acc1}"""
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
        vpaddd {sum}, {acc0}, {acc0}"""
    return Part(tuple(range(0, 2 * count, 2)), text)


TAPS = Part(
    (0, 1),
    """
        vmovdqu ({row},{offset0}), {tap:x}
        vpunpcklbw ({row},{offset1}), {tap:x}, {pairs:x}
        vpmovzxbw {pairs:x}, {pairs}
        vpmaddwd {w0}, {pairs}, {pairs}
        vpaddd {pairs}, {acc0}, {acc0}
        vpunpckhbw ({row},{offset1}), {tap:x}, {tap:x}
        vpmovzxbw {tap:x}, {tap}
        vpmaddwd {w1}, {tap}, {tap}
        vpaddd {tap}, {acc1}, {acc1}""",
)


def _load_even_odd(builder: Builder, weights: Value, kind: ir.Type, index: int) -> Value:
    """Of both halves of the columns the even bytes, then the odd ones; as int16."""
    eight, words = ir.Constant(I16X16, [8] * 16), load(builder, weights, I16X16, index % 2)
    return builder.bitcast(builder.ashr(builder.shl(words, eight) if index < 2 else words, eight), kind)


def _load_widened(builder: Builder, weights: Value, kind: ir.Type, index: int) -> Value:
    """As int16, of int8."""
    return builder.bitcast(builder.sext(load(builder, weights, I8X16, index), I16X16), kind)


def _constants(builder: Builder) -> dict[str, Value]:
    ones = builder.bitcast(ir.Constant(I16X16, [1] * 16), I32X8)
    return {"ones": ones, "even": cgutils.global_constant(builder, "even", ir.Constant(I16X16, [255] * 16))}


INSTRUCTIONS = Instructions(
    I32X8,
    {
        (PAIRS16, NR): Turn(1, [_pair(i, text) for i, text in enumerate(WORD_PAIRS)], load),
        (PAIRS8W, NR): Turn(1, [_pair(i, text) for i, text in enumerate(WORD_PAIRS)], _load_widened),
        (PAIRS8W, NARROW): Turn(1, [_narrow_pair(i, text) for i, text in enumerate(WORD_PAIRS)], _load_widened),
        (QUADS32, NR): Turn(1, [_pair(i, text) for i, text in enumerate(BYTE_PAIRS)], _load_even_odd),
        (QUADS32, NARROW): Turn(1, [_narrow_pair(i, text) for i, text in enumerate(BYTE_PAIRS)], _load_even_odd),
        **{(layout, NR): Turn(count, [_quads(count)], load) for layout, count in GROUP_SIZE.items()},
        **{(layout, NARROW): Turn(count, [_narrow_quads(count)], load) for layout, count in GROUP_SIZE.items()},
        (TAPS16, NR): Turn(2, [TAPS], load),
    },
    _constants,
)

"""Depthwise microkernels: neighbouring output pixels, all channels of them, finished at once; each an LLVM function.

Two taps of a channel are multiplied together, and what is interleaved once serves every output pixel that it lies
under: csrc/pyq.h has the pairs, csrc/x86/avx2_window.h their reasons. With AVX2, for 16 channels:

    each pair of input pixels           2 loads, vpunpcklbw, vpunpckhbw, 2 vpshufb
    each output pixel that it is under  2 vpmaddwd, 2 vpaddd; with AVX-512 VNNI, 2 vpdpwssd
    each output pixel                   the 20 instructions of a vector of `epilogue`

For four pixels of 3x3 at stride 1 these are, a pixel, 49 vector operations for 144 products: at four a cycle at most
12 products a cycle; of 5x5, 17; of 7x7, 20. With VNNI there are 10 (26, 50) less. Without AVX2, vectors of 16 sums in
32 bits, of which LLVM makes what the target has.

With AVX512-VBMI, where weights are bytes, four taps meet, those of csrc/x86/avx512_window.c: for each four input pixels
vmovdqu, 3 vinserti32x4 and vpermb, and for each output pixel under them one vpdpbusd.

Exact: [0, 255] * [-255, 255]; a pair sums to at most 2 * 255 * 255 in 32 bits. Sums wrap modulo 2^32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pyq.panels import NR
from pyq.windows import PITCH, tap_pairs, tap_quads

from .epilogue import COLUMNS, FLOAT32, INT32, QUANTIZED, Columns, Limits, finish_vector
from .host import AVX2, AVX512VNNI, SCALAR
from .llvm import I8, I8X16, I16, I32, I32X16, I64, Builder, Value, assemble, load, store
from .registry import WINDOWS, Window, window_name

FLOAT = ir.FloatType()
I16X32 = ir.VectorType(I16, 2 * NR)

SET_BYTES = 4 * NR
"""Of the weights that are multiplied together: two of 16 bits for each channel, or four of eight."""


class Step(NamedTuple):
    """Two input pixels (line, column), and the products that they take part in: output pixel, number of the weights."""

    first: tuple[int, int]
    second: tuple[int, int]
    products: list[tuple[int, int]]


class QuadStep(NamedTuple):
    """Up to four input pixels, (line, column) each, and the products as in `Step`."""

    pixels: list[tuple[int, int]]
    products: list[tuple[int, int]]


def steps(side: int, stride: int, mr: int) -> list[Step]:
    """All products of a tile: lines in pairs, then the last line in pairs of columns that begin at even ones.

    >>> [step.first for step in steps(3, 1, 1)]
    [(0, 0), (0, 1), (0, 2), (2, 0), (2, 2)]
    """
    width, halves, last = (mr - 1) * stride + side, (side + 1) // 2, side - 1
    found = []
    for r in range(0, last, 2):
        for i in range(width):
            taps = [(p, i - p * stride) for p in range(mr) if 0 <= i - p * stride < side]
            found.append(Step((r, i), (r + 1, i), [(p, r // 2 * side + k) for p, k in taps]))
    for i in range(0, width, 2):
        pairs = [(p, p * stride % 2 * halves, i // 2 - p * stride // 2) for p in range(mr)]
        products = [(p, side // 2 * side + form + k) for p, form, k in pairs if 0 <= k < halves]
        found.append(Step((last, i), (last, min(i + 1, width - 1)), products))  # none has a weight of 0
    return found


INTERLEAVE = """
    vbroadcasti128 ({first},{channel}), {low}
    vbroadcasti128 ({second},{channel}), {other}
    vpunpckhbw {other}, {low}, {high}
    vpunpcklbw {other}, {low}, {low}
    vpshufb ({widen}), {high}, {high}
    vpshufb ({widen}), {low}, {low}"""

WIDEN = [byte for i in range(16) for byte in (i, 128)]
"""For vpshufb: bytes 0 to 7 of the lower half, 8 to 15 of the upper one, with zeros between."""

MULTIPLY = """
    vpmaddwd {number}({{weights}}), {{low}}, {{left}}
    vpmaddwd {number}+32({{weights}}), {{high}}, {{right}}"""

MULTIPLY_ADD = """
    vpmaddwd {number}({{weights}}), {{low}}, {{product}}
    vpaddd {{product}}, {{left}}, {{left}}
    vpmaddwd {number}+32({{weights}}), {{high}}, {{product}}
    vpaddd {{product}}, {{right}}, {{right}}"""


FUSED = """
    vpdpwssd {number}({{weights}}), {{low}}, {{left}}
    vpdpwssd {number}+32({{weights}}), {{high}}, {{right}}"""

ADDING = {AVX2: MULTIPLY_ADD, AVX512VNNI: FUSED}


def quad_steps(side: int, stride: int, mr: int) -> list[QuadStep]:
    """The same for weights that are bytes: lines by fours; the fifth of 5x5 in quads that begin at every fourth column.

    >>> [len(step.pixels) for step in quad_steps(5, 1, 1)]
    [4, 4, 4, 4, 4, 4, 1]
    """
    width, found, number = (mr - 1) * stride + side, [], 0
    for line in range(0, side - 1, 4):
        for i in range(width):
            taps = [(p, i - p * stride) for p in range(mr)]
            products = [(p, number + k) for p, k in taps if 0 <= k < side]
            found.append(QuadStep([(r, i) for r in range(line, min(line + 4, side))], products))
        number += side
    for i in range(0, width if side % 4 == 1 else 0, 4):
        taps = [(p, i // 4 - p * stride // 4) for p in range(mr)]
        products = [(p, number + p * stride % 4 * 2 + k) for p, k in taps if 0 <= k < 2]
        found.append(QuadStep([(side - 1, column) for column in range(i, min(i + 4, width))], products))
    return found


MEET = [
    "vmovdqu ({pixel0},{channel}), {quads:x}",
    *(f"vinserti32x4 $${i}, ({{pixel{i}}},{{channel}}), {{quads}}, {{quads}}" for i in range(1, 4)),
]
PERMUTE = "vpermb {quads}, {order}, {quads}"

ORDER = [16 * pixel + channel for channel in range(16) for pixel in range(4)]
"""For vpermb: what makes quads of the channels of four pixels."""

MULTIPLY_ADD_QUAD = "vpdpbusd {number}({{weights}}), {{quads}}, {{acc}}"


class Panel(NamedTuple):
    """What the sums of a panel need: i64* addresses of pixels, i64 first channel, i8* weights."""

    pixels: Value
    channel: Value
    weights: Value

    def pixel(self, builder: Builder, place: tuple[int, int]) -> Value:
        """The address of the input pixel at (line, column)."""
        return builder.load(builder.gep(self.pixels, [I64(place[0] * PITCH + place[1])]))


def _simd_sums(builder: Builder, window: Window, panel: Panel) -> list[Value]:
    """The sums of each output pixel, 16 x int32."""
    widen = cgutils.global_constant(builder, "widen", ir.Constant(ir.ArrayType(I8, 32), WIDEN))
    inputs = {"channel": panel.channel, "weights": panel.weights, "widen": widen}
    sums: list[dict[str, Value]] = [{} for _ in range(window.mr)]
    for step in steps(window.side, window.stride, window.mr):
        pixels = {"first": panel.pixel(builder, step.first), "second": panel.pixel(builder, step.second)}
        low, high = assemble(builder, INTERLEAVE, {}, inputs | pixels, ("low", "high"))
        for p, number in step.products:
            text = (ADDING[window.isa] if sums[p] else MULTIPLY).format(number=number * SET_BYTES)
            made = () if sums[p] else ("left", "right")
            after = assemble(builder, text, sums[p], {**inputs, "low": low, "high": high}, made)
            sums[p] = dict(zip(("left", "right"), after, strict=True))
    whole = ir.Constant(I32X16, list(range(NR)))
    return [builder.shuffle_vector(halves["left"], halves["right"], whole) for halves in sums]


def _quad_sums(builder: Builder, window: Window, panel: Panel) -> list[Value]:
    """The sums of each output pixel, 16 x int32."""
    order = cgutils.global_constant(builder, "order", ir.Constant(ir.ArrayType(I8, len(ORDER)), ORDER))
    inputs = {"channel": panel.channel, "weights": panel.weights, "order": load(builder, order, I32X16)}
    sums = [ir.Constant(I32X16, [0] * NR)] * window.mr
    for step in quad_steps(window.side, window.stride, window.mr):
        pixels = {f"pixel{i}": panel.pixel(builder, place) for i, place in enumerate(step.pixels)}
        meet = "\n".join([*MEET[: len(pixels)], PERMUTE])
        [quads] = assemble(builder, meet, {}, inputs | pixels, ("quads",), I32X16)
        for p, number in step.products:
            text = MULTIPLY_ADD_QUAD.format(number=number * SET_BYTES)
            [sums[p]] = assemble(builder, text, {"acc": sums[p]}, {**inputs, "quads": quads}, vector=I32X16)
    return sums


def _plain_sums(builder: Builder, window: Window, panel: Panel) -> list[Value]:
    """The same with vectors that LLVM knows."""

    def channels(address: Value) -> Value:
        pointer = builder.inttoptr(builder.add(address, panel.channel), I8.as_pointer())
        return builder.zext(load(builder, pointer, I8X16), I32X16)

    sums = [ir.Constant(I32X16, [0] * NR)] * window.mr
    for step in steps(window.side, window.stride, window.mr):
        pixels = [channels(panel.pixel(builder, place)) for place in step[:2]]
        for p, number in step.products:
            pair = load(builder, panel.weights, I16X32, number)
            for tap, pixel in enumerate(pixels):
                places = ir.Constant(I32X16, list(range(tap, 2 * NR, 2)))
                weights = builder.sext(builder.shuffle_vector(pair, pair, places), I32X16)
                sums[p] = builder.add(sums[p], builder.mul(pixel, weights))
    return sums


LIMITS = ir.LiteralStructType([FLOAT, FLOAT, I32])
"""Of `epilogue.Limits`: in memory, as no register is left for them."""


def _function(module: ir.Module, window: Window) -> ir.Function:
    """The function (kind, pixels, weights, channels, apart, bias, multiplier, offset, limits, out) of a row.

    A function of its own, because LLVM shares out registers for a whole one.
    """
    pointers = (kind.as_pointer() for kind in (I32, FLOAT, FLOAT, LIMITS, I8))
    arguments = ir.FunctionType(ir.VoidType(), [I64, I64.as_pointer(), I8.as_pointer(), I64, I64, *pointers])
    function = ir.Function(module, arguments, f"pyq_numba_{window_name(window)}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    kind, pixels, weights, channels, apart, bias, multiplier, offset, limits, out = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    panel_bytes = len((tap_quads if window.quads else tap_pairs)(window.side)) * SET_BYTES
    sums_of = _quad_sums if window.quads else _plain_sums if window.isa == SCALAR else _simd_sums
    with cgutils.for_range_slice(builder, I64(0), channels, I64(NR)) as (column, _):
        last = builder.sub(channels, I64(NR))
        channel = builder.select(builder.icmp_signed("<", column, last), column, last)
        start = builder.gep(weights, [builder.mul(column, I64(panel_bytes // NR))])
        sums = sums_of(builder, window, Panel(pixels, channel, start))
        starts = zip((bias, multiplier, offset), COLUMNS, strict=True)
        columns = Columns(*(load(builder, builder.gep(start, [channel]), vector) for start, vector in starts))
        bounds = Limits(*(builder.load(cgutils.gep_inbounds(builder, limits, 0, i)) for i in range(3)))
        for number in (INT32, FLOAT32, QUANTIZED):
            with builder.if_then(builder.icmp_signed("==", kind, I64(number))):
                for p, acc in enumerate(sums):
                    result = finish_vector(builder, number, acc, columns, bounds)
                    elements = builder.bitcast(out, result.type.element.as_pointer())
                    place = builder.add(builder.mul(apart, I64(p)), channel)
                    store(builder, result, builder.gep(elements, [place]))
    builder.ret_void()
    return function


@intrinsic
def run(
    typing: Any,
    row: Any,
    pixels: Any,
    weights: Any,
    channels: Any,
    apart: Any,
    kind: Any,
    bias: Any,
    multiplier: Any,
    offset: Any,
    zero_point: Any,
    low: Any,
    high: Any,
    out: Any,
) -> tuple[Any, Any]:
    """Call the microkernel number `row` of `WINDOWS`; the rest as in `depthwise.window`."""

    def codegen(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        def start(index: int) -> Value:
            return context.make_array(signature.args[index])(context, builder, arguments[index]).data

        row, channels, apart, kind = arguments[0], *arguments[3:6]
        zero_point, low, high = arguments[9:12]
        numbers = builder.fptrunc(low, FLOAT), builder.fptrunc(high, FLOAT), builder.trunc(zero_point, I32)
        limits = cgutils.alloca_once(builder, LIMITS)
        for i, number in enumerate(numbers):
            builder.store(number, cgutils.gep_inbounds(builder, limits, 0, i))
        weights = builder.bitcast(start(2), I8.as_pointer())
        passed = [kind, start(1), weights, channels, apart, start(6), start(7), start(8), limits, start(12)]
        end = builder.append_basic_block()
        choice = builder.switch(row, end)
        for number, window in enumerate(WINDOWS):
            if window.runnable:
                with builder.goto_block(builder.append_basic_block()):
                    choice.add_case(I64(number), builder.block)
                    builder.call(_function(builder.module, window), passed)
                    builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    arguments = row, pixels, weights, channels, apart, kind, bias, multiplier, offset, zero_point, low, high, out
    return types.void(*arguments), codegen

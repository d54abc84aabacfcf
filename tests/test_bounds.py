"""What the plan proves about the size of activations, and that the packing uses it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from qdq_graph import Builder, check, hardswish

from pyq.onnx.bounds import proven_amax

SCALE = 2**-5


def clipped(b: Builder, y: str) -> str:
    """Integers from 10 - 32 / 8 = 6 to 10 + 64."""
    return b.pair(b.op("Clip", y, b.constant(-0.125), b.constant(2)), SCALE, 10)


def pooled(b: Builder, y: str) -> str:
    return b.op("MaxPool", clipped(b, y), kernel_shape=[2, 2])


def joined(b: Builder, y: str) -> str:
    other = b.op("Conv", b.pair("x"), b.weight(6, 8, 3, 3), pads=[1, 1, 1, 1])
    wide = b.pair(b.op("Clip", other, b.constant(-0.125), b.constant(2.5)), SCALE, 10)
    return b.pair(b.op("Concat", clipped(b, y), wide, axis=1), SCALE, 10)


def through_a_table(b: Builder, y: str) -> str:
    """Hardswish of at most (255 - 119) / 64 = 2.125 is at most 1.815: 119 + 2 * 58."""
    return b.pair(hardswish(b, b.pair(y, 2**-6, 119)), 2**-6, 0)


def unbounded(b: Builder, y: str) -> str:
    return b.pair(y, SCALE, 119)


def signed(b: Builder, y: str) -> str:
    """int8 from -40 to 32."""
    return b.pair(b.op("Clip", y, b.constant(-1.25), b.constant(1)), SCALE, 0, "int8")


def summed(b: Builder, y: str) -> str:
    """The sum is bounded, from 10 - 32 / 8 to 10 + 96, and not what is added: integers up to 74 and 255."""
    total = b.op("Add", clipped(b, y), b.pair(b.op("Conv", b.pair("x"), b.weight(6, 8, 3, 3), pads=[1, 1, 1, 1])))
    return b.pair(b.op("Clip", total, b.constant(-0.125), b.constant(3)), SCALE, 10)


CASES = [
    (clipped, 74, 6),
    (pooled, 74, 6),
    (joined, 90, 12),
    (through_a_table, 116, 6),
    (unbounded, 255, 6),
    (signed, 79, 6),
    (summed, 106, 6),
]


@pytest.mark.parametrize(("between", "amax", "channels"), CASES)
def test_a_product_is_packed_for_what_can_reach_it(
    between: Callable[[Builder, str], str], amax: int, channels: int
) -> None:
    b = Builder()
    first = b.op("Conv", b.pair("x"), b.weight(6, 8, 3, 3), pads=[1, 1, 1, 1])
    second = b.op("Conv", between(b, first), b.weight(5, channels, 3, 3), pads=[1, 1, 1, 1])
    graph = b.graph(b.quantize(second, 2**-2, 119))
    fused = check(graph, _operators(between))
    *first_products, last = (node.attributes["amax"] for node in fused.nodes if node.op_type == "Conv")
    assert (set(first_products), last) == ({255}, amax)


def _operators(between: Callable[[Builder, str], str]) -> dict[str, int]:
    branches = {"int8.Conv": 3, "QuantizeLinear": 2}
    more = {pooled: {"int8.MaxPool": 1}, joined: {"int8.Concat": 1, **branches}, summed: branches}.get(between, {})
    return {"QuantizeLinear": 1, "int8.Conv": 2, **more}


@pytest.mark.parametrize("low", range(-128, 128, 15))
@pytest.mark.parametrize("width", [0, 1, 40, 255])
def test_the_smallest_amax_that_allows_a_range(low: int, width: int) -> None:
    high = min(low + width, 127)

    def allows(amax: int) -> bool:
        shift = (amax + 1) // 2
        return -shift <= low and high <= amax - shift

    amax = proven_amax(low, high, np.dtype(np.int8))
    assert 1 <= amax <= 255
    assert allows(amax)
    assert amax == 1 or not allows(amax - 1)
    if low >= 0:
        assert proven_amax(low, high, np.dtype(np.uint8)) == max(high, 1)

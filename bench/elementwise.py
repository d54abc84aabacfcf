"""Operations that do little with every byte, beside a copy: what memory allows.

The copy is NumPy's, of as many bytes as the operation reads and writes together: half are read and half written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pyq
from pyq import use_backend
from pyq.benchmark import Contender, Result, Task
from pyq.elementwise import add, mul
from pyq.layout import to_nchw, to_nhwc
from pyq.normalization import layer_norm, softmax_float32
from pyq.pooling import average_pool, global_average_pool, max_pool
from pyq.qparams import QParams
from pyq.tables import unary_table
from pyq.tensor import QTensor

IN, OTHER, OUT = QParams(0.0311, 110), QParams(0.0233, 100), QParams(0.0537, 120)
"""Of the first operand, of the second, of the result."""
SAME = (1, 1, 1, 1)
"""Pads of a 3x3 window."""


@dataclass(frozen=True)
class Operation:
    """`function` of arrays that `sizes` give the shapes of, uint8 with parameters or float32."""

    name: str
    function: Callable[..., Any]
    sizes: tuple[tuple[int, ...], ...]
    dtype: str = "uint8"

    @property
    def label(self) -> str:
        """Name and shape."""
        return f"{self.name} {'x'.join(map(str, self.sizes[0]))}"

    def task(self, seed: int) -> Task:
        """A copy and the operation, on random data; right is what the reference computes, bit for bit."""
        rng = np.random.default_rng(seed)
        operands = [self._operand(rng, *each) for each in zip(self.sizes, (IN, OTHER, OTHER), strict=False)]
        with use_backend("reference"):
            expected = _bits(self.function(*operands))
        read = sum(operand.data.nbytes for operand in operands)
        moved = (read + expected.nbytes) // 2
        source, target = np.ones(moved, np.uint8), np.zeros(moved, np.uint8)
        copy = Contender("copy", lambda: np.copyto(target, source), source, read=lambda _: target)
        own = Contender("pyq", lambda: self.function(*operands), expected, read=_bits)
        return Task(self.label, 0, 2 * moved, seed, [copy, own])

    def _operand(self, rng: np.random.Generator, size: tuple[int, ...], params: QParams) -> Any:
        if self.dtype == "float32":
            return rng.normal(0, 2, size).astype(np.float32)
        return QTensor.of(rng.integers(0, 256, size, np.uint8), params)


def _bits(result: Any) -> NDArray[Any]:
    """A result as integers: that of layer normalization without its statistics."""
    array = result[0] if isinstance(result, tuple) else result
    data = array.data if isinstance(array, QTensor) else np.ascontiguousarray(array)
    return data.view(np.uint32) if data.dtype == np.float32 else data


ELEMENTS, IMAGE = (1 << 20,), (1, 56, 56, 256)
OPERATIONS = [
    Operation("quantize", lambda x: pyq.quantize(x, OUT), (ELEMENTS,), "float32"),
    Operation("dynamic quantize", pyq.quantize, (ELEMENTS,), "float32"),
    Operation("dequantize", QTensor.dequantize, (ELEMENTS,)),
    Operation("hardswish", unary_table("hardswish", IN, OUT), (ELEMENTS,)),
    Operation("add", lambda x, y: add(x, y, OUT), (ELEMENTS, ELEMENTS)),
    Operation("mul", lambda x, y: mul(x, y, OUT), (ELEMENTS, ELEMENTS)),
    Operation("add per channel", lambda x, y: add(x, y, OUT), (IMAGE, (256,))),
    Operation("mul per channel", lambda x, y: mul(x, y, OUT), (IMAGE, (256,))),
    Operation("max pool 3x3 s2", lambda x: max_pool(x, (3, 3), (2, 2), SAME, layout="NHWC"), ((1, 112, 112, 64),)),
    Operation("max pool 2x2 s2", lambda x: max_pool(x, (2, 2), (2, 2), layout="NHWC"), (IMAGE,)),
    Operation("average pool 3x3", lambda x: average_pool(x, (3, 3), None, SAME, out=OUT, layout="NHWC"), (IMAGE,)),
    Operation("average pool 2x2 s2", lambda x: average_pool(x, (2, 2), (2, 2), layout="NHWC"), (IMAGE,)),
    Operation("global average pool", lambda x: global_average_pool(x, OUT, layout="NHWC"), (IMAGE,)),
    Operation("NCHW to NHWC", lambda x: to_nhwc(x.data), ((1, 3, 224, 224),)),
    Operation("NCHW to NHWC float32", to_nhwc, ((1, 3, 224, 224),), "float32"),
    Operation("NCHW to NHWC", lambda x: to_nhwc(x.data), ((1, 256, 56, 56),)),
    Operation("NHWC to NCHW", lambda x: to_nchw(x.data), (IMAGE,)),
    Operation("softmax float32", softmax_float32, ((384, 384),), "float32"),
    Operation(
        "layer norm float32",
        lambda x, scale, bias: layer_norm(x, scale, bias, -1, 1e-5),
        ((384, 768), (768,), (768,)),
        "float32",
    ),
]


def copies(result: Result) -> float:
    """How many copies the operation takes."""
    copy, own = result.timings
    return own.milliseconds / copy.milliseconds

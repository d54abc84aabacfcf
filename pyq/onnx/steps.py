"""The int8 steps of a compiled model: what the "pyq" nodes that `pyq.onnx.qdq` makes are at run time.

A step prepares all it can when it is made (packed weights, epilogues, tables) and calls the backend directly.
Its values are raw uint8 / int8 arrays in ONNX's logical order; strides carry the layout, so that a
convolution reads `x.transpose(0, 2, 3, 1)`, which costs nothing where x came from another convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pyq.backends import ConvGeometry, Epilogue, current_backend, requantize_epilogue, residual_epilogue
from pyq.checks import BYTES
from pyq.geometry import Placement, channels_first, place, place_transposed
from pyq.layout import to_nhwc
from pyq.lowering import memory_order
from pyq.onnx.step import Buffers, Step
from pyq.packing import pack
from pyq.pooling import average_pool, global_average_pool, global_max_pool, max_pool
from pyq.products import ACCUMULATE
from pyq.qparams import QParams
from pyq.quantization.graph import Node
from pyq.softmax import softmax
from pyq.tensor import QTensor, quantize
from pyq.transposed import pack_phases, run_phases

Array = NDArray[Any]


DOMAIN = "pyq"


class Int8Step:
    """What all steps share: the names of the node they come from, and operands that are constants."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        self.name, self.op_type, self.outputs = node.name, node.op_type, node.outputs
        self.bound = [constants.get(name) for name in node.inputs]
        self.inputs = [name for name in node.inputs if name and name not in constants]
        self._missing = [index for index, name in enumerate(node.inputs) if name and name not in constants]

    def operands(self, inputs: list[Array]) -> list[Any]:
        """All operands of the node, None for those it leaves out, from the `inputs` that came at run time."""
        if len(inputs) == len(self.bound):
            return inputs
        operands = list(self.bound)
        for index, value in zip(self._missing, inputs, strict=True):
            operands[index] = value
        return operands

    def bytes(self, inputs: list[Array]) -> list[Array]:
        """All operands, which have to be uint8 or int8: backends trust their caller, and a model may lie."""
        operands = self.operands(inputs)
        for x in operands:
            if x.dtype not in BYTES:
                raise TypeError(f"{self.name}: got an input of {x.dtype}, expected uint8 or int8")
        return operands


def product_attributes(
    x: QParams,
    weight: QTensor,
    bias: Array | None = None,
    out: QParams | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> dict[str, Any]:
    """The attributes of a Conv, ConvTranspose, MatMul or Gemm in the "pyq" domain, beside those of ONNX.

    x, out: parameters of input and output; out None for a float32 output, which is clamped to [low, high].
    weight: [M, C / group, *kernel], also for ConvTranspose, or [K, N], per tensor or per output channel. bias: one,
    or one per output channel; int32 in units of `x.scale * weight.scale`, or float32 for a float32 output.
    """
    dtype = np.dtype(np.float32) if out is None else out.dtype
    values = {"x": x, "weight": weight, "bias": bias, "out": out, "low": low, "high": high}
    return {**values, "residual": None, "sum": None, "table": None, "dtype": dtype}


class ProductStep(Int8Step):
    """A product with constant weights; see `product_attributes`.

    Attributes beside those: residual, parameters of a second input, which is added to the quantized product, and sum,
    those of the result (both None without); table (uint8[256] for the output's bytes, or None) and dtype of the result.
    """

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        attributes = node.attributes
        self._x: QParams = attributes["x"]
        self._zero_point = int(self._x.zero_point)
        self._amax: int = attributes.get("amax", 255)
        self._bias, self._dtype = attributes["bias"], attributes["dtype"]
        self._weight_scale = attributes["weight"].scale
        self._out, self._residual, self._sum = (attributes[key] for key in ("out", "residual", "sum"))
        self._table: NDArray[np.uint8] | None = attributes["table"]
        self._epilogue = _epilogue(node)

    @cached_property
    def _plain(self) -> Epilogue:
        """The epilogue without residual and table, which `_added` sees to."""
        return requantize_epilogue(self._x.scale, self._weight_scale, self._out, self._bias)

    def _added(self, product: Array, residual: Array, out: Buffers) -> Array:
        """The sum by itself, where shapes broadcast: an epilogue adds only what has the shape of the product."""
        shape = np.broadcast_shapes(product.shape, residual.shape)
        y = take_like(product if product.shape == shape else residual, shape, self._sum.dtype, out)
        backend = current_backend()
        total = backend.binary("add", product, self._out, residual, self._residual, self._sum, y)
        return total if self._table is None else backend.lookup(total, self._table, self._dtype)

    def _check_images(self, x: Array, residual: list[Array], rank: int, channels: int) -> None:
        """`_check` for the inputs of a convolution."""
        if x.ndim != rank:
            raise ValueError(f"{self.name}: input of shape {x.shape}, expected {rank} dimensions")
        self._check(x, residual, 1, channels)

    def _check(self, x: Array, residual: list[Array], axis: int, size: int) -> None:
        """The backend trusts its caller: nothing but inputs of the right type and depth may reach it."""
        for index, (value, params) in enumerate(zip((x, *residual), (self._x, self._residual), strict=False)):
            if value.dtype != params.dtype:
                raise TypeError(f"{self.name}: input {index} is {value.dtype}, expected {params.dtype}")
        if x.shape[axis] != size:
            raise ValueError(f"{self.name}: input of shape {x.shape}, expected {size} along axis {axis}")


def _epilogue(node: Node) -> Epilogue:
    """The epilogue that the attributes of a product describe."""
    x, weight, bias, out = (node.attributes[key] for key in ("x", "weight", "bias", "out"))
    residual, total, table = (node.attributes[key] for key in ("residual", "sum", "table"))
    if residual is not None:
        return residual_epilogue(x.scale, weight.scale, out, residual, total, bias, table)
    if out is not None:
        return requantize_epilogue(x.scale, weight.scale, out, bias, table=table)
    multiplier = np.atleast_1d(x.scale * weight.scale)
    in_units = bias is None or bias.dtype == np.int32
    integers, offset = (bias, None) if in_units else (None, bias)
    low, high = (None if np.isinf(node.attributes[key]) else node.attributes[key] for key in ("low", "high"))
    return Epilogue(np.dtype(np.float32), integers, multiplier, offset, 0, low, high)


class MatMulStep(ProductStep):
    """x [..., K] times a constant [K, N], and perhaps a residual to add."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._weight = pack(node.attributes["weight"], amax=self._amax)

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        x, *residual = self.operands(inputs)
        k, n = self._weight.shape
        self._check(x, residual, -1, k)
        shape, rows = (*x.shape[:-1], n), x.reshape(-1, k)
        product = partial(current_backend().matmul, rows, self._zero_point, self._weight)
        if any(r.shape != shape for r in residual):
            return [self._added(product(self._plain).reshape(shape), residual[0], out)]
        y = out.take((len(rows), n), self._epilogue.dtype)
        product(self._epilogue, y, *(r.reshape(-1, n) for r in residual))
        return [y.view(self._dtype).reshape(shape)]


class DynamicMatMulStep(Int8Step):
    """float32 x [..., K], quantized by its range, times a constant [K, N], to float32.

    Attributes: weight (QTensor, per tensor or along axis 1), bias (float32 [N], or None).
    """

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        weight, self._bias = node.attributes["weight"], node.attributes["bias"]
        self._weight, self._scale = pack(weight), weight.scale

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        (x,) = self.operands(inputs)
        k, n = self._weight.shape
        if x.dtype != np.float32 or x.shape[-1:] != (k,):
            raise ValueError(f"{self.name}: input of {x.dtype} and shape {x.shape}, expected float32 [..., {k}]")
        rows = np.ascontiguousarray(x).reshape(-1, k)
        y = out.take((len(rows), n), np.float32)
        bounds = -np.inf, np.inf
        done = current_backend().matmul_dynamic(rows, self._weight, self._bias, *bounds, y)
        return [(self._by_steps(rows) if done is None else y).reshape(*x.shape[:-1], n)]

    def _by_steps(self, rows: Array) -> Array:
        """What the nodes of the model would compute, of scales beyond float32 too."""
        q = quantize(rows)
        sums = current_backend().matmul(q.data, int(q.zero_point), self._weight, ACCUMULATE)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            y = sums.astype(np.float32) * (q.scale * self._scale)
            return y if self._bias is None else y + self._bias


class ConvStep(ProductStep):
    """Convolution of x [N, C, *spatial], and perhaps a residual to add. ONNX attributes of Conv."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        group, dilations = node.attributes.get("group", 1), node.attributes.get("dilations")
        self._weight = pack(node.attributes["weight"], amax=self._amax, group=group, dilations=dilations)
        names = ("strides", "pads", "dilations", "auto_pad")
        self._spatial = {name: node.attributes[name] for name in names if name in node.attributes}
        self._placed: dict[tuple[int, ...], tuple[ConvGeometry, tuple[int, ...]]] = {}

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        x, *residual = self.operands(inputs)
        filters, depth = self._weight.shape[:2]
        self._check_images(x, residual, len(self._weight.shape), depth * self._weight.group)
        geometry, size = self._geometry(x.shape[2:])
        product = partial(current_backend().conv, to_nhwc(x), self._zero_point, self._weight, geometry)
        if any(r.shape != (x.shape[0], filters, *size) for r in residual):
            return [self._added(channels_first(product(self._plain)), residual[0], out)]
        y = out.take((x.shape[0], *size, filters), self._epilogue.dtype)
        product(self._epilogue, y, *map(to_nhwc, residual))
        return [channels_first(y.view(self._dtype))]

    def _geometry(self, size: tuple[int, ...]) -> tuple[ConvGeometry, tuple[int, ...]]:
        """Geometry and output size for an input of spatial `size`."""
        if size not in self._placed:
            found = place(size, self._weight.shape[2:], **self._spatial)
            self._placed[size] = ConvGeometry(found.strides, found.pads, found.dilations), found.out
        return self._placed[size]


class ConvTransposeStep(ProductStep):
    """Transposed convolution of x [N, C, *spatial]. ONNX attributes of ConvTranspose."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        attributes = node.attributes
        strides, dilations = attributes.get("strides"), attributes.get("dilations")
        self._weight = pack_phases(attributes["weight"], strides, dilations, attributes.get("group", 1), self._amax)
        names = ("strides", "pads", "dilations", "auto_pad", "output_padding", "output_shape")
        self._spatial = {name: attributes[name] for name in names if name in attributes}
        self._placed: dict[tuple[int, ...], Placement] = {}

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        (x,) = self.operands(inputs)
        channels, _, *kernel = self._weight.shape
        self._check_images(x, [], len(kernel) + 2, channels)
        size = x.shape[2:]
        if size not in self._placed:
            self._placed[size] = place_transposed(size, kernel, **self._spatial)
        placed = self._placed[size]
        y = out.take((len(x), *placed.out, self._weight.columns), self._epilogue.dtype)
        run_phases(to_nhwc(x), self._zero_point, self._weight, placed, self._epilogue, y)
        return [channels_first(y.view(self._dtype))]


class BinaryStep(Int8Step):
    """Add, Sub, Mul or Div with broadcasting. Attributes: a, b and out (QParams)."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._operation = node.op_type.lower()
        self._a, self._b, self._out = (node.attributes[key] for key in ("a", "b", "out"))

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        a, b = self.bytes(inputs)
        shape = np.broadcast_shapes(a.shape, b.shape)
        y = take_like(a if a.shape == shape else b, shape, self._out.dtype, out)
        return [current_backend().binary(self._operation, a, self._a, b, self._b, self._out, y)]


class LookupStep(Int8Step):
    """A function of single elements. Attributes: table (uint8[256]), dtype of the output."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._table, self._dtype = node.attributes["table"], node.attributes["dtype"]

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        (x,) = self.bytes(inputs)
        y = take_like(x, x.shape, self._dtype, out)
        return [current_backend().lookup(x, self._table, self._dtype, y)]


class ConcatStep(Int8Step):
    """Concat. Attributes: axis, dtype, tables (for each input uint8[256], or None to copy it as it is)."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._axis, self._dtype, self._tables = (node.attributes[key] for key in ("axis", "dtype", "tables"))

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        parts = self.bytes(inputs)
        axis = self._axis % parts[0].ndim
        shape = list(parts[0].shape)
        shape[axis] = sum(x.shape[axis] for x in parts)
        y = take_like(parts[0], tuple(shape), self._dtype, out)
        start = 0
        for x, table in zip(parts, self._tables, strict=True):
            end = start + x.shape[axis]
            y[(slice(None),) * axis + (slice(start, end),)] = (
                x if table is None else current_backend().lookup(x, table, self._dtype)
            )
            start = end
        return [y]


class MaxPoolStep(Int8Step):
    """MaxPool and GlobalMaxPool, whose integers keep their parameters. ONNX attributes."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._pool: Callable[[QTensor], QTensor] = global_max_pool
        if node.op_type == "MaxPool":
            self._pool = partial(max_pool, **_window(node))

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        (x,) = self.operands(inputs)
        return [self._pool(QTensor(x, 1.0)).data]


class BetweenStep(Int8Step):
    """AveragePool, GlobalAveragePool and Softmax. Attributes: x and out (QParams), and those of ONNX."""

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        super().__init__(node, constants)
        self._x: QParams = node.attributes["x"]
        out = node.attributes["out"]
        self._function: Callable[[QTensor], Any]
        if node.op_type == "Softmax":
            self._function = partial(softmax, axis=node.attributes.get("axis", -1), out=out)
        elif node.op_type == "GlobalAveragePool":
            self._function = partial(global_average_pool, out=out)
        else:
            include_pad = bool(node.attributes.get("count_include_pad", 0))
            self._function = partial(average_pool, count_include_pad=include_pad, out=out, **_window(node))

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        (x,) = self.operands(inputs)
        return [self._function(QTensor(x, self._x.scale, self._x.zero_point)).data]


def _window(node: Node) -> dict[str, Any]:
    """The attributes of a pool as arguments of `pyq.pooling`."""
    names = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
    window = {name: node.attributes[name] for name in names if name in node.attributes}
    return {**window, "ceil_mode": bool(node.attributes.get("ceil_mode", 0))}


def take_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike, out: Buffers) -> Array:
    """Memory for an array of `shape`, with its axes laid out in memory as those of `x` are."""
    if x.flags.c_contiguous or x.ndim != len(shape):
        return out.take(shape, dtype)
    order = memory_order(x)
    return out.take(tuple(shape[axis] for axis in order), dtype).transpose(np.argsort(order))


STEPS: dict[str, Callable[[Node, Mapping[str, Array]], Step]] = {
    "Conv": ConvStep,
    "ConvTranspose": ConvTransposeStep,
    "Gemm": MatMulStep,
    "MatMul": MatMulStep,
    "DynamicMatMul": DynamicMatMulStep,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), BinaryStep),
    "Lookup": LookupStep,
    "Concat": ConcatStep,
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), MaxPoolStep),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Softmax"), BetweenStep),
}

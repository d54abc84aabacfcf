"""Steps of the ONNX operators that have quantization parameters as inputs: QuantizeLinear, QLinearConv ...

A *preparer* takes the node and its operands, with None for those that come at run time, and returns a
function that does the work, or None when it cannot: because a parameter it needs is missing yet, or because
pyq has no kernel for these types. `DirectStep` prepares once when the parameters are constants, else at each
run, and leaves to `onnx.reference` what cannot be prepared even then (4 and 16 bits, float8, blocks, float16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq import ops
from pyq.backends import current_backend, requantize_epilogue
from pyq.checks import BYTES, check_bytes
from pyq.onnx.float_ops import FloatStep
from pyq.onnx.matching import linear_params, output_zero_point
from pyq.onnx.step import Buffers, Step
from pyq.onnx.steps import DOMAIN, STEPS, ConvStep, Int8Step, MatMulStep, product_attributes, take_like
from pyq.packing import PackedWeight, pack
from pyq.products import check_zero_points
from pyq.qparams import QParams, choose_qparams
from pyq.quantization.graph import Graph, Node
from pyq.tensor import QTensor
from pyq.unpacked import multiply

Array = NDArray[Any]
Operands = list[Any]
Work = Callable[[Operands, Buffers], list[Array]]
Preparer = Callable[[Node, Operands], Work | None]


class DirectStep(Int8Step):
    """An operator with its quantization parameters among its inputs.

    Raises UnsupportedOperator for constant parameters that neither pyq nor `onnx.reference` can use.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        super().__init__(node, graph.constants)
        self._node, self._graph = node, graph
        self._prepare, self._dtypes = DIRECT[node.op_type]
        self._work = self._prepare(node, self.bound)
        self._reference: FloatStep | None = None
        if self._work is None and self.inputs == node.inputs[:1]:
            self._reference = FloatStep(node, graph)

    def run(self, inputs: list[Array], out: Buffers) -> list[Array]:
        """See `pyq.onnx.step.Step.run`."""
        operands = self.operands(inputs)
        if operands[0].dtype in self._dtypes:
            work = self._work or self._prepare(self._node, operands)
            if work is not None:
                return work(operands, out)
        if self._reference is None:
            self._reference = FloatStep(self._node, self._graph)
        return self._reference.run(inputs, out)


def quantize_linear(node: Node, operands: Operands) -> Work | None:
    """float32 to uint8 or int8, per tensor or per axis."""
    _, scale, zero_point = padded(operands, 3)
    if not any(node.inputs[2:]):
        zero_point = output_zero_point(node)
    params = linear_params(node, scale, zero_point)
    if params is None or params.dtype == np.int32:
        return None

    def work(operands: Operands, out: Buffers) -> list[Array]:
        x = operands[0]
        return [current_backend().quantize(x, params, take_like(x, x.shape, params.dtype, out))]

    return work


def dequantize_linear(node: Node, operands: Operands) -> Work | None:
    """uint8, int8 or int32 to float32, per tensor or per axis."""
    _, scale, zero_point = padded(operands, 3)
    if not any(node.inputs[2:]):
        zero_point = np.zeros((), np.int32)  # 0 is 0 in every type
    params = linear_params(node, scale, zero_point)
    if params is None:
        return None

    def work(operands: Operands, out: Buffers) -> list[Array]:
        x = operands[0]
        return [current_backend().dequantize(x, params, take_like(x, x.shape, np.float32, out))]

    return work


def dynamic_quantize_linear(node: Node, operands: Operands) -> Work | None:
    """float32 to uint8 by the range of the tensor; outputs the integers, their scale and zero point."""

    def work(operands: Operands, out: Buffers) -> list[Array]:
        x = operands[0]
        params = choose_qparams(*current_backend().value_range(x), "uint8")
        y = current_backend().quantize(x, params, take_like(x, x.shape, params.dtype, out))
        return [y, np.array(params.scale), params.zero_point.astype(np.uint8)]

    return work


def matmul_integer(node: Node, operands: Operands) -> Work | None:
    """int32 product; a constant matrix is packed once."""
    a, b, _, b_zero_point = padded(operands, 4)
    if b is None:
        return None
    packed = packed_integers(node, b, b_zero_point, axis=1) if a is None and b.ndim == 2 else None

    def work(operands: Operands, out: Buffers) -> list[Array]:
        a, b, a_zero_point, b_zero_point = padded(operands, 4)
        zero_point = 0 if a_zero_point is None else a_zero_point
        if packed is not None:
            return [ops.matmul_integer(a, packed, zero_point)]
        return [ops.matmul_integer(a, b, zero_point, b_zero_point)]

    return work


def conv_integer(node: Node, operands: Operands) -> Work | None:
    """int32 convolution; constant filters are packed once."""
    x, w, _, w_zero_point = padded(operands, 4)
    if w is None or w.ndim not in (3, 4, 5):
        return None
    packed = packed_integers(node, w, w_zero_point, axis=0) if x is None else None
    attributes = {name: value for name, value in node.attributes.items() if name != "kernel_shape"}

    def work(operands: Operands, out: Buffers) -> list[Array]:
        x, w, x_zero_point, w_zero_point = padded(operands, 4)
        zero_point = 0 if x_zero_point is None else x_zero_point
        if packed is not None:
            return [ops.conv_integer(x, packed, zero_point, **attributes)]
        return [ops.conv_integer(x, w, zero_point, w_zero_point, **attributes)]

    return work


def packed_integers(node: Node, w: Array, zero_point: Array | None, axis: int) -> PackedWeight | None:
    """Constant integers packed, unless their zero point (the fourth input of the node) comes at run time."""
    if zero_point is None and any(node.inputs[3:]):
        return None
    if zero_point is None:
        zero_point = np.zeros((), w.dtype)
    tensor = weight_tensor(w, np.ones(zero_point.size, np.float32), zero_point, axis)
    if tensor is None:
        return None
    return pack(tensor, group=node.attributes.get("group", 1), dilations=node.attributes.get("dilations"))


def qlinear_conv(node: Node, operands: Operands) -> Work | None:
    """Convolution of one to three dimensions between integers."""
    _, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias = padded(operands, 9)
    x, out = tensor_params(x_scale, x_zero_point), tensor_params(y_scale, y_zero_point)
    weight = weight_tensor(w, w_scale, w_zero_point, 0)
    if x is None or out is None or weight is None or weight.ndim not in (3, 4, 5):
        return None
    attributes = {**node.attributes, **product_attributes(x, weight, bias, out)}
    step = ConvStep(Node("Conv", node.inputs[:1], node.outputs, attributes, node.name), {})
    return lambda operands, buffers: step.run(operands[:1], buffers)


def qlinear_matmul(node: Node, operands: Operands) -> Work | None:
    """Matrix product between integers; a constant matrix is packed once."""
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point = padded(operands, 8)
    x, out = tensor_params(a_scale, a_zero_point), tensor_params(y_scale, y_zero_point)
    if x is None or out is None or b_scale is None or b_zero_point is None or b_scale.dtype != np.float32:
        return None
    weight = weight_tensor(b, b_scale, b_zero_point, 1) if b is not None and b.ndim == 2 else None
    if weight is not None and a is None:  # a constant, not just known by now
        attributes = product_attributes(x, weight, None, out)
        step = MatMulStep(Node("MatMul", node.inputs[:1], node.outputs, attributes, node.name), {})
        return lambda operands, buffers: step.run(operands[:1], buffers)
    if max(b_scale.size, b_zero_point.size) > 1 and (b is None or b.ndim < 2 or b_scale.size not in (1, b.shape[-1])):
        return None
    epilogue, zero_point = requantize_epilogue(x.scale, b_scale.reshape(-1), out), int(x.zero_point)

    def work(operands: Operands, buffers: Buffers) -> list[Array]:
        a, b = operands[0], check_bytes("b", operands[3])
        columns = b if b.ndim > 1 else b[:, None]
        shape = (*columns.shape[:-2], 1, columns.shape[-1])
        zeros = check_zero_points("b_zero_point", b_zero_point, b.dtype, shape, -1)
        y = multiply(a, zero_point, columns, zeros, epilogue)
        return [y if b.ndim > 1 else y[..., 0]]

    return work


def padded(operands: Operands, count: int) -> Operands:
    """`operands` with None for the optional ones that the node leaves out at its end."""
    return [*operands, *[None] * (count - len(operands))]


def tensor_params(scale: Array | None, zero_point: Array | None) -> QParams | None:
    """Parameters of an 8-bit tensor with one scale; None when it is something else, or not known yet."""
    if scale is None or zero_point is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    if zero_point.dtype not in BYTES or zero_point.size != 1:
        return None
    return QParams(scale.reshape(()), zero_point.reshape(()), zero_point.dtype)


def weight_tensor(w: Array | None, scale: Array | None, zero_point: Array | None, axis: int) -> QTensor | None:
    """8-bit weights, per tensor or along `axis`; None when they are something else, or not known yet."""
    if w is None or scale is None or zero_point is None:
        return None
    if scale.dtype != np.float32 or w.dtype not in BYTES or zero_point.dtype != w.dtype:
        return None
    if max(scale.size, zero_point.size) == 1:
        return QTensor(w, scale.reshape(()), zero_point.reshape(()))
    scales = np.broadcast_to(scale.reshape(-1), (w.shape[axis],))
    return QTensor(w, scales, np.broadcast_to(zero_point.reshape(-1), (w.shape[axis],)), axis)


FLOAT32 = (np.dtype(np.float32),)

# For each operator its preparer, and the types of the first input that pyq has kernels for.
DIRECT: dict[str, tuple[Preparer, tuple[np.dtype[Any], ...]]] = {
    "QuantizeLinear": (quantize_linear, FLOAT32),
    "DequantizeLinear": (dequantize_linear, (*BYTES, np.dtype(np.int32))),
    "DynamicQuantizeLinear": (dynamic_quantize_linear, FLOAT32),
    "MatMulInteger": (matmul_integer, BYTES),
    "ConvInteger": (conv_integer, BYTES),
    "QLinearConv": (qlinear_conv, BYTES),
    "QLinearMatMul": (qlinear_matmul, BYTES),
}


def int8_step(node: Node, graph: Graph) -> Step | None:
    """The int8 step of a "pyq" node or of an ONNX operator on integers; None for a float operator."""
    if node.domain == DOMAIN:
        return STEPS[node.op_type](node, graph.constants)
    return DirectStep(node, graph) if node.domain == "" and node.op_type in DIRECT else None

"""LiteRT with XNNPACK: models of one operator, in float32 and int8 x int8 to int8.

The models are built from the flatbuffer schema that the package brings along. Images are fed with their padding: TFLite
pads strided convolutions in its own way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import ArrayLike, NDArray

from bench.peers import float_image, requantized_conv, requantized_matmul
from pyq.benchmark import Contender
from pyq.workloads import Conv, ConvData, MatMul, MatMulData

TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class Operator(NamedTuple):
    """What the one operator of a model is: its code, the type of its options and the options."""

    code: int
    options_type: int
    options: Any


class Tensor(NamedTuple):
    """data: its values; where it is not constant they give shape and type only. scale: none for float32."""

    data: NDArray[Any]
    constant: bool = False
    scale: ArrayLike | None = None
    zero_point: int = 0
    axis: int = 0


def matmul(shape: MatMul, data: MatMulData, threads: int) -> list[Contender]:
    """FULLY_CONNECTED."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    operator = Operator(schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOptions.FullyConnectedOptions, options)
    signed = data.signed()
    out = requantized_matmul(signed).signed()
    w = np.ascontiguousarray(data.weights.data.T)
    reals = [Tensor(data.activations.astype(np.float32)), Tensor(w.astype(np.float32), True)]
    bias = Tensor(np.zeros(shape.n, np.int32), True, np.ones(shape.n))
    integers = [Tensor(signed.activations, False, 1.0), Tensor(w, True, np.ones(shape.n)), bias]
    y = Tensor(np.empty(out.expected.shape, np.int8), False, out.scale, out.zero_point)
    return [
        _contender("LiteRT float32", operator, [*reals, _real_result(data.expected)], data.expected, threads),
        _contender("LiteRT s8s8", operator, [*integers, y], out.expected, threads),
    ]


def conv(shape: Conv, data: ConvData, threads: int) -> list[Contender]:
    """CONV_2D and DEPTHWISE_CONV_2D; nothing for other groups."""
    if shape.group > 1 and not shape.depthwise:
        return []
    operator, axis = _conv_operator(shape), 3 if shape.depthwise else 0
    filters = np.ascontiguousarray(data.weights.data.transpose((1, 2, 3, 0) if shape.depthwise else (0, 2, 3, 1)))
    zero = int(data.image.zero_point) - 128
    image = (data.image.data ^ 0x80).view(np.int8)
    out = requantized_conv(data).signed()
    product = data.image.scale * data.weights.scale
    reals = [
        Tensor(_padded(shape, float_image(data), 0)),
        Tensor(filters.astype(np.float32), True),
        Tensor(np.zeros(shape.filters, np.float32), True),
    ]
    integers = [
        Tensor(_padded(shape, image, zero), False, data.image.scale, zero),
        Tensor(filters, True, data.weights.scale, 0, axis),
        Tensor(np.zeros(shape.filters, np.int32), True, product),
    ]
    y = Tensor(np.empty(out.expected.shape, np.int8), False, out.scale, out.zero_point)
    return [
        _contender("LiteRT float32", operator, [*reals, _real_result(data.sums)], data.sums, threads),
        _contender("LiteRT s8s8", operator, [*integers, y], out.expected, threads),
    ]


def _real_result(expected: NDArray[Any]) -> Tensor:
    return Tensor(np.empty(expected.shape, np.float32))


def _conv_operator(shape: Conv) -> Operator:
    if shape.depthwise:
        code, kind = schema.BuiltinOperator.DEPTHWISE_CONV_2D, schema.BuiltinOptions.DepthwiseConv2DOptions
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
    else:
        code, kind = schema.BuiltinOperator.CONV_2D, schema.BuiltinOptions.Conv2DOptions
        options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH, options.strideW = shape.placement.strides
    options.dilationHFactor = options.dilationWFactor = 1
    return Operator(code, kind, options)


def _padded(shape: Conv, image: NDArray[Any], value: int) -> NDArray[Any]:
    top, left, bottom, right = shape.placement.pads
    return np.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _contender(name: str, operator: Operator, tensors: list[Tensor], expected: NDArray[Any], threads: int) -> Contender:
    interpreter = Interpreter(model_content=model_bytes(operator, tensors), num_threads=threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensors[0].data)
    result = interpreter.get_output_details()[0]["index"]
    return Contender(name, interpreter.invoke, expected, required=False, read=lambda _: interpreter.get_tensor(result))


def model_bytes(operator: Operator, tensors: list[Tensor]) -> bytes:
    """A model of one operator: `tensors` are its inputs, the first of which is the model's, and last its output."""
    model, graph, step, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version = 3
    model.buffers = [schema.BufferT()]  # the empty one, of tensors that are not constant
    code.builtinCode = code.deprecatedBuiltinCode = operator.code
    code.version = 3
    step.inputs, step.outputs = list(range(len(tensors) - 1)), [len(tensors) - 1]
    step.builtinOptionsType, step.builtinOptions = operator.options_type, operator.options
    graph.inputs, graph.outputs, graph.operators = [0], step.outputs, [step]
    graph.tensors = [_tensor(model, tensor) for tensor in tensors]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(model: Any, tensor: Tensor) -> Any:
    made = schema.TensorT()
    made.shape, made.type = list(tensor.data.shape), TYPES[tensor.data.dtype]
    if tensor.constant:
        buffer = schema.BufferT()
        buffer.data = tensor.data.reshape(-1).view(np.uint8)
        made.buffer = len(model.buffers)
        model.buffers.append(buffer)
    if tensor.scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = np.asarray(tensor.scale, np.float32).reshape(-1).tolist()
        made.quantization.zeroPoint = [tensor.zero_point] * len(made.quantization.scale)
        made.quantization.quantizedDimension = tensor.axis
    return made

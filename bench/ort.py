"""ONNX Runtime's contenders: models of one node, in float32, in its default int8 mode and in its exact one.

On CPUs with AVX2 and without VNNI the default int8 kernels add in 16 bits that saturate;
`session.x64quantprecision` asks for kernels that do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pyq.benchmark import Contender
from pyq.workloads import Conv, ConvData, MatMulData

MICROSOFT = "com.microsoft"


def float_matmul(data: MatMulData, threads: int) -> Contender:
    """MatMul in float32."""
    x, w = data.activations.astype(np.float32), data.weights.data.astype(np.float32)
    return _contender("ORT float32", helper.make_node("MatMul", ["x", "w"], ["y"]), x, {"w": w}, data.expected, threads)


def integer_matmul(name: str, data: MatMulData, threads: int, precise: bool = False) -> Contender:
    """MatMulInteger."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    return _contender(name, node, data.activations, {"w": data.weights.data}, data.expected, threads, precise)


def float_conv(shape: Conv, data: ConvData, threads: int) -> Contender:
    """Conv in float32, on NCHW: the layout that its float kernels want."""
    real = (data.image.data.astype(np.int64) - int(data.image.zero_point)).astype(np.float32)
    x = np.ascontiguousarray(real.transpose(0, 3, 1, 2))
    node = helper.make_node("Conv", ["x", "w"], ["y"], **_attributes(shape))
    weights = {"w": data.weights.data.astype(np.float32)}
    expected = data.sums.transpose(0, 3, 1, 2)
    return _contender("ORT float32", node, x, weights, expected, threads)


def quantized_conv(name: str, shape: Conv, data: ConvData, threads: int, precise: bool = False) -> Contender:
    """QLinearConv, channels last: what its optimizer makes of a quantized model.

    precise: the weights as uint8, with zero point 128. `session.x64quantprecision` makes this of a model too, but
    not of a node that is already channels last.
    """
    filters, zero = data.weights.data, np.zeros(shape.filters, np.int8)
    if precise:
        filters, zero = (filters.view(np.uint8) ^ 0x80), np.full(shape.filters, 128, np.uint8)
    constants = {
        "x_scale": data.image.scale,
        "x_zero": data.image.zero_point.astype(np.uint8),
        "w": filters,
        "w_scale": data.weights.scale,
        "w_zero": zero,
        "y_scale": data.out.scale,
        "y_zero": data.out.zero_point.astype(np.uint8),
    }
    node = helper.make_node(
        "QLinearConv", ["x", *constants], ["y"], domain=MICROSOFT, channels_last=1, **_attributes(shape)
    )
    return _contender(name, node, data.image.data, constants, data.expected, threads)


def _attributes(shape: Conv) -> dict[str, Any]:
    placed = shape.placement
    return {
        "kernel_shape": placed.kernel,
        "strides": placed.strides,
        "pads": placed.pads,
        "group": shape.group,
    }


def _contender(
    name: str,
    node: onnx.NodeProto,
    x: NDArray[Any],
    constants: dict[str, NDArray[Any]],
    expected: NDArray[Any],
    threads: int,
    precise: bool = False,
) -> Contender:
    """A session of one node with input x. What other software computes may be wrong: that is counted, not an error."""
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    x_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    y_dtype = np.dtype(np.float32) if x.dtype == np.float32 else expected.dtype
    y_type = helper.np_dtype_to_tensor_dtype(y_dtype)
    inputs = [helper.make_tensor_value_info("x", x_type, x.shape)]
    outputs = [helper.make_tensor_value_info("y", y_type, expected.shape)]
    graph = helper.make_graph([node], "one", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(model, _options(threads, precise), providers=["CPUExecutionProvider"])
    feed = {"x": x}
    return Contender(name, lambda: session.run(None, feed)[0], expected, required=False)


def _options(threads: int, precise: bool) -> onnxruntime.SessionOptions:
    """Its threads must not spin while the others have their turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options

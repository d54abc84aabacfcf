"""ONNX Runtime: models of one node, in float32, in its default int8 mode and in its exact one.

On CPUs with AVX2 and without VNNI the default int8 kernels add in 16 bits that saturate;
`session.x64quantprecision` asks for kernels that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from bench.peers import channels_first, float_image, requantized_conv, requantized_matmul
from bench.peers.models import MICROSOFT, attributes, model_bytes
from pyq.benchmark import Contender
from pyq.tensor import QTensor
from pyq.workloads import Conv, ConvData, MatMul, MatMulData


def matmul(shape: MatMul, data: MatMulData, threads: int) -> list[Contender]:
    """MatMul, MatMulInteger and QLinearMatMul."""
    return [
        float_matmul(data, threads),
        _integer_matmul("ORT u8s8", data, threads),
        _integer_matmul("ORT u8s8 exact", data, threads, precise=True),
        _integer_matmul("ORT s8s8", data.signed(), threads),
        _quantized_matmul("ORT u8s8 to u8", data, threads),
        _quantized_matmul("ORT u8s8 to u8 exact", data, threads, precise=True),
    ]


def conv(shape: Conv, data: ConvData, threads: int) -> list[Contender]:
    """Conv and QLinearConv."""
    return [
        float_conv(shape, data, threads),
        _quantized_conv("ORT u8s8", shape, data, threads),
        _quantized_conv("ORT u8s8 exact", shape, data, threads, precise=True),
    ]


def float_matmul(data: MatMulData, threads: int) -> Contender:
    """MatMul in float32."""
    x, w = data.activations.astype(np.float32), data.weights.data.astype(np.float32)
    return _contender("ORT float32", helper.make_node("MatMul", ["x", "w"], ["y"]), x, {"w": w}, data.expected, threads)


def float_conv(shape: Conv, data: ConvData, threads: int) -> Contender:
    """Conv in float32, on NCHW: the layout that its float kernels want."""
    x = np.ascontiguousarray(channels_first(float_image(data)))
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes(shape))
    weights = {"w": data.weights.data.astype(np.float32)}
    return _contender("ORT float32", node, x, weights, channels_first(data.sums), threads)


def dynamic_matmul(
    x: NDArray[np.float32], w: QTensor, bias: NDArray[np.float32], expected: NDArray[Any], threads: int
) -> Contender:
    """DynamicQuantizeMatMul, what its optimizer makes of a linear layer that is quantized dynamically."""
    constants = {"w": w.data, "w_scale": w.scale, "w_zero": w.zero_point.astype(w.dtype), "bias": bias}
    node = helper.make_node("DynamicQuantizeMatMul", ["x", *constants], ["y"], domain=MICROSOFT)
    return _contender("ORT dynamic", node, x, constants, expected, threads)


def _integer_matmul(name: str, data: MatMulData, threads: int, precise: bool = False) -> Contender:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    return _contender(name, node, data.activations, {"w": data.weights.data}, data.expected, threads, precise)


def _quantized_matmul(name: str, data: MatMulData, threads: int, precise: bool = False) -> Contender:
    out = requantized_matmul(data)
    constants = {
        "x_scale": np.float32(1),
        "x_zero": np.uint8(0),
        "w": data.weights.data,
        "w_scale": np.float32(1),
        "w_zero": np.int8(0),
        "y_scale": np.float32(out.scale),
        "y_zero": np.uint8(out.zero_point),
    }
    node = helper.make_node("QLinearMatMul", ["x", *constants], ["y"])
    return _contender(name, node, data.activations, constants, out.expected, threads, precise)


def _quantized_conv(name: str, shape: Conv, data: ConvData, threads: int, precise: bool = False) -> Contender:
    """Channels last: what its optimizer makes of a quantized model.

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
        "QLinearConv", ["x", *constants], ["y"], domain=MICROSOFT, channels_last=1, **attributes(shape)
    )
    return _contender(name, node, data.image.data, constants, requantized_conv(data).expected, threads)


def _contender(
    name: str,
    node: onnx.NodeProto,
    x: NDArray[Any],
    constants: Mapping[str, Any],
    expected: NDArray[Any],
    threads: int,
    precise: bool = False,
) -> Contender:
    """A session of one node with input x; its result is float32 of float32, uint8 of reals, or int32."""
    integers = np.int32 if expected.dtype == np.int32 else np.uint8
    dtype = np.float32 if x.dtype == np.float32 else integers
    model = model_bytes([node], x, constants, expected.shape, dtype)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": x}
    return Contender(name, lambda: session.run(None, feed)[0], expected, required=False)

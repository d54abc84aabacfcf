"""OpenVINO: quantized models of ONNX (QDQ form), to uint8, which its compiler turns into int8 kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray
from onnx import helper

from bench.peers import Requantized, channels_first, requantized_conv, requantized_matmul
from bench.peers.models import attributes, model_bytes
from pyq.benchmark import Contender
from pyq.workloads import Conv, ConvData, MatMul, MatMulData


def matmul(shape: MatMul, data: MatMulData, threads: int) -> list[Contender]:
    """MatMul."""
    out = requantized_matmul(data)
    scales = {"x_scale": np.float32(1), "x_zero": np.uint8(0), "w_scale": np.ones(shape.n, np.float32)}
    constants = {"w": data.weights.data, **scales, **_result(out), "w_zero": np.zeros(shape.n, np.int8)}
    nodes = _quantized(helper.make_node("MatMul", ["x_real", "w_real"], ["y_real"]), axis=1)
    return [_contender(nodes, data.activations, constants, out.expected, threads)]


def conv(shape: Conv, data: ConvData, threads: int) -> list[Contender]:
    """Conv, on NCHW."""
    out = requantized_conv(data)
    x = np.ascontiguousarray(channels_first(data.image.data))
    scales = {
        "x_scale": data.image.scale,
        "x_zero": data.image.zero_point.astype(np.uint8),
        "w_scale": data.weights.scale,
    }
    constants = {"w": data.weights.data, **scales, **_result(out), "w_zero": np.zeros(shape.filters, np.int8)}
    nodes = _quantized(helper.make_node("Conv", ["x_real", "w_real"], ["y_real"], **attributes(shape)), axis=0)
    return [_contender(nodes, x, constants, channels_first(out.expected), threads)]


def _result(out: Requantized) -> dict[str, Any]:
    return {"y_scale": np.float32(out.scale), "y_zero": np.uint8(out.zero_point)}


def _quantized(node: onnx.NodeProto, axis: int) -> list[onnx.NodeProto]:
    """The node between quantizers."""
    return [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=axis),
        node,
        helper.make_node("QuantizeLinear", ["y_real", "y_scale", "y_zero"], ["y"]),
    ]


def _contender(
    nodes: Sequence[onnx.NodeProto],
    x: NDArray[Any],
    constants: Mapping[str, Any],
    expected: NDArray[Any],
    threads: int,
) -> Contender:
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"})
    model = core.read_model(model_bytes(nodes, x, constants, expected.shape, np.uint8))
    request = core.compile_model(model, "CPU").create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))

    def read(_: object) -> NDArray[Any]:
        return np.array(request.get_output_tensor().data)

    return Contender("OpenVINO u8s8", request.infer, expected, required=False, read=read)

"""ONNX models for a single operator, for ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

from pyq.workloads import Conv

MICROSOFT = "com.microsoft"


def model_bytes(
    nodes: Sequence[onnx.NodeProto],
    x: NDArray[Any],
    constants: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> bytes:
    """A model that computes y, of `shape` and `dtype`, from an input like `x` and from constants."""
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)]
    outputs = [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)]
    graph = helper.make_graph(list(nodes), "one", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def attributes(shape: Conv) -> dict[str, Any]:
    """Those of ONNX Conv."""
    placed = shape.placement
    return {"kernel_shape": placed.kernel, "strides": placed.strides, "pads": placed.pads, "group": shape.group}

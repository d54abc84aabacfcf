"""One ONNX operator as `onnx.reference` evaluates it: a second opinion that shares no code with pyq."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

OPSET = 21


def run_node(op_type: str, *inputs: np.ndarray | None, outputs: int = 1, **attributes: Any) -> Any:
    """Outputs of a node; an input of None is absent. A single output comes without a list."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([node], op_type, given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(model).run(None, feeds)
    return results[0] if outputs == 1 else results

"""`Graph` -> ONNX model: a ModelProto, or a file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from pyq.files import write_file
from pyq.quantization.graph import Graph, Node, ValueInfo


def to_proto(graph: Graph) -> ModelProto:
    """The graph as a ModelProto of its own opset, with the oldest IR version that knows this opset.

    Raises ValueError when the graph has a cycle or reads a value that nothing makes.

    >>> from pyq.quantization.graph import Graph, Node, ValueInfo
    >>> x, y = (ValueInfo(name, np.dtype("float32"), ("N", 3)) for name in "xy")
    >>> to_proto(Graph([Node("Relu", ["x"], ["y"])], {}, [x], [y], opset=13)).graph.node[0].op_type
    'Relu'
    """
    versions = {"": graph.opset, **graph.domains}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    proto = helper.make_graph(
        [node_proto(node, graph) for node in graph.sorted()],
        graph.name or "graph",
        [_value_info(value) for value in graph.inputs],
        [_value_info(value) for value in graph.outputs],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(
        proto,
        opset_imports=opsets,
        producer_name="pyq",
        ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
    )
    helper.set_model_props(model, graph.metadata)
    return model


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph as an ONNX file that `onnx.checker` has accepted; `path` is replaced in one step.

    Raises onnx.checker.ValidationError when the graph is no valid ONNX model; `path` is then left as it was.
    """
    model = to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    write_file(path, model.SerializeToString())


def node_proto(node: Node, graph: Graph) -> NodeProto:
    """One node of `graph` as a NodeProto."""
    proto = helper.make_node(node.op_type, node.inputs, node.outputs, node.name, domain=node.domain or None)
    proto.attribute.extend(_attribute(name, value, node, graph) for name, value in node.attributes.items())
    return proto


def _attribute(name: str, value: Any, node: Node, graph: Graph) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if value == []:  # the type of an empty list stands in the operator's schema alone
        version = graph.domains.get(node.domain, graph.opset)
        kind = onnx.defs.get_schema(node.op_type, version, node.domain).attributes[name].type
        return helper.make_attribute(name, value, attr_type=int(kind))  # type: ignore[call-overload]
    return helper.make_attribute(name, value)


def _value_info(value: ValueInfo) -> ValueInfoProto:
    if value.dtype is None:
        raise ValueError(f"value {value.name!r} is not a tensor of known type, it cannot be written")
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(value.name, kind, value.shape)

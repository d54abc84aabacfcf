"""ONNX model -> `Graph`: read, check, bring to opset 13 or later, gather constants."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from pyq.errors import FormatError, UnsupportedOperator
from pyq.quantization.graph import Graph, Node, ValueInfo

ModelSource: TypeAlias = str | os.PathLike[str] | bytes | ModelProto

MIN_OPSET = 13
"""Everything above the loader sees this opset or a later one: axes are inputs, Softmax has one axis."""


def load(model: ModelSource) -> Graph:
    """Read a model and return it as a `Graph` of opset 13 or later.

    model: path of a file (external data beside it is read too), the bytes of one, or a ModelProto.

    Raises FormatError when the model is broken, UnsupportedOperator when it is older than opset 13 and cannot be
    converted, and OSError when the file cannot be opened.

    >>> from onnx import parser
    >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    >>> load(parser.parse_model(text)).nodes[0].op_type
    'Relu'
    """
    try:
        proto = _read(model)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
    except FormatError:
        raise
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError, RuntimeError) as error:
        origin = "the model" if isinstance(model, (bytes, ModelProto)) else os.fspath(model)
        raise FormatError(f"{origin} is not a valid ONNX model: {error}") from error
    if _opset(proto) < MIN_OPSET:
        proto = _convert(proto)
    try:
        return from_proto(proto)
    except (ValueError, LookupError, TypeError) as error:
        raise FormatError(f"the model's graph is broken: {error}") from error


def _read(model: ModelSource) -> ModelProto:
    if isinstance(model, ModelProto):
        proto = model
    elif isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    else:
        with open(model, "rb") as file:  # a missing file is an OSError, not a broken model
            if not file.read(1):
                raise FormatError(f"{os.fspath(model)} is empty")
        proto = onnx.load(model)
        if proto.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF:
            onnx.checker.check_model(os.fspath(model))  # a model of this size can be checked as a file only
            return proto
    onnx.checker.check_model(_with_known_ranks(proto))
    return proto


def _with_known_ranks(proto: ModelProto) -> ModelProto:
    """The model, or a copy in which inputs and outputs of unknown rank are scalars.

    Such values are common in real files, and a runtime needs no rank, but onnx.checker insists on it.
    """
    if all(value.type.tensor_type.HasField("shape") for value in _tensors(proto)):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in _tensors(copy):
        value.type.tensor_type.shape.SetInParent()
    return copy


def _tensors(proto: ModelProto) -> list[ValueInfoProto]:
    values = [*proto.graph.input, *proto.graph.output]
    return [value for value in values if value.type.HasField("tensor_type")]


def _opset(proto: ModelProto) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=MIN_OPSET)


def _convert(proto: ModelProto) -> ModelProto:
    """The model at MIN_OPSET. Known shapes help the converter to avoid detours (Softmax)."""
    try:
        return onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(proto), MIN_OPSET)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        nodes = proto.graph.node
        culprit = next((node for node in nodes if node.op_type in str(error)), nodes[0])
        reason = f"converting the model to opset {MIN_OPSET} failed: {error}"
        raise UnsupportedOperator(culprit.name or culprit.output[0], culprit.op_type, _opset(proto), reason) from error


def from_proto(proto: ModelProto) -> Graph:
    """A `Graph` of a ModelProto that is valid, has no local functions and is of opset 13 or later."""
    source = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.initializer}
    constants.update((tensor.values.name, _dense(tensor)) for tensor in source.sparse_initializer)
    nodes: list[Node] = []
    for item in source.node:
        if item.op_type == "Constant" and item.domain in ("", "ai.onnx"):
            constants[item.output[0]] = _constant(item)
        else:
            nodes.append(_node(item))
    graph = Graph(
        nodes=nodes,
        constants=constants,
        inputs=[value_info(value) for value in source.input if value.name not in constants],
        outputs=[value_info(value) for value in source.output],
        opset=_opset(proto),
        name=source.name,
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        domains={entry.domain: entry.version for entry in proto.opset_import if entry.domain not in ("", "ai.onnx")},
    )
    graph.nodes = graph.sorted()
    unmade = set(graph.output_names) - set(graph.consumers())
    if unmade:
        raise ValueError(f"nothing produces the outputs {sorted(unmade)}")
    return graph


def _node(item: NodeProto) -> Node:
    return Node(
        op_type=item.op_type,
        inputs=list(item.input),
        outputs=list(item.output),
        attributes={attribute.name: _attribute(attribute) for attribute in item.attribute},
        name=item.name or next((name for name in item.output if name), item.op_type),
        domain="" if item.domain == "ai.onnx" else item.domain,
        captures=sorted(_captures(_subgraphs(item))),
    )


def _attribute(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return value.decode()
    if attribute.type == AttributeProto.STRINGS:
        return [text.decode() for text in value]
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def _constant(item: NodeProto) -> np.ndarray:
    """The array of a Constant node, whichever of its attributes holds it."""
    attribute = item.attribute[0]
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return _dense(attribute.sparse_tensor)
    value = _attribute(attribute)
    dtypes = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_string": np.object_,
        "value_strings": np.object_,
    }
    return np.asarray(value, dtypes.get(attribute.name))


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return array


def _subgraphs(item: NodeProto) -> Iterable[GraphProto]:
    for attribute in item.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captures(subgraphs: Iterable[GraphProto]) -> set[str]:
    """The values of the surrounding graph that subgraphs read."""
    outer: set[str] = set()
    for graph in subgraphs:
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(tensor.values.name for tensor in graph.sparse_initializer)
        own.update(name for item in graph.node for name in item.output)
        read = {name for item in graph.node for name in item.input if name}
        read.update(value.name for value in graph.output)
        for item in graph.node:
            read |= _captures(_subgraphs(item))
        outer |= read - own
    return outer


def value_info(value: ValueInfoProto) -> ValueInfo:
    """Name, type and shape of a graph input, output or inferred value."""
    if not value.type.HasField("tensor_type"):
        return ValueInfo(value.name)
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return ValueInfo(value.name, dtype)
    return ValueInfo(value.name, dtype, tuple(_dimension(dim) for dim in tensor.shape.dim))


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for a dynamic dimension
    return dim.dim_param or None

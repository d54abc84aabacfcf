"""The float operators: a table of NumPy functions, and the steps that run them.

`FLOAT_OPS[op_type]` is a function whose positional parameters are the operator's inputs (None when absent)
and whose keyword-only parameters are its attributes, both in ONNX names and as of opset 13 or later; it
returns the output, or a tuple of them. `n_outputs`, where a function has it, is the number of outputs of the
node. What the table lacks, and attributes that a function lacks, run in `onnx.reference`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from onnx import TypeProto, helper
from onnx.reference import ReferenceEvaluator

from pyq.errors import UnsupportedOperator
from pyq.onnx import float_ops_conv, float_ops_math, float_ops_pool, float_ops_shape
from pyq.onnx.export import node_proto
from pyq.onnx.step import Buffers
from pyq.onnx.steps import take_like
from pyq.quantization.float_elementwise import ELEMENTWISE
from pyq.quantization.graph import Graph, Node
from pyq.quantization.regions import Region

BLOCK = 32768
"""Elements that a region takes at a time: a few such arrays of float32 stay in the second-level cache."""

FLOAT_OPS: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE,
    **float_ops_math.OPERATORS,
    **float_ops_conv.OPERATORS,
    **float_ops_pool.OPERATORS,
    **float_ops_shape.OPERATORS,
}


class FloatStep:
    """A node that NumPy computes; constants and attributes are bound when it is made.

    Raises UnsupportedOperator when nothing here can run the node.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        self.name, self.op_type, self.outputs = node.name, node.op_type, list(node.outputs)
        self.function = _function(node, graph)
        operands = [*node.inputs, *node.captures]
        self.inputs = [name for name in operands if name and name not in graph.constants]
        self._operands = [graph.constants.get(name) for name in operands]
        self._places = [i for i, name in enumerate(operands) if name and name not in graph.constants]

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        """Compute the outputs; see `pyq.onnx.step.Step`."""
        operands = list(self._operands)
        for place, value in zip(self._places, inputs, strict=True):
            operands[place] = value
        try:
            result = self.function(*operands)
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"node {self.name!r} ({self.op_type}): {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        return [np.asarray(value) if isinstance(value, np.generic) else value for value in results]


class RegionStep:
    """A unary region, block by block, so that what its operators pass to each other stays in the cache."""

    def __init__(self, region: Region, graph: Graph) -> None:
        self.name = region.nodes[-1].name
        self.op_type = "+".join(node.op_type for node in region.nodes)
        self.inputs, self.outputs = [region.input], [region.output]
        self._steps = [FloatStep(node, graph) for node in region.nodes]

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        """Compute the output; see `pyq.onnx.step.Step`."""
        [x] = inputs
        if x.size <= BLOCK or x.dtype != np.float32:
            return [self._block(x, out)]
        y = take_like(x, x.shape, x.dtype, out)
        if x.strides != y.strides:  # x has gaps, so that it has no flat view
            return [self._block(x, out)]
        source, target = x.ravel(order="K"), y.ravel(order="K")
        for start in range(0, x.size, BLOCK):
            block = slice(start, start + BLOCK)
            target[block] = self._block(source[block], out)
        return [y]

    def _block(self, x: np.ndarray, out: Buffers) -> np.ndarray:
        values = {self.inputs[0]: x}
        for step in self._steps:
            [values[step.outputs[0]]] = step.run([values[name] for name in step.inputs], out)
        return values[self.outputs[0]]


def _function(node: Node, graph: Graph) -> Callable[..., Any]:
    function = None if node.domain else FLOAT_OPS.get(node.op_type)
    if function is None:
        return _reference_function(node, graph)
    if isinstance(function, np.ufunc):
        return function
    parameters = inspect.signature(function).parameters
    keywords = dict(node.attributes)
    if "n_outputs" in parameters:
        keywords["n_outputs"] = len(node.outputs)
    elif len(node.outputs) > 1:
        return _reference_function(node, graph)
    if not all(name in parameters for name in keywords):
        return _reference_function(node, graph)
    return partial(function, **keywords)


def _reference_function(node: Node, graph: Graph) -> Callable[..., Any]:
    """The node as a model of its own in onnx.reference."""
    operands = list(dict.fromkeys(name for name in [*node.inputs, *node.captures] if name))
    untyped = [helper.make_value_info(name, TypeProto()) for name in operands]
    results = [name for name in node.outputs if name]
    model = helper.make_model(
        helper.make_graph(
            [node_proto(node, graph)],
            node.name,
            untyped,
            [helper.make_value_info(name, TypeProto()) for name in results],
        ),
        opset_imports=[
            helper.make_opsetid(domain, version) for domain, version in {"": graph.opset, **graph.domains}.items()
        ],
    )
    try:
        evaluator = ReferenceEvaluator(model)
    except Exception as error:  # onnx.reference has no common exception for "not implemented"
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise UnsupportedOperator(
            node.name, operator, graph.domains.get(node.domain, graph.opset), str(error)
        ) from error
    names = [*node.inputs, *node.captures]

    def run(*values: Any) -> Any:
        computed = iter(
            evaluator.run(results, {name: value for name, value in zip(names, values, strict=True) if name})
        )
        return tuple(next(computed) if name else None for name in node.outputs)

    return run

"""Static quantization: what is selected, where quantizers go, and that the result is the model in standard ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from models import MODELS, ModelBuilder, classifier, conv_hardswish_chain, feeds, residual, squeeze_excite

from pyq.onnx.export import to_proto
from pyq.onnx.load import load
from pyq.qparams import QParams
from pyq.quantization.graph import Graph, Node, ValueInfo
from pyq.quantization.selection import Unit, quantized_tensors, select
from pyq.quantization.static import (
    BIAS_LIMIT,
    Recipe,
    activation_params,
    calibrated_tensors,
    insert_qdq,
    quantize_bias,
    weight_params,
)


def operators(units: list[Unit]) -> list[str]:
    return ["+".join(node.op_type for node in unit.nodes) for unit in units]


def run_exactly(graph: Graph, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs and the values called `names`, by ONNX Runtime without fusion: each operator in float."""
    made = [name for name in names if name not in feed]
    graph = graph.copy()
    graph.outputs = [ValueInfo(name, np.dtype(np.float32)) for name in made]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_proto(graph).SerializeToString(), options)
    return {**feed, **dict(zip(made, session.run(made, feed), strict=True))}


def quantized(
    model: onnx.ModelProto, recipe: Recipe | None = None, **selection: Any
) -> tuple[Graph, Graph, dict[str, QParams]]:
    """The float graph, the QDQ graph and the activations' parameters, calibrated on two batches."""
    graph, recipe = load(model), recipe or Recipe()
    units = select(graph, **selection)
    names = calibrated_tensors(units)
    batches = [run_exactly(graph, names, feed) for feed in feeds(model, 2)]
    ranges = {name: (min(b[name].min() for b in batches), max(b[name].max() for b in batches)) for name in names}
    params = activation_params(units, ranges, recipe)
    return graph, insert_qdq(graph, units, params, recipe), params


# ---- selection


def test_selection_of_each_pattern() -> None:
    found = {name: operators(select(load(make()))) for name, make in MODELS.items()}
    hardswish = "Add+Clip+Mul+Div"
    assert found == {
        "conv_hardswish_chain": ["Conv", hardswish, "Conv", f"{hardswish}+Mul+Add", "Conv"],
        "squeeze_excite": [
            *("Conv", hardswish, "GlobalAveragePool", "Conv+Relu", "Conv", "HardSigmoid", "Mul", "Conv"),
        ],
        "residual": ["Conv+Relu", "Conv", "Add+Relu", "MaxPool", "Conv"],
        "transformer_block": ["MatMul+Add", "Sigmoid+Mul", "MatMul+Add", "MatMul+Add"],
        "classifier": [
            *("Conv+Relu", "AveragePool", "Conv+Clip", "Concat", "Conv", "Sigmoid+Mul"),
            *("GlobalAveragePool", "Flatten", "Gemm"),
        ],
        "one_dimensional": ["Conv", "LeakyRelu", "Conv+Relu", "Reshape", "Gemm"],
        "volume": ["Conv+Relu", "Conv", "Conv"],
        "decoder": ["ConvTranspose", "ConvTranspose", "Sigmoid+Mul", "ConvTranspose"],
    }


def test_followers_that_lead_nowhere_stay_float() -> None:
    b = ModelBuilder((1, 3, 8, 8))
    y = b.op("GlobalAveragePool", b.op("MaxPool", b.hardswish(b.conv("x", 3, 4)), kernel_shape=[2, 2]))
    assert operators(select(load(b.model(b.op("Softmax", y, axis=1))))) == ["Conv"]


def test_followers_of_float_inputs_stay_float() -> None:
    b = ModelBuilder((1, 3, 8, 8))
    y = b.op("MaxPool", b.op("Relu", "x"), kernel_shape=[2, 2])
    y = b.op("Add", b.conv(y, 3, 3), y)  # one quantized input, one float
    assert operators(select(load(b.model(b.conv(y, 3, 4))))) == ["Conv", "Conv"]


def test_a_relu_that_shares_its_input_is_no_part_of_the_convolution() -> None:
    b = ModelBuilder((1, 3, 8, 8))
    y = b.conv("x", 3, 4)
    both = b.op("Concat", b.op("Relu", y), y, axis=1)
    assert operators(select(load(b.model(b.conv(both, 8, 4))))) == ["Conv", "Relu", "Concat", "Conv"]


@pytest.mark.parametrize("attributes", [{"transA": 1}, {"alpha": 0.5}, {"beta": 2.0}])
def test_gemm_that_is_no_plain_product_stays_float(attributes: dict[str, Any]) -> None:
    b = ModelBuilder((4, 4))
    model = b.model(b.op("Gemm", "x", b.weight(4, 4), b.constant(np.ones(4)), **attributes))
    assert select(load(model)) == []


def test_products_without_constant_weights_stay_float() -> None:
    b = ModelBuilder((4, 4))
    left = b.op("MatMul", b.weight(4, 4), "x")
    assert select(load(b.model(b.op("MatMul", left, "x")))) == []


def test_bias_that_changes_the_rank_is_not_part_of_the_product() -> None:
    b = ModelBuilder((4, 4))
    y = b.op("Add", b.op("MatMul", "x", b.weight(4, 6)), b.constant(np.ones((1, 1, 6))))
    assert operators(select(load(b.model(y)))) == ["MatMul"]


def test_op_types_limit_the_operators() -> None:
    graph = load(residual())
    assert operators(select(graph, op_types=["Conv"])) == ["Conv+Relu", "Conv", "Conv"]
    assert select(graph, op_types=["MatMul"]) == []
    with pytest.raises(ValueError, match=r"op_types: got 'Relu6', allowed are Add, .*Conv"):
        select(graph, op_types=["Conv", "Relu6"])
    with pytest.raises(TypeError, match="op_types: expected a collection of names, got the string 'Conv'"):
        select(graph, op_types="Conv")


def test_exclude_by_node_or_tensor_name() -> None:
    graph = load(squeeze_excite())
    names = [unit.nodes[0].name for unit in select(graph)]
    assert "Conv0" in names
    assert [unit.nodes[0].name for unit in select(graph, exclude=["Conv0"])] == [
        name for name in names if name not in ("Conv0", "Add1", "GlobalAveragePool5", "HardSigmoid9", "Mul10")
    ]
    with pytest.raises(ValueError, match=r"exclude: got 'Conv99', allowed are names of nodes"):
        select(graph, exclude=["Conv99"])


# ---- the graph that is written


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("activation_dtype", ["uint8", "int8"])
def test_the_result_is_valid_onnx_and_close_to_float(name: str, activation_dtype: str) -> None:
    model = MODELS[name]()
    graph, qdq, _ = quantized(model, Recipe(activation_dtype))
    onnx.checker.check_model(to_proto(qdq), full_check=True)
    assert [value.name for value in qdq.inputs] == ["x"] and qdq.output_names == graph.output_names
    (feed,) = feeds(model, 1)
    f, q = (run_exactly(g, graph.output_names, feed)[graph.output_names[0]] for g in (graph, qdq))
    assert f.dtype == q.dtype == np.float32
    assert np.square(f).sum() > 100 * np.square(f - q).sum()  # 20 dB


def test_tensors_and_their_readers() -> None:
    """A unit's output is read dequantized by everyone; a graph input and an output stay as they are."""
    b = ModelBuilder((1, 3, 8, 8))
    y = b.conv("x", 3, 4)
    z = b.conv(y, 4, 4)
    float_reader = b.op("ReduceMean", y, axes=[1], keepdims=1)
    _, qdq, _ = quantized(b.model(z, float_reader, y, b.op("Neg", "x")))
    readers = {name: {node.name for node in nodes} for name, nodes in qdq.consumers().items()}
    assert readers["x"] == {"x_quantized_QuantizeLinear", "Neg3"}
    assert readers["x_dequantized"] == {"Conv0"}
    assert readers["Conv0"] == {"Conv0_quantized_QuantizeLinear"}
    assert readers["Conv0_dequantized"] == {"Conv1", "ReduceMean2"}
    assert qdq.output_names == ["Conv1", "ReduceMean2", "Conv0", "Neg3"]
    assert "Conv1_quantized" not in readers


def test_nothing_inside_a_unit_is_quantized() -> None:
    _, qdq, params = quantized(conv_hardswish_chain())
    assert list(params) == ["x", "Conv0", "Div4", "Conv5", "Add11"]
    kinds = [node.op_type for node in qdq.nodes]
    assert kinds.count("QuantizeLinear") == 5
    assert kinds.count("DequantizeLinear") == 5 + 2 * 3  # activations, then weight and bias of three Convs


def test_moves_keep_the_parameters_of_their_input() -> None:
    _, qdq, params = quantized(residual())
    pooled, before = params["MaxPool5"], params["Relu4"]
    assert pooled == before
    assert qdq.constants["MaxPool5_scale"] == before.scale
    units = select(load(residual()))
    assert set(quantized_tensors(units)) - set(calibrated_tensors(units)) == {"MaxPool5"}


def test_zero_is_exact_even_when_the_range_does_not_hold_it() -> None:
    units = select(load(conv_hardswish_chain()))
    params = activation_params(units, dict.fromkeys(calibrated_tensors(units), (2.0, 3.0)), Recipe())
    assert all(p.qmin <= p.zero_point <= p.qmax for p in params.values())
    assert params["x"].scale == np.float32(3) / np.float32(255)


def test_weights_shared_by_two_operators_are_stored_once() -> None:
    b = ModelBuilder((1, 3, 8, 8))
    weight = b.weight(3, 3, 1, 1)
    _, qdq, _ = quantized(b.model(b.op("Conv", b.op("Conv", "x", weight), weight)))
    assert [name for name in qdq.constants if name.startswith("c0")] == ["c0_quantized", "c0_scale", "c0_zero_point"]


def test_names_that_exist_are_not_taken_again() -> None:
    weight = np.eye(2, dtype=np.float32)
    nodes = [Node("MatMul", ["x", "w"], ["x_quantized"]), Node("MatMul", ["x_quantized", "w_scale"], ["y"])]
    values = [ValueInfo(name, np.dtype(np.float32), (1, 2)) for name in ("x", "y")]
    graph = Graph(nodes, {"w": weight, "w_scale": 2 * weight}, values[:1], values[1:], opset=13)
    units = select(graph)
    params = activation_params(units, {"x": (0, 1), "x_quantized": (0, 2)}, Recipe())
    qdq = insert_qdq(graph, units, params, Recipe())
    onnx.checker.check_model(to_proto(qdq), full_check=True)
    assert {"x_quantized", "x_quantized_1", "x_quantized_quantized"} <= qdq.producers().keys()
    y = run_exactly(qdq, ["y"], {"x": np.float32([[1, 0.5]])})["y"]
    np.testing.assert_allclose(y, [[2, 1]], atol=0.02)


def test_the_float_graph_is_left_alone() -> None:
    model = classifier()
    graph = load(model)
    before = to_proto(graph)
    units = select(graph)
    params = activation_params(units, dict.fromkeys(calibrated_tensors(units), (-1.0, 1.0)), Recipe())
    insert_qdq(graph, units, params, Recipe())
    assert to_proto(graph) == before


def test_old_opsets_are_refused() -> None:
    graph = load(residual())
    graph.opset = 12
    with pytest.raises(ValueError, match="opset 12"):
        insert_qdq(graph, [], {}, Recipe())


def test_weights_must_be_finite() -> None:
    b = ModelBuilder((1, 2))
    graph = load(b.model(b.op("MatMul", "x", b.constant([[1, np.nan], [0, 1]]))))
    units = select(graph)
    params = activation_params(units, {"x": (-1, 1)}, Recipe())
    with pytest.raises(ValueError, match="constant 'c0': expected finite numbers"):
        insert_qdq(graph, units, params, Recipe())


def test_recipe_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="activation_dtype: got 'int4', allowed are 'uint8', 'int8'"):
        Recipe("int4")


# ---- weights and biases


@pytest.mark.parametrize("reduce_range, qmax", [(False, 127), (True, 64)])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_symmetric_per_channel(reduce_range: bool, qmax: int, axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    params = weight_params(weight, axis, None, np.float32(0.1), Recipe(reduce_range=reduce_range))
    assert (params.qmin, params.qmax, params.axis) == (-qmax, qmax, axis) and not params.zero_point.any()
    np.testing.assert_allclose(params.scale * qmax, np.abs(weight).max(axis=1 - axis), rtol=1e-6)


def test_per_tensor_weights_have_one_scale() -> None:
    _, qdq, _ = quantized(residual(), Recipe(per_channel=False))
    assert qdq.constants["c0_scale"].shape == () and qdq.constants["c1_scale"].shape == ()
    weight = next(node for node in qdq.nodes if node.inputs[0] == "c0_quantized")
    assert weight.attributes == {}


def test_bias_of_a_channel_without_weights_survives() -> None:
    """With scale 1, as an empty range has elsewhere, a small bias would round to 0."""
    weight, bias = np.float32([[0, 0], [1, 2]]), np.float32([0.003, 0.5])
    params = weight_params(weight, 0, bias, np.float32(0.05), Recipe())
    scale = np.float32(0.05) * params.scale
    np.testing.assert_allclose(quantize_bias(bias, scale) * scale, bias, rtol=1e-2)


def test_bias_never_wraps_around_int32() -> None:
    weight, bias = np.float32([[1e-9], [1]]), np.float32([5, -1])
    params = weight_params(weight, 0, bias, np.float32(0.01), Recipe())
    scale = np.float32(0.01) * params.scale
    stored = quantize_bias(bias, scale)
    assert abs(stored[0]) <= BIAS_LIMIT + 2**7  # one rounding to float32 above the limit
    np.testing.assert_allclose(stored * scale.astype(np.float64), bias, rtol=1e-3)


def test_bias_is_rounded_beyond_the_digits_of_float32() -> None:
    assert quantize_bias(np.float32([1]), np.float32([2**-30 * 3])).tolist() == [round(2**30 / 3)]


@pytest.mark.parametrize("bias", [None, np.zeros(2, np.float32)])
def test_zero_weights_have_a_scale(bias: np.ndarray | None) -> None:
    params = weight_params(np.zeros((2, 3), np.float32), 0, bias, np.float32(1e-6), Recipe())
    assert (params.scale > 0).all() and (np.float32(1e-6) * params.scale > 0).all()

"""Dynamically quantized layers of ONNX models: one step each, with the numbers of the nodes that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from exact import full_range
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import pyq
from pyq.onnx import Session

K, N = 70, 20


class Layers:
    """A model under construction, of layers that read `x` as ONNX Runtime's `quantize_dynamic` writes them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])]
        self.constants: dict[str, np.ndarray] = {}
        self.count = 0

    def constant(self, value: Any) -> str:
        """A new name for it."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """The name of its output."""
        self.count += 1
        self.nodes.append(helper.make_node(op_type, inputs, [f"v{self.count}"], f"n{self.count}", **attributes))
        return f"v{self.count}"

    def layer(
        self,
        dtype: str = "int8",
        per_column: bool = True,
        zero: bool = True,
        bias: np.ndarray | None = None,
        turned: bool = False,
        scale: np.ndarray | None = None,
    ) -> str:
        """MatMulInteger, Cast, Mul, Mul and perhaps Add; `turned`: operands the other way round."""
        count = (N,) if per_column else ()
        if scale is None:
            scale = self.rng.uniform(0.001, 0.1, count).astype(np.float32)
        inputs = ["q", self.constant(full_range(self.rng, (K, N), dtype)), "z"]
        if zero:
            inputs.append(self.constant(full_range(self.rng, count, dtype)))
        step = -1 if turned else 1
        reals = self.node("Cast", self.node("MatMulInteger", *inputs), to=TensorProto.FLOAT)
        factor = self.node("Mul", *["s", self.constant(scale)][::step])
        y = self.node("Mul", *[reals, factor][::step])
        return y if bias is None else self.node("Add", *[y, self.constant(bias)][::step])

    def model(self, *outputs: str, dtypes: Any = None) -> onnx.ModelProto:
        """With these outputs, float32 unless `dtypes` has others."""
        types = {**dict.fromkeys(outputs, TensorProto.FLOAT), **(dtypes or {})}
        made = [helper.make_tensor_value_info(name, types[name], None) for name in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", [x], made, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def steps(model: onnx.ModelProto) -> list[str]:
    return [step.op_type for step in Session(model).steps]


def assert_right(model: onnx.ModelProto, x: np.ndarray) -> None:
    """Bit for bit what `onnx.reference` computes node by node."""
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    for name in ("c", "numba", "reference"):
        with pyq.use_backend(name):
            session = Session(model)
            for _ in range(2):
                for y, reference in zip(session.run(None, {"x": x}), expected, strict=True):
                    np.testing.assert_array_equal(y, reference)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_a_layer_is_one_step(dtype: str, per_column: bool, zero: bool, turned: bool, rng: np.random.Generator) -> None:
    for bias in (None, rng.normal(size=N).astype(np.float32)):
        layers = Layers(rng)
        model = layers.model(layers.layer(dtype, per_column, zero, bias, turned))
        assert steps(model) == ["DynamicMatMul"]
        for shape in ((1, K), (5, K), (2, 3, K)):
            assert_right(model, rng.normal(0.4, 1, shape).astype(np.float32))


def test_layers_that_share_their_input(rng: np.random.Generator) -> None:
    layers = Layers(rng)
    model = layers.model(*(layers.layer() for _ in range(3)))
    assert steps(model) == ["DynamicMatMul"] * 3
    assert_right(model, rng.normal(size=(4, K)).astype(np.float32))


def test_what_something_else_reads_stays(rng: np.random.Generator) -> None:
    """The sums; the reals; the product before the bias; the integers."""
    x = rng.normal(size=(4, K)).astype(np.float32)
    layers = Layers(rng)
    y = layers.layer(bias=rng.normal(size=N).astype(np.float32))
    sums, reals, scaled = (f"v{i}" for i in (1, 2, 4))
    model = layers.model(y, sums, dtypes={sums: TensorProto.INT32})
    assert "DynamicMatMul" not in steps(model)
    assert_right(model, x)
    model = layers.model(y, reals)
    assert "DynamicMatMul" not in steps(model)
    assert_right(model, x)
    model = layers.model(y, scaled)
    assert steps(model) == ["DynamicMatMul", "Add"]
    assert_right(model, x)
    model = layers.model(y, "q", "z", dtypes={"q": TensorProto.UINT8, "z": TensorProto.UINT8})
    assert sorted(steps(model)) == ["DynamicMatMul", "DynamicQuantizeLinear"]
    assert_right(model, x)


@pytest.mark.parametrize("bias", [np.float32([0.5]), np.ones((3, N), np.float32)])
def test_a_bias_of_another_shape_is_added_by_itself(bias: np.ndarray, rng: np.random.Generator) -> None:
    layers = Layers(rng)
    model = layers.model(layers.layer(bias=bias))
    assert steps(model) == ["DynamicMatMul", "Add"]
    assert_right(model, rng.normal(size=(3, K)).astype(np.float32))


def test_other_patterns_are_left_alone(rng: np.random.Generator) -> None:
    """A zero point that is not the activations'; a scale that is none; a factor that comes from elsewhere; a Cast."""
    x = rng.normal(size=(3, K)).astype(np.float32)
    zero_point = Layers(rng)
    y = zero_point.layer()
    zero_point.nodes[1].input[2] = zero_point.constant(np.uint8(3))
    scale = Layers(rng)
    y_of_scale = scale.layer(scale=np.zeros(N, np.float32))
    factor = Layers(rng)
    y_of_factor = factor.layer()
    factor.nodes[3].input[0] = factor.constant(np.float32(0.5))
    for layers, output in ((zero_point, y), (scale, y_of_scale), (factor, y_of_factor)):
        model = layers.model(output)
        assert "DynamicMatMul" not in steps(model)
        assert_right(model, x)
    double = Layers(rng)
    reals = double.node(
        "Cast", double.node("MatMulInteger", "q", double.constant(full_range(rng, (K, N), "int8")), "z"), to=11
    )
    assert "DynamicMatMul" not in steps(double.model(reals, dtypes={reals: TensorProto.DOUBLE}))


@pytest.mark.parametrize("power", [-40, -38, 37])
def test_scales_at_the_ends_of_float32(power: int, rng: np.random.Generator) -> None:
    """Where products of scales are 0, subnormal or infinite, as where they are not."""
    x = (rng.normal(size=(3, K)) * 10.0**power).astype(np.float32)
    layers = Layers(rng)
    scale = np.exp2(rng.uniform(-20, 20, N)).astype(np.float32)
    model = layers.model(layers.layer(scale=scale, bias=np.zeros(N, np.float32)))
    assert steps(model) == ["DynamicMatMul"]
    with np.errstate(over="ignore"):
        assert_right(model, x)


def test_errors_name_the_step(rng: np.random.Generator) -> None:
    layers = Layers(rng)
    session = Session(layers.model(layers.layer()))
    with pytest.raises(ValueError, match="NaN"):
        session.run(None, {"x": np.full((2, K), np.nan, np.float32)})
    with pytest.raises(ValueError, match=rf"n1.*\(2, {K + 1}\).*{K}"):
        session.run(None, {"x": np.zeros((2, K + 1), np.float32)})

"""What becomes of Conv, MatMul and Gemm in a QDQ graph, and of what the int8 patterns do not cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qdq_graph import IMAGE, Builder, check, hardswish, run

from pyq.onnx.qdq import fuse
from pyq.quantization.graph import Graph

# A Conv, Gemm or MatMul, what stands around it, and what that becomes.


def product_graph(
    weight: Callable[[Builder], str],
    op_type: str = "Conv",
    bias: Callable[[Builder], str] | None = None,
    tail: Callable[[Builder, str], str] = lambda b, y: b.quantize(y, 2**-1, 125),
    **attributes: Any,
) -> Graph:
    b = Builder()
    inputs = [b.pair("x"), weight(b)]
    if bias is not None:
        inputs.append(bias(b))
    return b.graph(tail(b, b.op(op_type, *inputs, **attributes)))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "padded": ((6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided, dilated": ((5, 8, 2, 3), {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 2, 3]}),
    "grouped": ((6, 4, 3, 3), {"group": 2}),
    "depthwise": ((8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "SAME_LOWER": ((4, 8, 2, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name: str, axis: int | None, dtype: str) -> None:
    shape, attributes = CONVOLUTIONS[name]
    graph = product_graph(lambda b: b.weight(*shape, axis=axis, dtype=dtype), **attributes)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_conv_of_one_dimension() -> None:
    graph = product_graph(lambda b: b.weight(5, 8, 3), pads=[2, 1], strides=[2])
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1}, shape=(2, 8, 21))


def test_conv_of_three_dimensions() -> None:
    graph = product_graph(lambda b: b.weight(5, 2, 2, 2, 2), pads=[1, 0, 1, 0, 1, 1], strides=[1, 2, 1])
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1}, shape=(2, 2, 5, 6, 4))


TRANSPOSED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "strided": ((8, 6, 2, 2), {"strides": [2, 2]}),
    "padded": ((8, 5, 4, 3), {"strides": [2, 1], "pads": [1, 1, 1, 0], "output_padding": [1, 0]}),
    "strided, dilated": ((8, 5, 2, 3), {"strides": [2, 3], "dilations": [1, 2]}),
    "grouped": ((8, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise": ((8, 1, 4, 4), {"group": 8, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "SAME_UPPER": ((8, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "output_shape": ((8, 4, 3, 3), {"output_shape": [18, 21], "strides": [2, 2]}),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name: str, axis: int | None, dtype: str) -> None:
    shape, attributes = TRANSPOSED[name]
    graph = product_graph(lambda b: b.weight(*shape, axis=axis, dtype=dtype), "ConvTranspose", **attributes)
    check(graph, {"QuantizeLinear": 1, "int8.ConvTranspose": 1})


@pytest.mark.parametrize(("shape", "rank"), [((2, 8, 21), 1), ((2, 8, 4, 5, 3), 3)])
def test_conv_transpose_of_one_and_of_three_dimensions(shape: tuple[int, ...], rank: int) -> None:
    weight = (8, 5, *[3] * rank)
    graph = product_graph(lambda b: b.weight(*weight, axis=1), "ConvTranspose", strides=[2] * rank)
    check(graph, {"QuantizeLinear": 1, "int8.ConvTranspose": 1}, shape)


def test_conv_transpose_quantized_along_its_input_channels_stays_float() -> None:
    graph = product_graph(lambda b: b.weight(8, 5, 2, 2, axis=0), "ConvTranspose")
    check(graph, {"QuantizeLinear": 2, "DequantizeLinear": 1, "ConvTranspose": 1})


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose_with_bias_relu_and_table(group: int) -> None:
    def tail(b: Builder, y: str) -> str:
        return b.quantize(hardswish(b, b.pair(b.op("Relu", y), 2**-1, 25)), 2**-1, 7)

    graph = product_graph(
        lambda b: b.weight(8, 6 // group, 3, 3, axis=1),
        "ConvTranspose",
        bias=float_bias,
        tail=tail,
        group=group,
        strides=[2, 2],
    )
    fused = check(graph, {"QuantizeLinear": 1, "int8.ConvTranspose": 1})
    assert fused.nodes[-1].attributes["bias"].dtype == np.int32


def test_conv_transpose_with_float_output() -> None:
    graph = product_graph(
        lambda b: b.weight(8, 6, 2, 2, axis=1), "ConvTranspose", bias=float_bias, tail=lambda b, y: y, strides=[3, 2]
    )
    check(graph, {"QuantizeLinear": 1, "int8.ConvTranspose": 1})


def int32_bias(b: Builder) -> str:
    """An int32 bias in units of the accumulator: its scale is that of `x` times that of the weight."""
    weight_scale = next(b.constants[node.inputs[1]] for node in b.nodes if node.inputs[0] in b.constants)
    data = b.constant(b.rng.integers(-20000, 20000, 6), np.int32)
    return b.op("DequantizeLinear", data, b.constant(2**-6 * weight_scale), axis=0)


def float_bias(b: Builder) -> str:
    return b.constant(b.rng.integers(-100, 100, 6) / 8)


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("bias", [int32_bias, float_bias])
def test_bias(bias: Callable[[Builder], str], axis: int | None) -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3, axis=axis), bias=bias)
    fused = check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})
    assert fused.nodes[-1].attributes["bias"].dtype == np.int32


def test_bias_beyond_the_accumulator_is_added_in_float() -> None:
    """1e9 in units of 2**-15 does not fit int32: merged, it would wrap around."""
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=lambda b: b.constant([1e9, 0, 1, 2, 3, -1e9]))
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1})


def relu(b: Builder, y: str) -> str:
    return b.quantize(b.op("Relu", y), 2**-1, 25)


def clip(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", y, b.constant(-11.3), b.constant(20.1)), 2**-2, 125)


def clip_without_lower_bound(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", y, "", b.constant(20.1)), 2**-1, -5, "int8")


def relu_then_clip(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", b.op("Relu", y), b.constant(2.5), b.constant(30)), 2**-2, 0)


@pytest.mark.parametrize("tail", [relu, clip, clip_without_lower_bound, relu_then_clip])
def test_bounds_between_conv_and_quantize(tail: Callable[[Builder, str], str]) -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=float_bias, tail=tail)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_float_output() -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=float_bias, tail=lambda b, y: y)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_float_output_with_bounds() -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), tail=lambda b, y: b.op("Relu", y))
    fused = check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})
    assert fused.nodes[-1].outputs == graph.output_names


def test_output_that_is_also_read_as_float() -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), tail=lambda b, y: b.op("Add", b.pair(y, 2**-1, 125), y))
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1, "DequantizeLinear": 1, "Add": 1})


def test_values_that_are_outputs_stay() -> None:
    b = Builder()
    y = b.op("Conv", b.pair("x"), b.weight(6, 8, 3, 3))
    clamped = b.op("Relu", y)
    graph = b.graph(y, clamped, b.quantize(clamped, 2**-1, 3))
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1, "Relu": 1})


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_table_in_the_epilogue_of_a_conv(dtype: str) -> None:
    """Also when the table changes the integer type."""
    graph = product_graph(
        lambda b: b.weight(6, 8, 3, 3),
        tail=lambda b, y: b.quantize(hardswish(b, b.pair(y, 2**-1, 60)), 2**-1, 7, dtype),
    )
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_table_stays_where_its_input_has_another_reader() -> None:
    b = Builder()
    y = b.pair(b.op("Conv", b.pair("x"), b.weight(8, 8, 1, 1)), 2**-1, 60)
    swish = b.pair(hardswish(b, y), 2**-1, 7)
    graph = b.graph(b.quantize(b.op("Add", y, swish), 1.0, 100))
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1, "int8.Lookup": 1, "int8.Add": 1})


# Matrix products.

ROWS = (3, 4, 24)


@pytest.mark.parametrize("axis", [1, None])
def test_matmul(axis: int | None) -> None:
    graph = product_graph(lambda b: b.weight(24, 10, axis=axis), "MatMul")
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


@pytest.mark.parametrize("first", [True, False])
def test_matmul_with_bias(first: bool) -> None:
    def add(b: Builder, y: str) -> str:
        bias = b.constant(b.rng.integers(-100, 100, 10) / 8)
        return b.quantize(b.op("Relu", b.op("Add", *((bias, y) if first else (y, bias)))), 2**-1, 25)

    graph = product_graph(lambda b: b.weight(24, 10, axis=1), "MatMul", tail=add)
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_with_float_output_and_bias() -> None:
    graph = product_graph(
        lambda b: b.weight(24, 10, axis=1),
        "MatMul",
        tail=lambda b, y: b.op("Add", y, b.constant(b.rng.normal(size=10))),
    )
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_by_a_transposed_weight() -> None:
    def weight(b: Builder) -> str:
        return b.op("Transpose", b.weight(10, 24, axis=0), perm=[1, 0])

    check(product_graph(weight, "MatMul"), {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_quantized_along_its_depth_stays_float() -> None:
    graph = product_graph(lambda b: b.weight(24, 10, axis=0), "MatMul")
    check(graph, {"QuantizeLinear": 2, "DequantizeLinear": 1, "MatMul": 1}, ROWS)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    shape = (6, 24) if transposed else (24, 6)
    graph = product_graph(lambda b: b.weight(*shape, axis=1 - transposed), "Gemm", bias=float_bias, transB=transposed)
    check(graph, {"QuantizeLinear": 1, "int8.Gemm": 1}, (5, 24))


def test_gemm_with_alpha_stays_float() -> None:
    def tail(b: Builder, y: str) -> str:
        return b.quantize(y, 2**-3, 99)

    graph = product_graph(lambda b: b.weight(24, 6, axis=1), "Gemm", tail=tail, alpha=0.5)
    check(graph, {"QuantizeLinear": 2, "DequantizeLinear": 1, "Gemm": 1}, (5, 24))


# What is left alone.


def test_parameters_that_are_not_constant() -> None:
    b = Builder()
    scale = b.op("Div", b.op("ReduceMax", b.op("Abs", "x"), keepdims=0), b.constant(127))
    zero_point = b.constant(0, np.int8)
    integers = b.op("QuantizeLinear", "x", scale, zero_point)
    real = b.op("Relu", b.op("DequantizeLinear", integers, scale, zero_point))
    check(
        b.graph(b.quantize(real)),
        {"Abs": 1, "ReduceMax": 1, "Div": 1, "QuantizeLinear": 2, "DequantizeLinear": 1, "Relu": 1},
    )


def test_16_bit_integers_stay_with_the_reference() -> None:
    b = Builder()
    y = b.op("Relu", b.pair("x", 2**-10, 5, "int16"))
    check(b.graph(b.quantize(y)), {"QuantizeLinear": 2, "DequantizeLinear": 1, "Relu": 1})


@pytest.mark.parametrize("op_type", ["Relu", "Add", "Concat", "Conv", "ConvTranspose", "MaxPool"])
def test_integers_of_another_type_than_the_zero_point_are_an_error(op_type: str) -> None:
    """A broken model: bytes are expected and 16-bit integers come."""
    b = Builder()
    x = b.dequantize(b.op("Cast", "x", to=5))
    weight = b.weight(8, 8, 3, 3, axis=None)
    other = [x] if op_type in ("Add", "Concat") else [weight] if op_type.startswith("Conv") else []
    attributes: dict[str, dict[str, Any]] = {"Concat": {"axis": 0}, "MaxPool": {"kernel_shape": [2, 2]}}
    y = b.op(op_type, x, *other, **attributes.get(op_type, {}))
    with pytest.raises((TypeError, ValueError), match="int16"):
        run(fuse(b.graph(b.quantize(y, 2**-4))), {"x": np.zeros(IMAGE, np.float32)})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_wrong_images_are_an_error(op_type: str) -> None:
    axis = 0 if op_type == "Conv" else 1
    graph = fuse(product_graph(lambda b: b.weight(8, 8, 3, 3, axis=axis), op_type))
    with pytest.raises(ValueError, match=rf"{op_type}\d+_0: input of shape \(2, 7, 9, 9\), expected 8 along axis 1"):
        run(graph, {"x": np.zeros((2, 7, 9, 9), np.float32)})
    with pytest.raises(ValueError, match=r"input of shape \(2, 8, 9\), expected 4 dimensions"):
        run(graph, {"x": np.zeros((2, 8, 9), np.float32)})

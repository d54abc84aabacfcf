"""PyTorch: its quantized operators, with each of the engines that they have on x86, to uint8."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from bench.peers import channels_first, requantized_conv, requantized_matmul
from pyq.benchmark import Contender
from pyq.workloads import Conv, ConvData, MatMul, MatMulData

warnings.filterwarnings("ignore", "torch.quantize_per_tensor")  # deprecated; there is no other way yet

ENGINES = ("fbgemm", "x86", "onednn")


def matmul(shape: MatMul, data: MatMulData, threads: int) -> list[Contender]:
    """quantized::linear."""
    torch.set_num_threads(threads)
    out = requantized_matmul(data)
    x = torch._make_per_tensor_quantized_tensor(torch.from_numpy(data.activations), 1.0, 0)
    w = _weights(data.weights.data.T, np.ones(shape.n))
    return [_linear(engine, x, w, out.scale, out.zero_point, out.expected) for engine in _engines()]


def conv(shape: Conv, data: ConvData, threads: int) -> list[Contender]:
    """quantized::conv2d, channels last."""
    torch.set_num_threads(threads)
    x = torch._make_per_tensor_quantized_tensor(
        torch.from_numpy(channels_first(data.image.data.copy())), float(data.image.scale), int(data.image.zero_point)
    )
    w = _weights(data.weights.data, data.weights.scale)
    return [_conv(engine, shape, data, x, w) for engine in _engines()]


def _engines() -> list[str]:
    return [engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines]


def _weights(values: NDArray[np.int8], scale: NDArray[np.floating]) -> torch.Tensor:
    scales = torch.from_numpy(np.asarray(scale, np.float64))
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(torch.from_numpy(np.array(values, order="C")), scales, zeros, 0)


def _linear(
    engine: str, x: torch.Tensor, w: torch.Tensor, scale: float, zero_point: int, expected: NDArray[np.float64]
) -> Contender:
    torch.backends.quantized.engine = engine  # the packed weights remember whose they are
    packed = torch.ops.quantized.linear_prepack(w, None)
    linear = torch.ops.quantized.linear
    return Contender(
        f"torch {engine}",
        lambda: linear(x, packed, scale, zero_point),
        expected,
        required=False,
        read=lambda y: y.int_repr().numpy(),
    )


def _conv(engine: str, shape: Conv, data: ConvData, x: torch.Tensor, w: torch.Tensor) -> Contender:
    torch.backends.quantized.engine = engine
    placed, out = shape.placement, requantized_conv(data)
    packed = torch.ops.quantized.conv2d_prepack(w, None, placed.strides, placed.pads[:2], (1, 1), shape.group)
    conv2d = torch.ops.quantized.conv2d
    return Contender(
        f"torch {engine}",
        lambda: conv2d(x, packed, out.scale, out.zero_point),
        out.expected,
        required=False,
        read=lambda y: y.int_repr().numpy().transpose(0, 2, 3, 1),
    )

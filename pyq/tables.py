"""Unary functions of quantized tensors, as tables of 256 entries.

An 8-bit tensor has 256 values, so any function of one is a table: dequantize, function, quantize, for each
byte. Functions are evaluated in float64 and rounded once to float32, so that a table does not depend on the
last bit of a platform's mathematical library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pyq.backends import current_backend
from pyq.checks import check_activation, check_choice, check_params
from pyq.qparams import QParams, choose_qparams, dequantize_array, quantize_array
from pyq.tensor import QTensor

Function: TypeAlias = Callable[..., np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _hardsigmoid(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return np.clip(alpha * x + beta, 0, 1)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in x])


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    if check_choice("approximate", approximate, ("none", "tanh")) == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + _erf(x / math.sqrt(2)))


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x < 0, alpha * np.expm1(x), x)


FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "elu": _elu,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x, 1 / 6),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "erf": _erf,
    "softplus": lambda x: np.logaddexp(0, x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "neg": np.negative,
}
"""The named functions of `unary`, on float64 arrays, with parameters and defaults as in ONNX."""


@dataclass(frozen=True, eq=False)
class UnaryTable:
    """A function between two quantizations: call it on a QTensor, or fuse `values` into an epilogue.

    values: uint8[256], the output's byte for each byte of the input (the index is the bits of the input
    integer).
    input, output: parameters that the table was made for.
    """

    values: np.ndarray
    input: QParams
    output: QParams

    def __call__(self, x: QTensor) -> QTensor:
        """The function of `x`, whose scale, zero point and dtype must be those of `input`."""
        given = check_activation("x", x).params
        if given is not self.input and given.reals != self.input.reals:
            raise ValueError(f"x: the table is for {self.input}, got {given}")
        return QTensor.of(current_backend().lookup(x.data, self.values, self.output.dtype), self.output)


def unary_table(fn: str | Function, input: QParams, output: QParams | None = None, **parameters: Any) -> UnaryTable:
    """The table of a function: one of `FUNCTIONS` by name, or any callable of a float array.

    output: when None, chosen to cover all values that the function takes, in the dtype of the input.
    parameters: for the function, such as `alpha`. ValueError when the function gives NaN for an input that
    can occur, or an infinite value and no `output`.

    >>> int(unary_table("relu", QParams(0.5, 128), QParams(0.25)).values[130])
    4
    """
    function = FUNCTIONS[check_choice("fn", fn, tuple(FUNCTIONS))] if isinstance(fn, str) else fn
    if not callable(function):
        raise TypeError(f"fn: expected a name or a function, got {type(fn).__name__}")
    check_params("input", input)
    reals = dequantize_array(np.arange(256, dtype=np.uint8).view(input.dtype), input)
    with np.errstate(all="ignore"):
        values = np.asarray(function(reals.astype(np.float64), **parameters)).astype(np.float32)
    if values.shape != reals.shape:
        raise ValueError(f"fn: expected an element-wise function, got shape {values.shape} for {reals.shape}")
    if np.isnan(values).any():
        raise ValueError(f"fn: {fn!r} is not a number at {reals[np.isnan(values)][0]}, which x can hold")
    if output is None:
        output = choose_qparams(values.min(), values.max(), input.dtype, symmetric=False)
    check_params("output", output)
    table = quantize_array(values, output).view(np.uint8)
    table.flags.writeable = False
    return UnaryTable(table, input, output)


def unary(x: QTensor, fn: str | Function, out: QParams | None = None, **parameters: Any) -> QTensor:
    """A function of every element of `x`; bit for bit, dequantize -> function in float -> quantize.

    fn, out, parameters: as in `unary_table`.

    >>> unary(QTensor(np.array([0, 200], np.uint8), 0.1, 100), "leaky_relu", alpha=0.5).dequantize().round(1)
    array([-5., 10.], dtype=float32)
    """
    return unary_table(fn, check_activation("x", x).params, out, **parameters)(x)


def requantize(x: QTensor, out: QParams) -> QTensor:
    """The same reals with other parameters; bit for bit, dequantize -> quantize."""
    return unary(x, "identity", check_params("out", out))

"""Element-wise float operators, by ONNX name, with ONNX attribute names as keywords.

Every function computes in the type of its first argument: on float32 it is the fast float path; on float64 values
that came from float32 it gives, rounded once to float32, the correctly rounded result the int8 tables are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """Error function. float64 is exact to the last bit of `math.erf`; float32 is within 5e-7 and much faster."""
    if x.dtype != np.float32:
        return np.asarray(_erf(x)).astype(x.dtype)
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))  # Abramowitz & Stegun, Handbook, formula 7.1.26
    series = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    return np.copysign(1 - series * np.exp(-x * x), x)


def power(x: Array, exponent: Array) -> Array:
    """`x ** exponent` in the type of x; a square is a multiplication."""
    if exponent.size == 1 and exponent.ndim <= x.ndim and exponent.item() == 2:
        return x * x
    return np.power(x, exponent).astype(x.dtype, copy=False)


def divide(x: Array, y: Array) -> Array:
    """`x / y`; integers divide towards zero."""
    if x.dtype.kind not in "iu":
        return np.divide(x, y)
    return np.floor_divide(x, y) + ((x % y != 0) & ((x < 0) != (y < 0)))


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """`min(max(x, low), high)`; an absent bound does not bound."""
    return x if low is None and high is None else np.clip(x, low, high)


def maximum(*arrays: Array) -> Array:
    """Element-wise largest of any number of arrays."""
    result = arrays[0]
    for array in arrays[1:]:
        result = np.maximum(result, array)
    return result


def minimum(*arrays: Array) -> Array:
    """Element-wise smallest of any number of arrays."""
    result = arrays[0]
    for array in arrays[1:]:
        result = np.minimum(result, array)
    return result


def relu(x: Array) -> Array:
    """`max(x, 0)`."""
    return np.maximum(x, x.dtype.type(0))


def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """`x` where positive, else `alpha * x`."""
    scaled = x * x.dtype.type(alpha)
    return np.maximum(x, scaled) if 0 <= alpha <= 1 else np.where(x < 0, scaled, x)


def prelu(x: Array, slope: Array) -> Array:
    """`x` where positive, else `slope * x`."""
    return np.where(x < 0, x * slope, x)


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`."""
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """`clip(alpha * x + beta, 0, 1)`."""
    kind = x.dtype.type
    return np.clip(x * kind(alpha) + kind(beta), kind(0), kind(1))


def hard_swish(x: Array) -> Array:
    """`x * clip(x / 6 + 1/2, 0, 1)`."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """`x` where positive, else `alpha * (exp(x) - 1)`."""
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(x), x)


def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """`max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`."""
    kind = x.dtype.type
    return np.where(x < 0, kind(alpha) * np.expm1(x / kind(alpha)), x)


def selu(x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    """`gamma * elu(x)` with the constants of self-normalizing networks."""
    return x.dtype.type(gamma) * elu(x, alpha=alpha)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    """`x * P(normal <= x)`, by erf, or by tanh when `approximate` is "tanh"."""
    kind = x.dtype.type
    if approximate == "tanh":
        return kind(0.5) * x * (1 + np.tanh(kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x * x * x)))
    return kind(0.5) * x * (1 + erf(x * kind(math.sqrt(0.5))))


def softplus(x: Array) -> Array:
    """`log(1 + exp(x))`, without overflow."""
    return np.logaddexp(x, x.dtype.type(0))


def softsign(x: Array) -> Array:
    """`x / (1 + |x|)`."""
    return x / (1 + np.abs(x))


def mish(x: Array) -> Array:
    """`x * tanh(softplus(x))`."""
    return x * np.tanh(softplus(x))


def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """`x * sigmoid(alpha * x)`."""
    return x * sigmoid(x * x.dtype.type(alpha))


def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """`x` where it is above `alpha`, else 0."""
    return np.where(x > x.dtype.type(alpha), x, x.dtype.type(0))


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Add": np.add,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "Ceil": np.ceil,
    "Celu": celu,
    "Clip": clip,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Div": divide,
    "Elu": elu,
    "Erf": erf,
    "Exp": np.exp,
    "Floor": np.floor,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Log": np.log,
    "Max": maximum,
    "Min": minimum,
    "Mish": mish,
    "Mul": np.multiply,
    "Neg": np.negative,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": np.reciprocal,
    "Relu": relu,
    "Round": np.rint,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Softplus": softplus,
    "Softsign": softsign,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Swish": swish,
    "Tan": np.tan,
    "Tanh": np.tanh,
    "ThresholdedRelu": thresholded_relu,
}
"""Operators whose output element depends on the elements at the same (broadcast) place of their inputs alone."""

"""Matrix products, reductions, normalizations, comparisons and logic in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyq.normalization import layer_norm, softmax_float32

Array = np.ndarray


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """`alpha * A @ B + beta * C`, A and B transposed on request."""
    y = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1.0:
        y = (y * alpha).astype(y.dtype)
    if c is not None and beta != 0.0:
        y = y + (c if beta == 1.0 else (c * beta).astype(c.dtype))
    return y


def softmax(x: Array, *, axis: int = -1) -> Array:
    """`exp(x) / sum(exp(x))` along `axis`."""
    if x.dtype == np.float32:
        return softmax_float32(x, axis)
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """`log(softmax(x))`, without leaving the range of floats in between."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> tuple[Array, ...]:
    """Zero mean, unit variance over the axes from `axis` on, then `scale` and `bias`; also mean and 1 / deviation."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    like = x.shape[axis:]
    if x.size and x.dtype == np.float32 and scale.shape == like and (bias is None or bias.shape == like):
        return layer_norm(x, scale, bias, axis, epsilon)[:n_outputs]
    stashed = x.astype(np.float32, copy=False) if stash_type == 1 else x
    mean = stashed.mean(axis=axes, keepdims=True)
    centered = stashed - mean
    inverse = 1 / np.sqrt((centered * centered).mean(axis=axes, keepdims=True) + centered.dtype.type(epsilon))
    y = (centered * inverse).astype(x.dtype, copy=False) * scale
    if bias is not None:
        y = y + bias
    return (y, mean, inverse)[:n_outputs]


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    """The ONNX form of a NumPy reduction: axes as input or attribute, kept dimensions, reduction over nothing."""

    def reduce(
        x: Array,
        axes: Array | Sequence[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Array:
        chosen = () if axes is None else tuple(int(axis) for axis in axes)
        if not chosen and not noop_with_empty_axes:
            chosen = tuple(range(x.ndim))
        result = function(x, axis=chosen, keepdims=bool(keepdims))
        return np.asarray(result).astype(x.dtype, copy=False)

    return reduce


def _mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.mean(x, axis=axis, keepdims=keepdims, dtype=x.dtype if x.dtype.kind == "f" else None)


def _max(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.max(x, axis=axis, keepdims=keepdims, initial=_limits(x.dtype)[0])


def _min(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.min(x, axis=axis, keepdims=keepdims, initial=_limits(x.dtype)[1])


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The smallest and the largest value of a type: the largest and the smallest of no elements at all."""
    if dtype.kind in "iu":
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    return (False, True) if dtype.kind == "b" else (-np.inf, np.inf)


def _sum_square(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.sum(x * x, axis=axis, keepdims=keepdims)


def _l1(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.sum(np.abs(x), axis=axis, keepdims=keepdims)


def _l2(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.sqrt(_sum_square(x, axis, keepdims))


def _log_sum(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.log(np.sum(x, axis=axis, keepdims=keepdims))


def arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the largest element along `axis`, the first of several or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - arg_max(np.flip(x, axis), axis=axis, keepdims=keepdims)
    return np.argmax(x, axis=axis, keepdims=bool(keepdims))


def arg_min(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the smallest element along `axis`, the first of several or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - arg_min(np.flip(x, axis), axis=axis, keepdims=keepdims)
    return np.argmin(x, axis=axis, keepdims=bool(keepdims))


def modulo(x: Array, y: Array, *, fmod: int = 0) -> Array:
    """Remainder with the sign of the divisor, or of the dividend when `fmod` is 1."""
    return np.fmod(x, y) if fmod else np.mod(x, y)


def mean(*arrays: Array) -> Array:
    """Element-wise mean of any number of arrays."""
    return add_all(*arrays) / arrays[0].dtype.type(len(arrays))


def add_all(*arrays: Array) -> Array:
    """Element-wise sum of any number of arrays."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def where(condition: Array, x: Array, y: Array) -> Array:
    """Elements of `x` where the condition holds, else of `y`."""
    return np.where(condition, x, y)


OPERATORS: dict[str, Callable[..., Any]] = {
    "And": np.logical_and,
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "Equal": np.equal,
    "Gemm": gemm,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "LayerNormalization": layer_normalization,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "LogSoftmax": log_softmax,
    "MatMul": np.matmul,
    "Mean": mean,
    "Mod": modulo,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceMax": _reduction(_max),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceSumSquare": _reduction(_sum_square),
    "Softmax": softmax,
    "Sum": add_all,
    "Where": where,
    "Xor": np.logical_xor,
}

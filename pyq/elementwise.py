"""Arithmetic of two quantized tensors, and concatenation; bit for bit, dequantize -> op -> quantize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyq.backends import current_backend
from pyq.checks import check_activation, check_params
from pyq.qparams import QParams, choose_qparams, dequantize_array, normalized_axis
from pyq.tables import requantize
from pyq.tensor import QTensor


def add(a: QTensor, b: QTensor, out: QParams) -> QTensor:
    """`a + b`, with NumPy broadcasting, quantized by `out`.

    a, b: uint8 or int8, each with one scale; the types may differ. TypeError or ValueError for other
    operands.

    >>> a, b = QTensor(np.array([1, 2], np.uint8), 0.5), QTensor(np.array([3], np.int8), 1.0)
    >>> add(a, b, QParams(0.25)).data
    array([14, 16], dtype=uint8)
    """
    return _binary("add", a, b, out)


def sub(a: QTensor, b: QTensor, out: QParams) -> QTensor:
    """`a - b`; operands and result as in `add`.

    >>> sub(QTensor(np.array([4], np.uint8), 1.0), QTensor(np.array([1], np.uint8), 1.0), QParams(1.0)).data
    array([3], dtype=uint8)
    """
    return _binary("sub", a, b, out)


def mul(a: QTensor, b: QTensor, out: QParams) -> QTensor:
    """`a * b`; operands and result as in `add`.

    >>> mul(QTensor(np.array([4], np.uint8), 1.0), QTensor(np.array([3], np.uint8), 1.0), QParams(1.0)).data
    array([12], dtype=uint8)
    """
    return _binary("mul", a, b, out)


def div(a: QTensor, b: QTensor, out: QParams) -> QTensor:
    """`a / b`; operands and result as in `add`. A nonzero `a` over zero saturates; zero over zero is a
    ValueError.

    >>> div(QTensor(np.array([8], np.uint8), 1.0), QTensor(np.array([2], np.uint8), 1.0), QParams(1.0)).data
    array([4], dtype=uint8)
    """
    for name, operand in (("a", a), ("b", b)):
        check_activation(name, operand)
    zeros = a.data == a.zero_point, b.data == b.zero_point
    _check_broadcast(a, b)
    if zeros[1].any() and np.logical_and(*zeros).any():
        raise ValueError("a, b: expected no zero of a over a zero of b, got 0 / 0")
    return _binary("div", a, b, out)


def concat(tensors: Sequence[QTensor], axis: int, out: QParams | None = None) -> QTensor:
    """Join tensors along `axis`, each requantized by `out` unless it has these parameters already.

    out: when None, the parameters of the tensors where they are alike, else parameters (in the dtype of the
    first) that cover all values that any of the tensors can hold. Shapes must agree except along `axis`.

    >>> x = QTensor(np.array([1, 2], np.uint8), 0.5)
    >>> concat([x, x], axis=0).data
    array([1, 2, 1, 2], dtype=uint8)
    """
    if not isinstance(tensors, Sequence) or not tensors:
        raise TypeError(f"tensors: expected a sequence of at least one QTensor, got {tensors!r}")
    given = [check_activation(f"tensors[{i}]", tensor) for i, tensor in enumerate(tensors)]
    axis = normalized_axis(axis, given[0].ndim)
    shapes = [tensor.shape for tensor in given]
    if len({(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}) > 1:
        raise ValueError(f"tensors: expected shapes that agree except along axis {axis}, got {shapes}")
    params = _covering([tensor.params for tensor in given]) if out is None else check_params("out", out)
    parts = [tensor.data if tensor.params == params else requantize(tensor, params).data for tensor in given]
    return QTensor(np.concatenate(parts, axis), params.scale, params.zero_point)


def _binary(op: str, a: QTensor, b: QTensor, out: QParams) -> QTensor:
    for name, operand in (("a", a), ("b", b)):
        check_activation(name, operand)
    check_params("out", out)
    _check_broadcast(a, b)
    return QTensor.of(current_backend().binary(op, a.data, a.params, b.data, b.params, out), out)


def _check_broadcast(a: QTensor, b: QTensor) -> None:
    if a.shape == b.shape:
        return
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"a, b: expected shapes that broadcast, got {a.shape} and {b.shape}") from None


def _covering(all_params: Sequence[QParams]) -> QParams:
    """Parameters for all values that tensors with these parameters can hold."""
    first = all_params[0]
    if all(params == first for params in all_params):
        return first
    ends = [dequantize_array(np.array([params.qmin, params.qmax]), params) for params in all_params]
    return choose_qparams(np.min(ends), np.max(ends), first.dtype, symmetric=False)

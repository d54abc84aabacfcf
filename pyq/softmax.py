"""Softmax of quantized tensors in fixed point, so that its bits do not depend on a platform's `exp` or
summation.

With `d = max(q) - q` (an integer from 0 to 255) the exponentials are `e[d] = round(exp(-d * scale) * 2**23)`,
a table of integers; their sums are exact, and the result is `float32(e) / float32(sum of e)`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pyq.backends import current_backend
from pyq.checks import check_activation, check_params
from pyq.normalization import over_rows
from pyq.qparams import QParams, normalized_axis
from pyq.tensor import QTensor

_ONE = 1 << 23  # 23 fraction bits: e[0] and all others are exact in float32


def softmax(x: QTensor, axis: int = -1, out: QParams | None = None) -> np.ndarray | QTensor:
    """`exp(x) / sum(exp(x))` along `axis`: float32, or a QTensor quantized by `out`.

    x: uint8 or int8 with one scale; the zero point does not matter.

    >>> softmax(QTensor(np.array([3, 3], np.uint8), 0.1))
    array([0.5, 0.5], dtype=float32)
    """
    check_activation("x", x)
    axis = normalized_axis(axis, x.ndim)
    if x.shape[axis] == 0:
        raise ValueError(f"x: expected at least one element along axis {axis}, got shape {x.shape}")
    exponentials = _exponentials(float(x.scale))
    reals = over_rows(lambda rows: current_backend().softmax_of_bytes(rows, exponentials), x.data, axis)
    if out is None:
        return reals
    params = check_params("out", out)
    return QTensor.of(current_backend().quantize(reals, params), params)


@lru_cache(maxsize=256)
def _exponentials(scale: float) -> np.ndarray:
    """Of `-d * scale`, for each `d`."""
    return np.rint(np.exp(np.arange(256) * -np.float64(scale)) * _ONE).astype(np.int32)

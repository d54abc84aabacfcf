"""Products of matrices neither of which is packed beforehand, because both come with the call: of raw integers, and of
attention layers. Batches broadcast as in `numpy.matmul`.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from pyq.backends import Epilogue, Pairing, Stacks, current_backend

Batch = tuple[int, ...]


def multiply(
    a: np.ndarray,
    a_zero_point: int,
    b: np.ndarray,
    b_zero_points: np.ndarray,
    epilogue: Epilogue,
) -> np.ndarray:
    """`(a - a_zero_point) @ (b - b_zero_points)` through the epilogue, [..., M, N].

    a: uint8 or int8 [..., M, K] or [K]; b: uint8 or int8 [..., K, N]; b_zero_points: 0-d, [N], or [..., 1, N] with the
    batch of `b`.

    ValueError when shapes do not fit.
    """
    if b.ndim < 2 or a.shape[-1:] != b.shape[-2:-1]:
        raise wrong_shapes(a.shape, b.shape)
    *batch, k, n = b.shape
    if not k or not n:
        raise ValueError(f"b: expected matrices that are not empty, got shape {b.shape}")
    matrices = a.reshape(-1, k) if not batch or a.ndim == 1 else a
    whole, pairing = _pairing(matrices.shape[:-2], tuple(batch))
    stack = matrices.reshape(prod(matrices.shape[:-2]), *matrices.shape[-2:])
    zeros = np.empty((prod(b_zero_points.shape[:-2]), n), np.int32)
    zeros[...] = b_zero_points.reshape(len(zeros), -1)
    shape = (*whole, *a.shape[-2 if batch else 0 : -1], n)
    stacks = Stacks(stack, a_zero_point, b.reshape(prod(batch), k, n), zeros, pairing)
    return current_backend().multiply(stacks, epilogue).reshape(shape)


def wrong_shapes(a: Batch, b: Batch) -> ValueError:
    """What to raise for operands of a matrix product that do not fit."""
    return ValueError(f"shapes: expected [..., M, K] and [..., K, N] of the same K, got {a} and {b}")


@lru_cache(maxsize=256)
def _pairing(a: Batch, b: Batch) -> tuple[Batch, Pairing]:
    """The batch that two batches broadcast to, and which matrices meet in it."""
    try:
        whole = np.broadcast_shapes(a, b)
    except ValueError:
        whole = (0,)
    if 0 in whole:
        raise ValueError(f"shapes: expected batches that broadcast, not empty, got {a} and {b}")
    a_index, b_index = (np.broadcast_to(np.arange(prod(own)).reshape(own), whole).reshape(-1) for own in (a, b))
    order = np.argsort(b_index, kind="stable")
    first = np.searchsorted(b_index[order], np.arange(prod(b) + 1))
    return whole, Pairing(*(np.ascontiguousarray(each, np.int64) for each in (first, a_index[order], order)))

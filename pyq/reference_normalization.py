"""Softmax and layer normalization of rows in NumPy, in the order of operations of docs/numerics.md."""

from __future__ import annotations

import numpy as np

LANES, BLOCK = 16, 1024
LN2_HIGH, LN2_LOW = np.float32(355 / 512), np.float32(-2.12194440e-4)
POLYNOMIAL = np.array([1.3814321e-3, 8.3688516e-3, 4.1668400e-2, 1.6666520e-1, 4.9999994e-1], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    """Of each row of float32 [M, N]."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        # fmax passes over NaN as the kernels do; the row is NaN in the end.
        terms = exponential(x - np.fmax.reduce(x, axis=1, keepdims=True))
        return terms / blocked_sum(terms)[:, None]


def softmax_of_bytes(q: np.ndarray, exponentials: np.ndarray) -> np.ndarray:
    """`e / sum(e)` of each row of [M, N], with `e = exponentials[max(q) - q]`."""
    distance = np.subtract(q.max(axis=1, keepdims=True), q, dtype=np.int64)
    terms = exponentials[distance]
    return terms.astype(np.float32) / terms.sum(axis=1, keepdims=True, dtype=np.int64).astype(np.float32)


def layer_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of float32 [M, N]: result, mean [M] and 1 / deviation [M]."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
        count = np.float32(x.shape[1])
        mean = blocked_sum(x) / count
        centered = x - mean[:, None]
        inverse = np.float32(1) / np.sqrt(blocked_sum(centered * centered) / count + np.float32(epsilon))
        y = centered * inverse[:, None] * scale
        return y if bias is None else y + bias, mean, inverse


def exponential(t: np.ndarray) -> np.ndarray:
    """`e^t` of float32 `t <= 0`, by `t = n ln 2 + r`; 0 where n is -127."""
    t = np.maximum(t, np.float32(-88))
    n = np.rint(t * np.float32(1.44269504))
    r = (t - n * LN2_HIGH) - n * LN2_LOW
    q = np.full_like(r, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        q = q * r + coefficient
    power = np.where(n > -127, np.ldexp(np.float32(1), n.astype(np.int32)), np.float32(0))
    return (q * (r * r) + r + np.float32(1)) * power


def blocked_sum(x: np.ndarray) -> np.ndarray:
    """Sums [M] of float32 [M, N]: block by block, element i of a block in lane i % 16; then the lanes are halved."""
    total = np.zeros(len(x), np.float32)
    for start in range(0, x.shape[1], BLOCK):
        block = x[:, start : start + BLOCK]
        padded = np.pad(block, ((0, 0), (0, -block.shape[1] % LANES)))
        lanes = np.zeros((len(x), LANES), np.float32)
        for i in range(0, padded.shape[1], LANES):
            lanes = lanes + padded[:, i : i + LANES]
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        total = total + lanes[:, 0]
    return total

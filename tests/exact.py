"""Integer-exact NumPy computations that share no code with pyq, and a comparison that says where arrays differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def full_range(rng: np.random.Generator, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """Random integers over everything that `dtype` can hold."""
    limits = np.iinfo(np.dtype(dtype))
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def corners(rng: np.random.Generator, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """The smallest and the largest value of `dtype`, at random."""
    limits = np.iinfo(np.dtype(dtype))
    return rng.choice(np.array([limits.min, limits.max], dtype), shape)


def wide(x: npt.ArrayLike) -> np.ndarray:
    """`x` as int64. NumPy 1 would otherwise take `uint8 array - int64 scalar` for uint8."""
    return np.asarray(x).astype(np.int64)


def wrapped(sums: npt.ArrayLike) -> np.ndarray:
    """Integers modulo 2**32, as int32."""
    return wide(sums).astype(np.int32)


def matmul(a: np.ndarray, b: np.ndarray, za: Any = 0, zb: Any = 0) -> np.ndarray:
    """int32 `(a - za) @ (b - zb)` from int64; za and zb broadcast against a and b."""
    return wrapped(np.matmul(wide(a) - za, wide(b) - zb))


def conv(
    x: np.ndarray,
    w: np.ndarray,
    zx: int = 0,
    zw: Any = 0,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> np.ndarray:
    """int32 ONNX ConvInteger of NCHW images from int64, one kernel tap after the other; zw: one, or [M]."""
    images = np.pad(
        wide(x) - zx, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    )  # zero after the subtraction is padding with zx
    filters = wide(w) - wide(zw).reshape(-1, 1, 1, 1)
    m, depth, *kernel = w.shape
    out = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(images.shape[2:], kernel, dilations, strides, strict=True)
    ]
    acc = np.zeros((len(x), group, m // group, *out), np.int64)
    grouped = images.reshape(len(x), group, depth, *images.shape[2:])
    parts = filters.reshape(group, m // group, depth, *kernel)
    for tap in np.ndindex(*kernel):
        rows, columns = (
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilations, out, strides, strict=True)
        )
        acc += np.einsum("ngchw,gmc->ngmhw", grouped[..., rows, columns], parts[..., tap[0], tap[1]])
    return wrapped(acc.reshape(len(x), m, *out))


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    zx: int = 0,
    zw: Any = 0,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    output_padding: Sequence[int] = (0, 0),
) -> np.ndarray:
    """int32 transposed convolution of [N, C, *size] from int64: every input adds its kernel to the output.

    w: [C, M / group, *kernel]; zw: one, or [M / group].
    """
    (n, c, *size), (_, m, *kernel) = x.shape, w.shape
    kernels = (wide(w) - wide(zw).reshape(-1, *[1] * len(kernel))).reshape(group, c // group, m, *kernel)
    images = (wide(x) - zx).reshape(n, group, c // group, *size)
    numbers = list(zip(size, kernel, strides, dilations, output_padding, strict=True))
    y = np.zeros((n, group, m, *((i - 1) * s + (k - 1) * d + 1 + more for i, k, s, d, more in numbers)), np.int64)
    for place in np.ndindex(*size):
        for tap in np.ndindex(*kernel):
            at = tuple(i * s + k * d for i, k, s, d in zip(place, tap, strides, dilations, strict=True))
            every = slice(None), slice(None), slice(None)
            y[(*every, *at)] += np.einsum("ngc,gcm->ngm", images[(*every, *place)], kernels[(*every, *tap)])
    rank = len(kernel)
    kept = tuple(slice(pads[i], length - pads[i + rank]) for i, length in enumerate(y.shape[3:]))
    return wrapped(y.reshape(n, group * m, *y.shape[3:])[(slice(None), slice(None), *kept)])


def assert_same(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Equal dtype, shape and bytes; the message lists the rows and columns (last two axes) that differ."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    if actual.tobytes() == expected.tobytes():
        return
    kind = f"u{actual.dtype.itemsize}"
    different = np.ascontiguousarray(actual).view(kind) != np.ascontiguousarray(expected).view(kind)
    places = np.argwhere(different)
    *_, rows, columns = np.nonzero(np.atleast_2d(different))
    first = tuple(places[0])
    raise AssertionError(
        f"{what}: {len(places)} of {actual.size} elements differ, in rows {np.unique(rows).tolist()[:32]} and "
        f"columns {np.unique(columns).tolist()[:32]}; at {list(map(int, first))} came {actual[first]!r}, "
        f"expected {expected[first]!r}"
    )


def transposed(backend: Any, x: np.ndarray) -> np.ndarray:
    """`x` of the shape [N, A, B] as [N, B, A], by a backend."""
    out = np.empty((x.shape[0], x.shape[2], x.shape[1]), x.dtype)
    backend.transpose(x, out)
    return out

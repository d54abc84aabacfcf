"""Operators that move, select, reshape, convert or make elements. Views where NumPy can give one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.reference.ops.op_cast import cast_to

Array = np.ndarray


def cast(x: Array, *, to: TensorProto.DataType, saturate: int = 1) -> Array:
    """Elements as another type; floats out of an integer type's range become what a C conversion makes of them."""
    return cast_to(x, to, bool(saturate))


def concat(*arrays: Array, axis: int) -> Array:
    """The arrays behind each other along `axis`."""
    return np.concatenate(arrays, axis)


def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """An array of one repeated value, float32 zero by default."""
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(shape), fill.reshape(()), fill.dtype)


def expand(x: Array, shape: Array) -> Array:
    """`x` repeated to the broadcast of its own shape and `shape`; a view."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape)))


def flatten(x: Array, *, axis: int = 1) -> Array:
    """The axes before `axis` as one, and the others as one."""
    return (
        x.reshape(math.prod(x.shape[:axis]), -1)
        if x.size
        else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    )


def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The slices of `x` at `indices` along `axis`; negative indices count from the end."""
    return np.take(x, indices, axis)


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Elements of `x` at `indices` along `axis`, place by place; along other axes `indices` may be shorter."""
    axis %= x.ndim
    x = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return np.take_along_axis(x, np.where(indices < 0, indices + x.shape[axis], indices), axis)


def pad(
    x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """`x` with elements added (or, by negative pads, removed) at both ends of each of the `axes`."""
    chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    pairs = [(0, 0)] * x.ndim
    for axis, before, after in zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True):
        pairs[axis] = int(before), int(after)
    kept = tuple(slice(max(-before, 0), n - max(-after, 0)) for n, (before, after) in zip(x.shape, pairs, strict=True))
    widths = [(max(before, 0), max(after, 0)) for before, after in pairs]
    if mode != "constant":
        return np.pad(x[kept], widths, mode)  # type: ignore[call-overload]
    fill = 0 if value is None or value.size == 0 else value.item()
    return np.pad(x[kept], widths, constant_values=fill)


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """`start, start + delta, ...` up to, not including, `limit`."""
    return np.arange(start.item(), limit.item(), delta.item(), start.dtype)  # type: ignore[call-overload]


def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """`x` in another shape; 0 keeps the dimension of `x` (unless `allowzero`), one -1 is what is left."""
    return x.reshape([x.shape[i] if n == 0 and not allowzero else int(n) for i, n in enumerate(shape)])


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """The dimensions of `x` from `start` to `end`."""
    return np.array(x.shape[start:end], np.int64)


def size(x: Array) -> Array:
    """Number of elements."""
    return np.array(x.size, np.int64)


def slice_(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """A part of `x`, as Python's `x[start:end:step]` on each of the `axes`; a view."""
    index = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = i if axes is None else int(axes[i])
        step = 1 if steps is None else int(steps[i])
        if step < 0:  # a Python slice has no number for "before the first element"
            start = min(start, x.shape[axis] - 1)
            end = None if end < -x.shape[axis] else end
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def split(
    x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None, n_outputs: int
) -> tuple[Array, ...]:
    """Consecutive parts along `axis`: of the sizes `split`, or as equal as can be, the last the smallest; views."""
    part = -(-x.shape[axis] // n_outputs)
    sizes = [part] * (n_outputs - 1) if split is None else split[:-1]
    return tuple(np.split(x, np.cumsum(sizes, dtype=np.int64), axis))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """`x` without the given axes of length 1, or without all of them."""
    return np.squeeze(x, None if axes is None else tuple(np.ravel(axes).tolist()))


def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """`x` with its axes in another order, reversed by default; a view."""
    return np.transpose(x, perm)


def unsqueeze(x: Array, axes: Array) -> Array:
    """`x` with axes of length 1 inserted at the given places of the result."""
    return np.expand_dims(x, tuple(np.ravel(axes).tolist()))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Cast": cast,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Identity": lambda x: x,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": np.tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}

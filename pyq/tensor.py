"""Quantized tensors: `QTensor`, and `quantize` and `dequantize` between it and float arrays."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyq.backends import current_backend
from pyq.qparams import (
    DTYPES,
    QParams,
    as_float32,
    choose_qparams,
    described,
    normalized_axis,
    quantize_array,
    read_only,
)

__all__ = ["QParams", "QTensor", "choose_qparams", "dequantize", "quantize"]

Index: TypeAlias = int | slice | EllipsisType | None


class QTensor:
    """An integer array with its quantization parameters. Immutable: the arrays it hands out are read-only.

    data: uint8, int8 or int32 array; it is viewed, not copied. scale, zero_point, axis: as in `QParams`;
    a 1-d scale needs one entry for each index of `axis`.

    `==` compares whole tensors and gives one bool. Indexing takes integers, slices, `...` and `None`, and
    slices the scale along with the data. A float array is made only on request, by `dequantize()`.

    >>> QTensor(np.array([[1, 2], [3, 4]], np.int8), scale=[0.5, 0.25], axis=1)[:, 1].dequantize()
    array([0.5, 1. ], dtype=float32)
    """

    __slots__ = ("_data", "_params")
    __array_ufunc__ = None  # so that NumPy's operators leave the comparison with an array to __eq__
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        data: npt.ArrayLike,
        scale: npt.ArrayLike,
        zero_point: npt.ArrayLike = 0,
        axis: int | None = None,
    ) -> None:
        array = np.asarray(data)
        if array.dtype not in DTYPES:
            raise TypeError(f"data: expected uint8, int8 or int32 integers, got {array.dtype}")
        if axis is not None:
            axis = normalized_axis(axis, array.ndim)
        params = QParams(scale, zero_point, array.dtype, axis)
        if axis is not None and params.scale.size != array.shape[axis]:
            expected = f"{array.shape[axis]}, one for each index of axis {axis}"
            raise ValueError(f"scale: expected {expected}, got {params.scale.size}")
        self._data = read_only(array)
        self._params = params

    @classmethod
    def of(cls, data: np.ndarray, params: QParams) -> QTensor:
        """Integers that were made with `params`, which are known to fit: what an operation returns, now read-only.

        Only the dtype is looked at, because to check scale and zero point again takes as long as a small product.
        """
        if data.dtype != params.dtype:
            raise TypeError(f"data: expected {params.dtype}, got {data.dtype}")
        if params.saturates_early:
            return cls(data, params.scale, params.zero_point, params.axis)
        data.setflags(write=False)
        tensor = cls.__new__(cls)
        tensor._data, tensor._params = data, params
        return tensor

    @property
    def data(self) -> np.ndarray:
        """The integers, a read-only view."""
        return self._data

    @property
    def params(self) -> QParams:
        """Scale, zero point, dtype and axis as `QParams` over the full range of the dtype."""
        return self._params

    @property
    def scale(self) -> np.ndarray:
        """float32 scale, 0-d or one per index of `axis`; read-only."""
        return self._params.scale

    @property
    def zero_point(self) -> np.ndarray:
        """int32 zero point, of the same shape as `scale`; read-only."""
        return self._params.zero_point

    @property
    def axis(self) -> int | None:
        """The quantization axis, counted from the front, or None when quantized per tensor."""
        return self._params.axis

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integer type: uint8, int8 or int32."""
        return self._data.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._data.ndim

    def dequantize(self) -> np.ndarray:
        """The real values: float32 array `float32(q - zero_point) * scale`."""
        return current_backend().dequantize(self._data, self._params)

    def transpose(self, *axes: int) -> QTensor:
        """Permute the dimensions, or reverse them without arguments; `axis` moves along."""
        order = axes or tuple(reversed(range(self.ndim)))
        data = self._data.transpose(order)
        if self.axis is None:
            return QTensor.of(data, self._params)
        return QTensor(data, self.scale, self.zero_point, [a % self.ndim for a in order].index(self.axis))

    @property
    def T(self) -> QTensor:
        """The tensor with its dimensions reversed."""
        return self.transpose()

    def reshape(self, *shape: Any) -> QTensor:
        """The same elements in another shape, given as `ndarray.reshape` takes it.

        A tensor quantized along an axis keeps that axis, so the new shape must hold its extent as one
        dimension; ValueError when it would be split or merged.
        """
        data = self._data.reshape(*shape)
        if self.axis is None:
            return QTensor.of(data, self._params)
        return QTensor(data, self.scale, self.zero_point, _surviving_axis(self.shape, self.axis, data.shape))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> QTensor:
        parts = _expanded_index(index, self.ndim)
        data = self._data[(*parts, ...)]  # the ellipsis keeps a single element a 0-d view
        if self.axis is None:
            return QTensor.of(data, self._params)
        position = [i for i, part in enumerate(parts) if part is not None][self.axis]
        part = parts[position]
        axis = None
        if isinstance(part, slice):
            axis = sum(before is None or isinstance(before, slice) for before in parts[:position])
        return QTensor(data, self.scale[part], self.zero_point[part], axis)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QTensor):
            return NotImplemented
        return self._params == other._params and np.array_equal(self._data, other._data)

    def __repr__(self) -> str:
        values = np.array2string(self._data, threshold=8, edgeitems=2, separator=", ", prefix=" " * 8)
        return f"QTensor({values},\n        shape={self.shape}, {described(self._params)})"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("a QTensor is not an array: use .data (integers) or .dequantize() (reals)")

    def __reduce__(self) -> tuple[Any, ...]:
        return QTensor, (self._data, self.scale, self.zero_point, self.axis)


def quantize(
    x: npt.ArrayLike,
    dtype: npt.DTypeLike | QParams = "uint8",
    axis: int | None = None,
    symmetric: bool | None = None,
    reduce_range: bool = False,
    qmax: int | None = None,
) -> QTensor:
    """Quantize reals: `q = saturate(rne(x / scale) + zero_point)`, the division in float32.

    x: real array, taken as float32. dtype: "uint8" or "int8", with parameters chosen from the range of `x`
    (for each index of `axis`, if given) by `choose_qparams`, which explains the other arguments; or a
    `QParams` to use as it is. ValueError when `x` has a NaN, or is infinite and the range is to be chosen.

    >>> quantize([0.0, 0.5, 1.0]).data
    array([  0, 127, 255], dtype=uint8)
    """
    reals = as_float32("x", x)
    if isinstance(dtype, QParams):
        if axis is not None or symmetric is not None or reduce_range or qmax is not None:
            raise ValueError("axis, symmetric, reduce_range, qmax: not allowed when dtype is a QParams")
        params = dtype
    else:
        low, high = _range(reals, axis)
        params = choose_qparams(low, high, dtype, symmetric, reduce_range, axis=axis, qmax=qmax)
    is_bias = params.dtype == DTYPES[2]
    integers = quantize_array(reals, params) if is_bias else current_backend().quantize(reals, params)
    if params.axis is None:
        return QTensor.of(integers, params)
    return QTensor(integers, params.scale, params.zero_point, params.axis)


def dequantize(q: QTensor) -> np.ndarray:
    """The real values of a `QTensor`: float32 array `float32(q - zero_point) * scale`.

    >>> dequantize(QTensor(np.array([3, 5], np.uint8), scale=0.5, zero_point=3))
    array([0., 1.], dtype=float32)
    """
    if not isinstance(q, QTensor):
        raise TypeError(f"q: expected a QTensor, got {type(q).__name__}")
    return q.dequantize()


def _range(x: np.ndarray, axis: int | None) -> tuple[Any, Any]:
    """The smallest and the largest of 0 and all elements, or those at each index of `axis`; ValueError for NaN."""
    if axis is None:
        return current_backend().value_range(x)
    axis = normalized_axis(axis, x.ndim)
    over = tuple(i for i in range(x.ndim) if i != axis)
    low, high = x.min(axis=over, initial=0), x.max(axis=over, initial=0)
    if np.isnan(low).any():
        raise ValueError("x: expected real numbers, got NaN")
    return low, high


def _surviving_axis(old: tuple[int, ...], axis: int, new: tuple[int, ...]) -> int:
    """Where dimension `axis` of `old` is found in `new`: the same extent after equally many elements."""
    for i, extent in enumerate(new):
        if extent == old[axis] and np.prod(new[:i], dtype=int) == np.prod(old[:axis], dtype=int):
            return i
    raise ValueError(f"shape: the quantization axis {axis} of {old} must stay one dimension, got {new}")


def _expanded_index(index: Index | tuple[Index, ...], ndim: int) -> tuple[Index, ...]:
    """The index with its ellipsis spelled out, so that it names every dimension."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        basic = part is None or part is Ellipsis or isinstance(part, slice | int | np.integer)
        if not basic or isinstance(part, bool):
            raise TypeError(f"index: expected integers, slices, ... or None, got {part!r}")
    named = sum(part is not None and part is not Ellipsis for part in parts)
    ellipses = sum(part is Ellipsis for part in parts)
    if ellipses > 1 or named > ndim:
        raise IndexError(f"index: {parts} does not fit {ndim} dimensions")
    rest = (slice(None),) * (ndim - named)
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    return parts[:at] + rest + parts[at + 1 :]

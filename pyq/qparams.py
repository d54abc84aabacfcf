"""Quantization parameters, and the conversion between floats and integers that they define.

A real value is `r = scale * (q - zero_point)`, with one scale for the whole tensor or one per index of an
axis. Rounding is half to even, conversion saturates, NaN is an error: the numbers are those of ONNX
QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = tuple(np.dtype(name) for name in ("uint8", "int8", "int32"))
LIMITS = {dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in DTYPES}
"""Smallest and largest integer of each: to ask NumPy takes as long as a small product."""
FLOAT32 = struct.Struct("<f")  # the native "f" makes infinity of what is too large, and says nothing


@dataclass(frozen=True, eq=False, init=False)
class QParams:
    """How integers stand for reals: `r = scale * (q - zero_point)`, with `qmin <= q <= qmax`.

    scale: float32 array, 0-d (per tensor) or 1-d (one per index of `axis`); finite and positive.
    zero_point: int32 array of the same shape, each within the range of `dtype`.
    dtype: uint8 or int8; int32 for biases.
    axis: the quantization axis when `scale` is 1-d, else None. Negative axes count from the end.
    qmin, qmax: bounds that quantization saturates to; the full range of `dtype` unless given.

    Immutable. ValueError or TypeError when an argument breaks these rules.

    >>> QParams(0.5, 3)
    QParams(scale=0.5, zero_point=3, dtype=uint8, axis=None, qmin=0, qmax=255)
    """

    scale: np.ndarray
    zero_point: np.ndarray
    dtype: np.dtype[Any]
    axis: int | None
    qmin: int
    qmax: int

    def __init__(
        self,
        scale: npt.ArrayLike,
        zero_point: npt.ArrayLike = 0,
        dtype: npt.DTypeLike = "uint8",
        axis: int | None = None,
        qmin: int | None = None,
        qmax: int | None = None,
    ) -> None:
        integer = _quantized_dtype(dtype)
        least, most = LIMITS[integer]
        scales = _checked_scale(scale, axis)
        zeros = _checked_zero_point(zero_point, scales.shape, least, most)
        low = least if qmin is None else operator.index(qmin)
        high = most if qmax is None else operator.index(qmax)
        if not least <= low < high <= most:
            raise ValueError(f"qmin, qmax: expected {least} <= qmin < qmax <= {most}, got {low} and {high}")
        values = (scales, zeros, integer, axis, low, high)
        self.__dict__.update(zip(_FIELDS, values, strict=True))

    @classmethod
    def _of(cls, scale: float, zero_point: int, dtype: np.dtype[Any], qmin: int, qmax: int) -> QParams:
        """Parameters that are known to be right, per tensor: to check them takes as long as a small product, and so
        would the first look at what is cached.
        """
        arrays = np.array(scale, np.float32), np.array(zero_point, np.int32)
        for array in arrays:
            array.setflags(write=False)
        params = object.__new__(cls)
        params.__dict__.update(
            zip(_FIELDS, (*arrays, dtype, None, qmin, qmax), strict=True),
            numbers=(scale, zero_point, dtype == DTYPES[1]),
            saturates_early=(qmin, qmax) != LIMITS[dtype],
        )
        return params

    def aligned(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point shaped to broadcast against an array of `ndim` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[normalized_axis(self.axis, ndim)] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    @cached_property
    def identity(self) -> tuple[Hashable, ...]:
        """Equal for equal parameters, and a key of what is kept for them."""
        return self.scale.tobytes(), self.zero_point.tobytes(), self.dtype.char, self.axis, self.qmin, self.qmax

    @property
    def reals(self) -> tuple[Hashable, ...]:
        """Equal for parameters by which integers stand for the same reals, whatever their bounds."""
        return self.identity[:4]

    @cached_property
    def numbers(self) -> tuple[float, int, bool]:
        """Scale and zero point per tensor, and whether the integers are int8: what kernels take."""
        return self.scale.item(), self.zero_point.item(), self.dtype == DTYPES[1]

    @cached_property
    def saturates_early(self) -> bool:
        """Whether `qmin` and `qmax` are narrower than the range of `dtype`."""
        return (self.qmin, self.qmax) != LIMITS[self.dtype]

    def __eq__(self, other: object) -> bool:
        return self.identity == other.identity if isinstance(other, QParams) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"QParams({described(self)}, qmin={self.qmin}, qmax={self.qmax})"

    def __reduce__(self) -> tuple[Any, ...]:
        return QParams, (self.scale, self.zero_point, self.dtype, self.axis, self.qmin, self.qmax)


_FIELDS = tuple(field.name for field in fields(QParams))


def choose_qparams(
    lo: npt.ArrayLike,
    hi: npt.ArrayLike,
    dtype: npt.DTypeLike = "uint8",
    symmetric: bool | None = None,
    reduce_range: bool = False,
    *,
    axis: int | None = None,
    qmax: int | None = None,
) -> QParams:
    """Parameters that cover the reals from `lo` to `hi` (scalars, or 1-d arrays with `axis`), and 0.

    symmetric: zero point in the middle of the range (0 for int8); by default for int8 only. The range is then
    [-127, 127] for int8. Otherwise scale and zero point are those of ONNX DynamicQuantizeLinear, in float32.
    reduce_range: 7 bits: uint8 up to 127, int8 symmetric within [-64, 64], asymmetric within [-64, 63].
    qmax: the largest integer to use, instead of `reduce_range`.

    A range of zero width has scale 1. ValueError when a bound is not finite, or `lo > hi`.

    >>> choose_qparams(-1.0, 3.0).zero_point
    array(64, dtype=int32)
    """
    integer = _quantized_dtype(dtype)
    if integer == np.int32:
        raise ValueError("dtype: expected uint8 or int8, got int32")
    if symmetric is None:
        symmetric = integer == np.int8
    bottom, top = _integer_range(integer, symmetric, reduce_range, qmax)
    middle = None if not symmetric else 0 if integer == np.int8 else (top + 1) // 2
    if isinstance(lo, float) and isinstance(hi, float) and axis is None:
        return QParams._of(*_one_scale(lo, hi, bottom, top, middle), integer, bottom, top)
    return QParams(*_scales(*_range_with_zero(lo, hi), bottom, top, middle), integer, axis, bottom, top)


def _one_scale(lo: float, hi: float, bottom: int, top: int, middle: int | None) -> tuple[float, int]:
    """Scale and zero point (`middle`, if given) of one range; the same numbers as `_scales`.

    A dynamic layer chooses them at every call, and an operation on an array of one number takes as long as all of
    this. Each operation here is one in float64, rounded: that gives the bits of float32, since 53 >= 2 * 24 + 2
    (Figueroa, When is double rounding innocuous?, 1995).
    """
    try:
        low, high = _rounded(lo), _rounded(hi)
    except OverflowError:
        low, high = -math.inf, math.inf
    _check_range(lo, hi, math.isfinite(low) and math.isfinite(high), low <= high)
    low, high = min(low, 0.0), max(high, 0.0)
    try:
        scale = _rounded(_rounded(high - low) / (top - bottom) if middle is None else max(-low, high) / (top - middle))
    except OverflowError:
        raise _too_wide(lo, hi) from None
    scale = scale or 1.0
    if middle is not None:
        return scale, middle
    return scale, round(min(max(_rounded(bottom - _rounded(low / scale)), bottom), top))


def _rounded(x: float) -> float:
    """The nearest float32; OverflowError when `x` is finite and that is not."""
    nearest: float = FLOAT32.unpack(FLOAT32.pack(x))[0]
    return nearest


def _scales(
    low: np.ndarray, high: np.ndarray, bottom: int, top: int, middle: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points (`middle`, if given) of ranges with 0 in them."""
    with np.errstate(over="ignore", under="ignore"):
        if middle is None:
            scale = np.asarray((high - low) / np.float32(top - bottom))
        else:
            scale = np.asarray(np.maximum(-low, high) / np.float32(top - middle))
        if not np.isfinite(scale).all():
            raise _too_wide(low, high)
        scale = np.where(scale > 0, scale, np.float32(1))
        if middle is not None:
            return scale, np.full(scale.shape, middle)
        return scale, np.rint(np.clip(np.float32(bottom) - low / scale, bottom, top)).astype(np.int32)


def quantize_array(x: np.ndarray, params: QParams) -> np.ndarray:
    """Integers of `params.dtype` for float32 `x`, in the memory order of `x`; ValueError on NaN."""
    scale, zero_point = params.aligned(x.ndim)
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.rint(np.asarray(x / scale))
    if np.isnan(rounded).any():
        raise ValueError("x: expected real numbers, got NaN")
    # In float64 the sum with a zero point is exact, and so are the bounds of int32.
    integers = np.clip(rounded.astype(np.float64) + zero_point, params.qmin, params.qmax)
    return np.asarray(integers.astype(params.dtype))


def dequantize_array(q: np.ndarray, params: QParams) -> np.ndarray:
    """Reals for integers `q`, as float32, in the memory order of `q`."""
    scale, zero_point = params.aligned(q.ndim)
    difference = np.subtract(q, zero_point, dtype=np.int64)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(difference.astype(np.float32) * scale)


def as_float32(name: str, x: npt.ArrayLike) -> np.ndarray:
    """`x` as an aligned float32 array; TypeError naming the argument when it does not hold real numbers."""
    array = np.asarray(x)
    if array.dtype == np.float32 and array.flags.aligned:
        return array
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore", under="ignore"):
        reals = array.astype(np.float32, copy=False)
    return reals if reals.flags.aligned else reals.copy()


def normalized_axis(axis: int, ndim: int) -> int:
    """`axis` counted from the front; ValueError when there is no such dimension."""
    if not -ndim <= operator.index(axis) < ndim:
        raise ValueError(f"axis: expected {-ndim} to {ndim - 1} for {ndim} dimensions, got {axis}")
    return axis % ndim


def described(params: QParams) -> str:
    """The fields that QParams and QTensor show alike."""

    def shown(array: np.ndarray) -> str:
        return np.array2string(array, threshold=6, edgeitems=2, separator=", ")

    scale, zero_point = shown(params.scale), shown(params.zero_point)
    return f"scale={scale}, zero_point={zero_point}, dtype={params.dtype}, axis={params.axis}"


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of the array that cannot be written through."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


def _quantized_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype as one of uint8, int8, int32."""
    try:
        integer = np.dtype(dtype)
    except TypeError:
        integer = None  # a name NumPy does not know: reported below, like every other wrong dtype
    if integer not in DTYPES:
        raise ValueError(f"dtype: expected uint8, int8 or int32, got {dtype!r}")
    return integer


def _checked_scale(scale: npt.ArrayLike, axis: int | None) -> np.ndarray:
    scales = as_float32("scale", scale)
    if scales.ndim != (0 if axis is None else 1):
        allowed = "a single number without an axis, a 1-d array with one"
        raise ValueError(f"scale: expected {allowed}, got shape {scales.shape} and axis {axis}")
    fine = 0 < scales.item() < math.inf if axis is None else (np.isfinite(scales) & (scales > 0)).all()
    if not fine:
        raise ValueError(f"scale: expected finite float32 numbers above 0, got {scale!r}")
    return read_only(scales)


def _checked_zero_point(zero_point: npt.ArrayLike, shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
    zeros = np.asarray(zero_point)
    if zeros.dtype.kind not in "iu" and zeros.size:
        raise TypeError(f"zero_point: expected integers, got {zeros.dtype}")
    if zeros.shape not in ((), shape):
        raise ValueError(f"zero_point: expected one, or as many as scales {shape}, got shape {zeros.shape}")
    fine = least <= zeros.item() <= most if zeros.shape == () else ((zeros >= least) & (zeros <= most)).all()
    if not fine:
        raise ValueError(f"zero_point: expected {least} to {most}, got {zero_point!r}")
    integers = zeros.astype(np.int32)
    return read_only(integers if integers.shape == shape else np.broadcast_to(integers, shape))


def _range_with_zero(lo: npt.ArrayLike, hi: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The bounds as float32, checked, and moved so that 0 is between them."""
    low, high = as_float32("lo", lo), as_float32("hi", hi)
    finite = np.isfinite(low).all() and np.isfinite(high).all()
    _check_range(lo, hi, bool(finite), not (low > high).any())
    return np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))


def _check_range(lo: npt.ArrayLike, hi: npt.ArrayLike, finite: bool, ordered: bool) -> None:
    if not finite:
        raise ValueError(f"lo, hi: expected finite float32 numbers, got {lo!r} to {hi!r}")
    if not ordered:
        raise ValueError(f"lo, hi: expected lo <= hi, got {lo!r} and {hi!r}")


def _too_wide(lo: npt.ArrayLike, hi: npt.ArrayLike) -> ValueError:
    return ValueError(f"lo, hi: the width of the range overflows float32, got {lo!r} to {hi!r}")


def _integer_range(dtype: np.dtype[Any], symmetric: bool, reduce_range: bool, qmax: int | None) -> tuple[int, int]:
    """(qmin, qmax) to use for a dtype; see `choose_qparams`."""
    if qmax is not None and reduce_range:
        raise ValueError("qmax, reduce_range: each sets the range, give one of them")
    signed = dtype == np.int8
    if reduce_range:
        qmax = 127 if not signed else 64 if symmetric else 63
    largest = LIMITS[dtype][1]
    top = operator.index(qmax) if qmax is not None else largest
    if not 0 < top <= largest:
        raise ValueError(f"qmax: expected 1 to {largest} for {dtype}, got {qmax}")
    if not signed:
        return 0, top
    return (-top if symmetric else -top - 1), top

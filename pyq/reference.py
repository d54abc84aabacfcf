"""The oracle: integer-exact NumPy versions of every operation, short and obvious, and the float convolution.

Integer products are summed in float64, so that BLAS does the work, and yet exactly: a product of two 8-bit
differences is at most 255 * 255, so every partial sum of K of them, in any order, is an integer of at most
K * 65025, and float64 holds all integers up to 2**53: enough for any K below 1.3e11. The sums are then
reduced modulo 2**32, which is what int32 accumulators that wrap around give.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyq import reference_normalization, reference_pool
from pyq.geometry import Placement
from pyq.qparams import QParams, dequantize_array, quantize_array

if TYPE_CHECKING:
    from pyq.backends import ConvGeometry, Epilogue, Residual, Stacks
    from pyq.packing import PackedWeight

_ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def matmul_integer(
    a: np.ndarray, b: np.ndarray, a_zero_point: npt.ArrayLike = 0, b_zero_point: npt.ArrayLike = 0
) -> np.ndarray:
    """int32 `sum_k (a[m, k] - a_zero_point) * (b[k, n] - b_zero_point)`, modulo 2**32.

    a: 8-bit integers [..., M, K]; b: [..., K, N]; the zero points broadcast against them.

    >>> matmul_integer(np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.int8), 1)
    array([[4]], dtype=int32)
    """
    return _wrapped(np.matmul(_difference(a, a_zero_point), _difference(b, b_zero_point)))


def conv_integer(
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: int = 0,
    w_zero_point: npt.ArrayLike = 0,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> np.ndarray:
    """int32 convolution of 8-bit integers, modulo 2**32; padding has the value `x_zero_point`.

    x: [N, C, *spatial]; w: [M, C / group, *kernel], with one zero point or one for each of the M filters; the
    other arguments as in `conv_float`. Returns [N, M, *out].
    """
    w_zero_point = np.asarray(w_zero_point)
    if w_zero_point.ndim:
        w_zero_point = w_zero_point.reshape(-1, *[1] * (w.ndim - 1))
    differences = _difference(x, x_zero_point), _difference(w, w_zero_point)
    return _wrapped(conv_float(*differences, None, strides, pads, dilations, group))


def conv_float(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> np.ndarray:
    """Convolution as in ONNX Conv, through im2col and BLAS, in the float type of the operands.

    x: [N, C, *spatial]; w: [M, C / group, *kernel]; bias: [M]; any number of spatial dimensions. strides and
    dilations: one per spatial dimension, 1 by default; pads: all begins, then all ends, 0 by default. Returns
    [N, M, *out]. ValueError when the kernel does not fit the padded input.
    """
    rank = x.ndim - 2
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * 2 * rank
    if any(pads):
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    (batch, channels), (filters, *kernel) = x.shape[:2], (w.shape[0], *w.shape[2:])
    view = windows(x, kernel, strides, dilations)
    out = view.shape[2 + rank :]
    depth = channels // group * prod(kernel)
    columns = view.reshape(batch, group, depth, prod(out))
    y = np.matmul(w.reshape(group, filters // group, depth), columns).reshape(batch, filters, *out)
    if bias is not None:
        y += bias.reshape(-1, *[1] * rank)
    return y


def windows(x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """View [N, C, *kernel, *out] of `x` [N, C, *spatial]: element (k, o) is `x[o * stride + k * dilation]`.

    ValueError when the kernel does not fit `x`.
    """
    sizes, steps = x.shape[2:], x.strides[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(n < r for n, r in zip(sizes, reach, strict=True)):
        raise ValueError(f"x: spatial size {sizes} is less than the {tuple(reach)} that the kernel covers")
    out = [(n - r) // s + 1 for n, r, s in zip(sizes, reach, strides, strict=True)]
    moves = [step * d for step, d in zip(steps, dilations, strict=True)]
    moves += [step * s for step, s in zip(steps, strides, strict=True)]
    shape = (*x.shape[:2], *kernel, *out)
    return np.lib.stride_tricks.as_strided(x, shape, (*x.strides[:2], *moves), writeable=False)


def requantize(acc: np.ndarray, epilogue: Epilogue, residual: np.ndarray | None = None) -> np.ndarray:
    """The integers or floats that an epilogue (`pyq.backends.Epilogue`) makes of int32 `acc` [..., N].

    residual: uint8 or int8 in the shape of `acc`, for an epilogue that adds one.
    """
    if epilogue.bias is not None:
        acc = acc + epilogue.bias
    if epilogue.dtype == np.int32:
        return acc
    y = acc.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        if epilogue.multiplier is not None:
            y = y * epilogue.multiplier
        if epilogue.dtype == np.float32:
            y = y if epilogue.offset is None else y + epilogue.offset
            bounded = epilogue.low is not None or epilogue.high is not None
            return np.clip(y, epilogue.low, epilogue.high, dtype=np.float32) if bounded else y
    if epilogue.residual is not None and residual is not None:
        y = _summed(y, epilogue.residual, residual)
    limits, zero = np.iinfo(epilogue.dtype), epilogue.zero_point
    low = limits.min if epilogue.low is None else epilogue.low
    high = limits.max if epilogue.high is None else epilogue.high
    integers = _clamped(y, low, high, zero).astype(epilogue.dtype)
    return integers if epilogue.table is None else _looked_up(integers, epilogue.table, epilogue.dtype)


def _clamped(y: np.ndarray, low: float, high: float, zero_point: int) -> np.ndarray:
    """`rne(clamp(y)) + zero_point`, int32, with the bounds low and high."""
    rounded = np.rint(np.clip(y, np.float32(low - zero_point), np.float32(high - zero_point)))
    return rounded.astype(np.int32) + zero_point


def _summed(y: np.ndarray, residual: Residual, operand: np.ndarray) -> np.ndarray:
    """The product quantized and dequantized, plus the dequantized `operand`; float32 in units of the sum."""
    product = residual.product
    integers = _clamped(y, product.qmin, product.qmax, int(product.zero_point)).astype(product.dtype)
    with np.errstate(over="ignore", under="ignore"):
        total = dequantize_array(integers, product) + dequantize_array(operand, residual.operand)
        return total / np.float32(residual.scale)


class ReferenceBackend:
    """`pyq.backends.Backend` in plain NumPy: it works on the unpacked weights and knows nothing of panels."""

    name = "reference"

    def matmul(
        self,
        x: np.ndarray,
        x_zero_point: int,
        w: PackedWeight,
        epilogue: Epilogue,
        out: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Product [M, K] x [K, N] through the epilogue, [M, N]."""
        _check_amax(x, w.amax)
        acc = matmul_integer(x, w.unpack(), x_zero_point, w.zero_point)
        return _stored(requantize(acc, epilogue, residual), out)

    def matmul_dynamic(
        self,
        x: np.ndarray,
        w: PackedWeight,
        offset: np.ndarray | None,
        low: float,
        high: float,
        out: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """None: the caller goes step by step."""
        return None

    def multiply(self, stacks: Stacks, epilogue: Epilogue) -> np.ndarray:
        """The product of each pair of matrices through the epilogue, [P, M, N]."""
        a, a_zero_point, b, b_zero_points, (first, left, right) = stacks
        owners = np.repeat(np.arange(len(b)), np.diff(first))
        zeros = np.broadcast_to(b_zero_points, (len(b), b.shape[2]))[owners, None]
        acc = np.empty((len(owners), a.shape[1], b.shape[2]), np.int32)
        acc[right] = matmul_integer(a[left], b[owners], a_zero_point, zeros)
        return requantize(acc, epilogue)

    def conv(
        self,
        x: np.ndarray,
        x_zero_point: int,
        w: PackedWeight,
        geometry: ConvGeometry,
        epilogue: Epilogue,
        out: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Convolution of channels-last images through the epilogue, channels last."""
        _check_amax(x, w.amax)
        place = geometry.strides, geometry.pads, geometry.dilations, w.group
        acc = conv_integer(np.moveaxis(x, -1, 1), w.unpack(), x_zero_point, w.zero_point, *place)
        return _stored(requantize(np.ascontiguousarray(np.moveaxis(acc, 1, -1)), epilogue, residual), out)

    def lookup(
        self, x: np.ndarray, table: np.ndarray, dtype: npt.DTypeLike, out: np.ndarray | None = None
    ) -> np.ndarray:
        """`table[byte]` for each byte of `x`, viewed as `dtype`, in the memory order of `x`."""
        return _stored(_looked_up(x, table, dtype), out)

    def binary(
        self,
        op: str,
        a: np.ndarray,
        a_params: QParams,
        b: np.ndarray,
        b_params: QParams,
        out_params: QParams,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Dequantize, `op` ("add", "sub", "mul" or "div") in float32 with broadcasting, quantize."""
        with np.errstate(all="ignore"):
            reals = _ARITHMETIC[op](dequantize_array(a, a_params), dequantize_array(b, b_params))
        return _stored(quantize_array(reals, out_params), out)

    def quantize(self, x: np.ndarray, params: QParams, out: np.ndarray | None = None) -> np.ndarray:
        """float32 to the integers of `params`."""
        return _stored(quantize_array(x, params), out)

    def dequantize(self, q: np.ndarray, params: QParams, out: np.ndarray | None = None) -> np.ndarray:
        """Integers to float32."""
        return _stored(dequantize_array(q, params), out)

    def requantize(
        self,
        acc: np.ndarray,
        epilogue: Epilogue,
        out: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Apply an epilogue to int32 accumulators [..., N]."""
        return _stored(requantize(acc, epilogue, residual), out)

    def value_range(self, x: np.ndarray) -> tuple[float, float]:
        """Smallest and largest of 0 and the elements."""
        if np.isnan(x).any():
            raise ValueError("x: expected real numbers, got NaN")
        return float(x.min(initial=0)) + 0.0, float(x.max(initial=0)) + 0.0  # never -0

    def max_pool(self, x: np.ndarray, placement: Placement) -> np.ndarray:
        """Maxima of images [N, *spatial, C]."""
        return reference_pool.max_pool(x, placement)

    def average_pool(
        self, x: np.ndarray, params: QParams, placement: Placement, include_pad: bool, out_params: QParams
    ) -> np.ndarray:
        """Means of images [N, *spatial, C]."""
        return reference_pool.average_pool(x, params, placement, include_pad, out_params)

    def transpose(self, x: np.ndarray, out: np.ndarray) -> None:
        """[N, A, B] to [N, B, A]."""
        out[...] = x.transpose(0, 2, 1)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        """Of each row."""
        return reference_normalization.softmax(x)

    def softmax_of_bytes(self, q: np.ndarray, exponentials: np.ndarray) -> np.ndarray:
        """Of each row, by the exponentials of the distances to the largest element."""
        return reference_normalization.softmax_of_bytes(q, exponentials)

    def layer_norm(
        self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, epsilon: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row; also mean and 1 / deviation."""
        return reference_normalization.layer_norm(x, scale, bias, epsilon)


def _check_amax(x: np.ndarray, amax: int) -> None:
    """Refuse what weights packed for `amax` do not allow; other backends could not be exact there."""
    low = 0 if x.dtype == np.uint8 else -((amax + 1) // 2)
    if x.size and not low <= x.min() <= x.max() <= low + amax:
        allowed = f"{low} to {low + amax} (amax={amax})"
        raise ValueError(f"x: expected values from {allowed}, as packed, got {x.min()} to {x.max()}")


def _difference(q: np.ndarray, zero_point: npt.ArrayLike) -> np.ndarray:
    """`q - zero_point`, exact in float64."""
    return q.astype(np.float64) - np.asarray(zero_point, np.float64)


def _wrapped(sums: np.ndarray) -> np.ndarray:
    """Integers held in float64, reduced modulo 2**32 to int32."""
    return sums.astype(np.int64).astype(np.int32)


def _looked_up(x: np.ndarray, table: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    result = np.empty_like(x, dtype=dtype)
    result.view(np.uint8)[...] = table[x.view(np.uint8)]
    return result


def _stored(result: Any, out: np.ndarray | None) -> np.ndarray:
    """The result, in `out` where that is given."""
    if out is None:
        return result
    out[...] = result
    return out

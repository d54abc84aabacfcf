"""What the C and the Numba backend have in common: everything but the loops.

A subclass supplies the kernels, on memory that :mod:`pyq.lowering` has arranged: rows and offsets for products, flat
runs of elements for the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyq import lowering, reference_pool
from pyq.backends import ConvGeometry, Epilogue, Stacks
from pyq.geometry import Placement
from pyq.lowering import BinaryLines, ConvPlace, LoweredEpilogue, Walk
from pyq.packing import PackedWeight
from pyq.pool_windows import Windows, windows
from pyq.qparams import QParams, dequantize_array, quantize_array
from pyq.windows import taps_for

LARGEST_WINDOW = 2**22
"""Elements whose sum is sure to fit 32 bits, zero points subtracted or not."""


SHORT_RUN = 1024
"""Elements with one scale for which a call of a kernel takes longer than NumPy."""


Taps: TypeAlias = NDArray[np.int16] | None


class Product(Protocol):
    """Computes ``out`` from activations of the shape and dtype it was prepared for; their number is free.

    All arrays are contiguous. Kept by the weight ``w``, which it is given and does not hold.
    """

    def __call__(self, x: NDArray[Any], w: PackedWeight, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        """ValueError when an activation is above what ``w`` was packed for."""


class KernelBackend(ABC):
    """See :class:`pyq.backends.Backend`, which this implements by the abstract methods below."""

    name: str

    @abstractmethod
    def prepare(self, epilogue: Epilogue, lowered: LoweredEpilogue, columns: int) -> Any:
        """The epilogue as the kernels take it; made once for an epilogue, a weight and a zero point."""

    @abstractmethod
    def prepare_product(
        self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, place: ConvPlace, epilogue: Epilogue, taps: Taps
    ) -> Product:
        """The product of ``w`` with images, or rows, like ``x``: of its dtype and shape, but any number of them.

        ``taps``: see :func:`pyq.windows.taps_for`.
        """

    @abstractmethod
    def finish(self, acc: NDArray[np.int32], prepared: Any, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        """The epilogue of accumulators ``[M, N]``."""

    @abstractmethod
    def lookup_run(self, x: NDArray[np.uint8], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """``table[x]``."""

    @abstractmethod
    def quantize_run(
        self, x: NDArray[np.float32], scale: float, zero_point: int, low: int, high: int, out: NDArray[np.uint8]
    ) -> bool:
        """Quantize, clamped to ``[low, high]`` before ``zero_point`` is added; returns whether there was a NaN."""

    @abstractmethod
    def dequantize_run(
        self, q: NDArray[np.uint8], is_signed: bool, scale: float, zero_point: int, out: NDArray[np.float32]
    ) -> None:
        """Dequantize the bytes of uint8 or int8 values."""

    @abstractmethod
    def range_run(self, x: NDArray[np.float32]) -> tuple[float, float, bool]:
        """The smallest and the largest of 0 and all elements but NaN; whether there was a NaN."""

    @abstractmethod
    def pool_max(self, x: NDArray[Any], windows: Windows, out: NDArray[Any]) -> None:
        """Maxima of ``[N, *spatial, C]``, not empty."""

    @abstractmethod
    def pool_average(
        self,
        x: NDArray[Any],
        params: QParams,
        windows: Windows,
        out_params: QParams,
        out: NDArray[Any],
    ) -> None:
        """Means of ``[N, *spatial, C]``, not empty."""

    @abstractmethod
    def transpose(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """See the protocol, as for the rest."""

    @abstractmethod
    def softmax(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...

    @abstractmethod
    def softmax_of_bytes(self, q: NDArray[Any], exponentials: NDArray[np.int32]) -> NDArray[np.float32]: ...

    @abstractmethod
    def layer_norm(
        self, x: NDArray[np.float32], scale: NDArray[np.float32], bias: NDArray[np.float32] | None, epsilon: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...

    @abstractmethod
    def binary_lines(self, op: str, a: BinaryLines, b: BinaryLines, params: QParams, out: NDArray[np.uint8]) -> None:
        """Arithmetic on two operands of the same shape; ``out`` is flat."""

    def matmul(
        self,
        x: NDArray[Any],
        x_zero_point: int,
        w: PackedWeight,
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
        residual: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See the protocol."""
        key = self, epilogue, x_zero_point, x.dtype
        product = w.kept.get(key) or w.keep(key, self._matrix_product(x, x_zero_point, w, epilogue))
        written = np.empty((len(x), w.columns), epilogue.dtype) if out is None else _destination(out)
        product(np.ascontiguousarray(x), w, written, None if residual is None else np.ascontiguousarray(residual))
        return written if out is None else _result(written, out)

    def matmul_dynamic(
        self,
        x: NDArray[np.float32],
        w: PackedWeight,
        offset: NDArray[np.float32] | None,
        low: float,
        high: float,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """See the protocol."""
        return None

    @abstractmethod
    def multiply(self, stacks: Stacks, epilogue: Epilogue) -> NDArray[Any]:
        """See the protocol."""

    def _matrix_product(self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, epilogue: Epilogue) -> Product:
        """Of rows taken as images of one pixel."""
        place = ConvPlace((1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1), w.offsets())
        return self.prepare_product(x, x_zero_point, w, place, epilogue, None)

    def conv(
        self,
        x: NDArray[Any],
        x_zero_point: int,
        w: PackedWeight,
        geometry: ConvGeometry,
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
        residual: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See the protocol."""
        key = self, epilogue, x_zero_point, x.dtype, x.shape, geometry
        shape, product = w.kept.get(key) or w.keep(key, self._convolution(x, x_zero_point, w, geometry, epilogue))
        written = np.empty(shape, epilogue.dtype) if out is None else _destination(out)
        product(np.ascontiguousarray(x), w, written, None if residual is None else np.ascontiguousarray(residual))
        return written if out is None else _result(written, out)

    def _convolution(
        self, x: NDArray[Any], x_zero_point: int, w: PackedWeight, geometry: ConvGeometry, epilogue: Epilogue
    ) -> tuple[tuple[int, ...], Product]:
        """The shape of the result, and what computes it."""
        place = lowering.place_conv(x.shape, w, geometry, x_zero_point + lowering.activation_shift(x.dtype, w.amax))
        taps = taps_for(w, geometry, epilogue)
        product = self.prepare_product(x, x_zero_point, w, place, epilogue, taps)
        size = geometry.output_size(x.shape[1:-1], w.shape[2:])
        return (len(x), *size, w.columns), product

    def epilogue_of(self, epilogue: Epilogue, w: PackedWeight, zero_point: int) -> Any:
        """``prepare`` for the products of ``w`` with activations whose zero point, shifted, is ``zero_point``."""
        correction = lowering.zero_point_correction(w, zero_point)
        return self.prepare(epilogue, lowering.lower_epilogue(epilogue, w.columns, correction), w.columns)

    def requantize(
        self,
        acc: NDArray[np.int32],
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
        residual: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See the protocol."""
        written = np.empty(acc.shape, epilogue.dtype) if out is None else _destination(out)
        if acc.size:
            columns = acc.shape[-1]
            prepared = self.prepare(epilogue, lowering.lower_epilogue(epilogue, columns), columns)
            sums = np.ascontiguousarray(acc).reshape(-1, columns)
            self.finish(sums, prepared, written, None if residual is None else np.ascontiguousarray(residual))
        return _result(written, out)

    def lookup(
        self, x: NDArray[Any], table: NDArray[np.uint8], dtype: np.dtype[Any], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """See the protocol."""
        walk = Walk.along(x)
        target = walk.target(out, dtype)
        self.lookup_run(walk.flat(x).view(np.uint8), table, target.view(np.uint8))
        return walk.result(target, out)

    def quantize(self, x: NDArray[np.float32], params: QParams, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See the protocol."""
        walk = Walk.along(x)
        if walk.run(params) < SHORT_RUN and params.axis is not None:
            return _result(quantize_array(x, params), out)
        source, target = walk.flat(x), walk.target(out, params.dtype)
        found_nan = False
        for part, scale, zero_point in walk.slices(params):
            low, high = params.qmin - zero_point, params.qmax - zero_point
            found_nan |= self.quantize_run(source[part], scale, zero_point, low, high, target[part].view(np.uint8))
        if found_nan:
            raise ValueError("x: expected real numbers, got NaN")
        return walk.result(target, out)

    def dequantize(
        self, q: NDArray[Any], params: QParams, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See the protocol."""
        walk = Walk.along(q)
        short = walk.run(params) < SHORT_RUN and params.axis is not None
        if q.dtype == np.int32 or short:  # int32: biases, which are few
            return _result(dequantize_array(q, params), out)
        source, target = walk.flat(q).view(np.uint8), walk.target(out, np.dtype(np.float32))
        for part, scale, zero_point in walk.slices(params):
            self.dequantize_run(source[part], q.dtype == np.int8, scale, zero_point, target[part])
        return walk.result(target, out)

    def binary(
        self,
        op: str,
        a: NDArray[Any],
        a_params: QParams,
        b: NDArray[Any],
        b_params: QParams,
        out_params: QParams,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See the protocol."""
        walk, first, second = lowering.lower_binary(op, a, a_params, b, b_params)
        target = walk.target(out, out_params.dtype)
        if target.size:
            self.binary_lines(op, first, second, out_params, target.view(np.uint8))
        return walk.result(target, out)

    def value_range(self, x: NDArray[np.float32]) -> tuple[float, float]:
        """See the protocol."""
        low, high, found_nan = self.range_run(Walk.along(x).flat(x))
        if found_nan:
            raise ValueError("x: expected real numbers, got NaN")
        return low, high

    def max_pool(self, x: NDArray[Any], placement: Placement) -> NDArray[Any]:
        """See the protocol."""
        out = np.empty((len(x), *placement.out, x.shape[-1]), x.dtype)
        if out.size:
            self.pool_max(x, windows(x.shape[1:-1], x.shape[-1], placement), out)
        return out

    def average_pool(
        self, x: NDArray[Any], params: QParams, placement: Placement, include_pad: bool, out_params: QParams
    ) -> NDArray[Any]:
        """See the protocol."""
        if prod(placement.kernel) > LARGEST_WINDOW:
            return reference_pool.average_pool(x, params, placement, include_pad, out_params)
        out = np.empty((len(x), *placement.out, x.shape[-1]), out_params.dtype)
        if out.size:
            found = windows(x.shape[1:-1], x.shape[-1], placement, include_pad)
            self.pool_average(x, params, found, out_params, out)
        return out


def _destination(out: NDArray[Any]) -> NDArray[Any]:
    """Where the kernel writes: ``out`` when it is contiguous, else memory of its own."""
    return out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)


def _result(written: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None or out is written:
        return written
    out[...] = written
    return out

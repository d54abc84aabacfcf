"""The one protocol that every kernel provider follows, and the choice between the three that exist.

``c`` (hand-written SIMD), ``numba`` (the same kernels, compiled at run time) and ``reference`` (plain NumPy, the
oracle) return identical bytes for every operation. Arguments are integers and float32 arrays that
:mod:`pyq.ops` has checked; a backend trusts them.
"""

from __future__ import annotations

import contextvars
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyq.geometry import Placement
    from pyq.packing import PackedWeight
    from pyq.tensor import QParams

BACKENDS = ("c", "numba", "reference")
ISA_NAMES = ("scalar", "avx2", "avx512vnni")


@dataclass(frozen=True, eq=False)
class Residual:
    """What an epilogue adds before it stores: the other operand of an Add behind the product, as in a residual block.

    ``product``: parameters by which the product is quantized first, its bounds included; ``operand``: those of the
    array that comes with each call; ``scale``: of the sum.
    """

    product: QParams
    operand: QParams
    scale: float


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What happens to an int32 accumulator before it is stored (see docs/numerics.md, "Requantize").

    ``dtype`` int32 stores ``acc + bias``; float32 stores ``float32(acc + bias) * multiplier + offset`` clamped to
    ``[low, high]``; uint8 and int8 store ``rne(clamp(float32(acc + bias) * multiplier)) + zero_point`` where the clamp
    is ``[low, high]`` in the quantized domain, and then, if ``table`` is given, ``table[byte]``. With a ``residual``
    the multiplier leads to the integers of ``residual.product``, and all else is about the sum; see
    :func:`residual_epilogue`.
    """

    dtype: np.dtype[Any]
    bias: NDArray[np.int32] | None = None
    multiplier: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None
    zero_point: int = 0
    low: float | None = None
    high: float | None = None
    table: NDArray[np.uint8] | None = None
    residual: Residual | None = None


def requantize_epilogue(
    x_scale: float | NDArray[np.float32],
    w_scale: float | NDArray[np.float32],
    out: QParams,
    bias: NDArray[np.int32] | None = None,
    low: float | None = None,
    high: float | None = None,
    table: NDArray[np.uint8] | None = None,
) -> Epilogue:
    """The epilogue of ``int8 op -> int8``: ``multiplier = float32(float32(x_scale * w_scale) / out.scale)``.

    The order of the two roundings is ONNX Runtime's; ``x_scale / y_scale * w_scale`` gives other bits.
    """
    product = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
    multiplier = np.atleast_1d(product / np.float32(out.scale)).astype(np.float32)
    low = out.qmin if low is None else max(low, out.qmin)
    high = out.qmax if high is None else min(high, out.qmax)
    return Epilogue(np.dtype(out.dtype), bias, multiplier, None, int(out.zero_point), low, high, table)


def residual_epilogue(
    x_scale: float | NDArray[np.float32],
    w_scale: float | NDArray[np.float32],
    product: QParams,
    operand: QParams,
    out: QParams,
    bias: NDArray[np.int32] | None = None,
    table: NDArray[np.uint8] | None = None,
) -> Epilogue:
    """The epilogue of ``int8 op -> int8`` and an Add behind it, with the bits of the two one after the other.

    ``product``, ``operand`` and ``out`` are the parameters of the operator's output, of the other operand of the Add
    (uint8 or int8 in the shape of the output, the argument ``residual`` of the backend's call) and of the sum.
    """
    multiplier = requantize_epilogue(x_scale, w_scale, product).multiplier
    residual = Residual(product, operand, float(out.scale))
    return Epilogue(out.dtype, bias, multiplier, None, int(out.zero_point), out.qmin, out.qmax, table, residual)


class ConvGeometry(NamedTuple):
    """Strides, pads (ONNX order: all begins, then all ends) and dilations: of one to three spatial dimensions."""

    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)

    def output_size(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for an input of ``size`` and a kernel of ``kernel`` pixels."""
        rank = len(size)
        padded = [size[axis] + self.pads[axis] + self.pads[axis + rank] for axis in range(rank)]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        return tuple((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))


class Pairing(NamedTuple):
    """Which matrices of two stacks are multiplied, sorted by those of the second: int64 arrays.

    With matrix ``i`` of the second, for ``first[i] <= j < first[i + 1]``: number ``a[j]`` of the first stack, to number
    ``out[j]`` of the results.
    """

    first: NDArray[np.int64]
    a: NDArray[np.int64]
    out: NDArray[np.int64]


class Stacks(NamedTuple):
    """Two stacks of matrices, uint8 or int8, to be multiplied in pairs."""

    a: NDArray[Any]
    """``[A, M, K]``"""
    a_zero_point: int
    b: NDArray[Any]
    """``[B, K, N]``"""
    b_zero_points: NDArray[np.int32]
    """of each column, ``[B, N]``, or ``[1, N]`` for all matrices."""
    pairing: Pairing


class Backend(Protocol):
    """What :mod:`pyq.ops` and the ONNX session call. Images are channels last, matrices row-major.

    ``out``, where given, has the right shape and dtype and is returned. ``residual``, uint8 or int8 in the shape of the
    result, comes with an epilogue that adds one; it may be ``out`` itself, but not overlap it otherwise.
    """

    name: str

    def matmul(
        self,
        x: NDArray[Any],
        x_zero_point: int,
        w: PackedWeight,
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
        residual: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """``[M, K] x [K, N]`` to ``[M, N]``."""

    def matmul_dynamic(
        self,
        x: NDArray[np.float32],
        w: PackedWeight,
        offset: NDArray[np.float32] | None,
        low: float,
        high: float,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """Contiguous ``[M, K]``, quantized by its range to integers up to ``w.amax``, times ``w``, within bounds.

        None where that takes as many steps as it has words: the caller goes them, and finds what is not allowed.
        """

    def multiply(self, stacks: Stacks, epilogue: Epilogue) -> NDArray[Any]:
        """The product of each pair, ``[P, M, N]``."""

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
        """``[N, *spatial, C]`` to ``[N, *out, M]``; padding has the value ``x_zero_point``."""

    def lookup(
        self, x: NDArray[Any], table: NDArray[np.uint8], dtype: np.dtype[Any], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """``table[x as a byte]``, viewed as ``dtype`` (uint8 or int8)."""

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
        """``add``, ``sub``, ``mul`` or ``div`` of two quantized arrays, with broadcasting."""

    def quantize(self, x: NDArray[np.float32], params: QParams, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Float32 to uint8 or int8."""

    def dequantize(
        self, q: NDArray[Any], params: QParams, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """uint8, int8 or int32 to float32."""

    def requantize(
        self,
        acc: NDArray[np.int32],
        epilogue: Epilogue,
        out: NDArray[Any] | None = None,
        residual: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Apply an epilogue to int32 accumulators ``[..., N]``."""

    def value_range(self, x: NDArray[np.float32]) -> tuple[float, float]:
        """The smallest and the largest of 0 and the elements of ``x``; ValueError for NaN."""

    def max_pool(self, x: NDArray[Any], placement: Placement) -> NDArray[Any]:
        """Maxima of contiguous images ``[N, *spatial, C]``; no window lies wholly in the padding."""

    def average_pool(
        self, x: NDArray[Any], params: QParams, placement: Placement, include_pad: bool, out_params: QParams
    ) -> NDArray[Any]:
        """Means of contiguous images ``[N, *spatial, C]``; no window lies wholly in the padding."""

    def transpose(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """``[N, A, B]`` to ``[N, B, A]``, both contiguous, uint8 or uint32; not empty."""

    def softmax(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each row of contiguous ``[M, N]``; not empty."""

    def softmax_of_bytes(self, q: NDArray[Any], exponentials: NDArray[np.int32]) -> NDArray[np.float32]:
        """``e / sum(e)`` of each row of contiguous ``[M, N]``, with ``e = exponentials[max(q) - q]``; not empty."""

    def layer_norm(
        self, x: NDArray[np.float32], scale: NDArray[np.float32], bias: NDArray[np.float32] | None, epsilon: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Of each row of contiguous ``[M, N]``, with ``[N]`` scale and bias; also mean and 1 / deviation, ``[M]``."""


def _load(name: str) -> Backend:
    if name == "c":
        from pyq.c_backend import CBackend

        return CBackend()
    if name == "numba":
        from pyq.kernels.backend import NumbaBackend

        return NumbaBackend()
    if name == "reference":
        from pyq.reference import ReferenceBackend

        return ReferenceBackend()
    raise ValueError(f"name: got {name!r}, expected one of {BACKENDS}")


@cache
def backend(name: str) -> Backend:
    """The backend called ``name`` ("c", "numba" or "reference").

    Raises ValueError for another name, or when PYQ_ISA, PYQ_BACKEND or PYQ_NUM_THREADS has one that is not allowed,
    and ImportError when what the backend needs is not installed.
    """
    _check_environment()
    return _load(name)


def _check_environment() -> None:
    """Kernels read these variables where they are started, and could only ignore what they do not understand."""
    for name, allowed in (("PYQ_ISA", ISA_NAMES), ("PYQ_BACKEND", BACKENDS)):
        if os.environ.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name}: got {os.environ[name]!r}, expected one of {allowed}")
    threads = os.environ.get("PYQ_NUM_THREADS")
    if threads is not None and not (threads.isdecimal() and 1 <= int(threads) <= 256):
        raise ValueError(f"PYQ_NUM_THREADS: got {threads!r}, expected 1 to 256")


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, fastest first."""
    has_c = importlib.util.find_spec("pyq._core") is not None
    has_numba = importlib.util.find_spec("numba") is not None
    return tuple(n for n, ok in zip(BACKENDS, (has_c, has_numba, True), strict=True) if ok)


@lru_cache(maxsize=1)
def _default() -> Backend:
    wanted = os.environ.get("PYQ_BACKEND")
    if wanted:
        return backend(wanted)
    best = available_backends()[0]
    if best != "c":
        warnings.warn(
            f"pyq was installed without its C kernels; it uses the {best!r} backend: same results, slower. "
            "Install a C compiler and reinstall pyq for full speed.",
            RuntimeWarning,
            stacklevel=3,
        )
    return backend(best)


_chosen: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("pyq_backend", default=None)


def current_backend() -> Backend:
    """The backend in force: that of :func:`use_backend`, else PYQ_BACKEND, else the fastest available."""
    return _chosen.get() or _default()


@contextmanager
def use_backend(name: str) -> Iterator[Backend]:
    """Run a block on one backend; only this thread (and context) is affected.

    >>> import pyq
    >>> with pyq.use_backend("reference") as b:
    ...     b.name
    'reference'
    """
    token = _chosen.set(backend(name))
    try:
        yield backend(name)
    finally:
        _chosen.reset(token)

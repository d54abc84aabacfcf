"""Transposed convolutions as ordinary ones: their phases, and the weights of each phase packed.

A transposed convolution adds `x[i] * w[k]` to `y[i * stride + k * dilation - pad]`. Outputs whose index, counted from
the one of the first input and the first tap, leaves the same remainder modulo the stride, its *residue*, meet the same
taps: every `stride / gcd(stride, dilation)`-th. Seen from them, i decreases by `dilation / gcd(stride, dilation)` from
one such tap to the next. So each residue is a convolution of stride 1 with these taps in reverse order, one *phase*,
and prod(strides) of them interleave to the output. No product is made twice, and none with an inserted zero.
(Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4, has the zeros.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.backends import ConvGeometry, Epilogue, current_backend
from pyq.checks import check_integer, check_integers
from pyq.geometry import Placement
from pyq.packing import PackedWeight, pack
from pyq.tensor import QTensor

Residue = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedTransposed:
    """Weights packed by :func:`pack_transposed`. Immutable.

    shape: ``(C, M / group, *kernel)``, that of the weights. phases: by residue, the filters ``(M, C / group, *taps)``
    of each phase that has taps.

    >>> import numpy as np, pyq
    >>> w = pyq.quantize(np.ones((8, 4, 3, 3), np.float32), dtype="int8", axis=1)
    >>> packed = pyq.pack_transposed(w, strides=(2, 2))
    >>> [phase.shape[2:] for phase in packed.phases.values()]
    [(2, 2), (2, 1), (1, 2), (1, 1)]
    """

    shape: tuple[int, ...]
    group: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    phases: Mapping[Residue, PackedWeight]

    @property
    def first(self) -> PackedWeight:
        """The phase of the first tap. Every kernel has it; all phases have its columns, scales and zero points."""
        return self.phases[(0,) * len(self.strides)]

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weights take in memory."""
        return sum(phase.nbytes for phase in self.phases.values())


def pack_transposed(
    w: QTensor,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    amax: int = 255,
    prove: bool = True,
) -> PackedTransposed:
    """Arrange the quantized weights of a transposed convolution for the kernels, once.

    w: int8 or uint8 ``(C, M / group, *kernel)`` with a 1-D to 3-D kernel, per tensor or axis=1: the M / group scales
    are those of every group. strides, dilations: of the convolution, 1 by default. amax, prove: as in ``pack``.

    TypeError for another dtype, ValueError for a shape, axis, group, stride, dilation or amax that is not allowed.
    """
    group = check_integer("group", group, 1, 1)
    return pack_phases(as_filters(w, group), strides, dilations, group, amax, prove)


def as_filters(w: QTensor, group: int) -> QTensor:
    """``(C, M / group, *kernel)`` as filters ``(M, C / group, *kernel)``, quantized per tensor or along axis 0."""
    if not isinstance(w, QTensor):
        raise TypeError(f"w: expected a QTensor, got {type(w).__name__}")
    if w.ndim not in (3, 4, 5) or 0 in w.shape:
        raise ValueError(f"w: expected (C, M / group, *kernel) with a 1-D to 3-D kernel, not empty; got {w.shape}")
    if w.axis not in (None, 1):
        raise ValueError(f"w: quantized along axis {w.axis}, expected 1 (the output channels) or None")
    channels, filters, *kernel = w.shape
    if group < 1 or channels % group:
        raise ValueError(f"group: got {group}, expected a divisor of the {channels} input channels")
    data = w.data.reshape(group, channels // group, filters, *kernel).swapaxes(1, 2)
    data = data.reshape(group * filters, channels // group, *kernel)
    if w.axis is None:
        return QTensor(data, w.scale, w.zero_point)
    return QTensor(data, np.tile(w.scale, group), np.tile(w.zero_point, group), 0)


def pack_phases(
    filters: QTensor,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    group: int,
    amax: int = 255,
    prove: bool = True,
) -> PackedTransposed:
    """Pack filters ``(M, C / group, *kernel)``; the other arguments as in :func:`pack_transposed`."""
    depth, *kernel = filters.shape[1:]
    steps = check_integers("strides", strides, len(kernel), 1, 1)
    gaps = check_integers("dilations", dilations, len(kernel), 1, 1)
    phases = {}
    for residue in itertools.product(*map(range, steps)):
        met = [taps(*along) for along in zip(kernel, steps, gaps, residue, strict=True)]
        if all(met):
            index = np.ix_(*map(range, filters.shape[:2]), *(places[::-1] for places in met))
            part = QTensor(filters.data[index], filters.scale, filters.zero_point, filters.axis)
            inner = [_inner_dilation(step, gap) for step, gap in zip(steps, gaps, strict=True)]
            phases[residue] = pack(part, amax=amax, group=group, dilations=inner, prove=prove)
    shape = (depth * group, len(filters.data) // group, *kernel)
    return PackedTransposed(shape, group, steps, gaps, phases)


def taps(kernel: int, stride: int, dilation: int, residue: int) -> range:
    """The taps that outputs of this residue meet, along one dimension; maybe none.

    >>> [taps(5, 2, 1, residue) for residue in range(2)]
    [range(0, 5, 2), range(1, 5, 2)]
    """
    period = stride // math.gcd(stride, dilation)
    first = next((tap for tap in range(period) if tap * dilation % stride == residue), kernel)
    return range(first, kernel, period)


def _inner_dilation(stride: int, dilation: int) -> int:
    """Inputs from one tap of a phase to the next."""
    return dilation // math.gcd(stride, dilation)


class PhasePlace(NamedTuple):
    """Where one phase reads and writes: slices of the spatial dimensions.

    geometry: of the convolution of ``source``; None when no tap meets the image, so that the outputs are sums of
    nothing.
    """

    residue: Residue
    source: tuple[slice, ...]
    target: tuple[slice, ...]
    geometry: ConvGeometry | None


@lru_cache(maxsize=1024)
def phase_places(sizes: tuple[int, ...], placement: Placement) -> tuple[PhasePlace, ...]:
    """The phases of a transposed convolution, placed on images of spatial ``sizes``."""
    begins = placement.pads[: len(sizes)]
    numbers = sizes, placement.kernel, placement.strides, placement.dilations, begins, placement.out
    inner = tuple(map(_inner_dilation, placement.strides, placement.dilations))
    places = []
    for spans in itertools.product(*map(_spans, *numbers)):
        geometry = None
        if all(span.source.start < span.source.stop for span in spans):
            pads = (*(span.begin for span in spans), *(span.end for span in spans))
            geometry = ConvGeometry((1,) * len(sizes), pads, inner)
        residue, source, target, *_ = zip(*spans, strict=True)
        places.append(PhasePlace(residue, source, target, geometry))
    return tuple(places)


class _Span(NamedTuple):
    """A phase along one dimension; begin, end: padding of its source."""

    residue: int
    source: slice
    target: slice
    begin: int
    end: int


def _spans(size: int, kernel: int, stride: int, dilation: int, pad: int, out: int) -> list[_Span]:
    spans = []
    for first in range(min(stride, out)):
        index = first + pad  # of the phase's first output, before anything is cut off
        met = taps(kernel, stride, dilation, index % stride)
        start = stop = 0
        if met:  # the last tap meets the first input of a window
            start = (index - met[-1] * dilation) // stride
            stop = (index - met[0] * dilation) // stride + len(range(first, out, stride))
        source = slice(max(start, 0), min(stop, size))
        spans.append(_Span(index % stride, source, slice(first, out, stride), max(-start, 0), max(stop - size, 0)))
    return spans


def run_phases(
    images: NDArray[Any],
    zero_point: int,
    w: PackedTransposed,
    placement: Placement,
    epilogue: Epilogue,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The transposed convolution of ``[N, *spatial, C]``: ``[N, *placement.out, M]``, in ``out`` if given."""
    if out is None:
        out = np.empty((len(images), *placement.out, w.first.columns), epilogue.dtype)
    backend, every, images = current_backend(), slice(None), np.ascontiguousarray(images)
    for residue, source, target, geometry in phase_places(images.shape[1:-1], placement):
        part = out[(every, *target)]
        if geometry is not None:
            backend.conv(images[(every, *source)], zero_point, w.phases[residue], geometry, epilogue, part)
        else:
            part[...] = backend.requantize(np.zeros((1, out.shape[-1]), np.int32), epilogue)
    return out

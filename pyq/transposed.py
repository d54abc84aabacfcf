"""Transposed convolutions as ordinary ones: their phases, and the weights of the phases packed.

A transposed convolution adds `x[i] * w[k]` to `y[i * stride + k * dilation - pad]`. Outputs whose index, counted from
the one of the first input and the first tap, leaves the same remainder modulo the stride, its *residue*, meet the same
taps: every `stride / gcd(stride, dilation)`-th. Seen from them, i decreases by `dilation / gcd(stride, dilation)` from
one such tap to the next. So each residue is a convolution of stride 1 with these taps in reverse order, one *phase*,
and prod(strides) of them interleave to the output. No product is made twice, and none with an inserted zero.
(Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4, has the zeros.)

Phases with equally many taps read nearly the same windows. They are packed as one product with a column for each phase
and output channel, which fills panels also where there are few channels: the last layers of decoders have 1 to 32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.backends import ConvGeometry, Epilogue, current_backend
from pyq.checks import check_integer, check_integers
from pyq.geometry import Placement
from pyq.packing import PackedWeight, pack
from pyq.tensor import QTensor

Residue = tuple[int, ...]


class PhaseSet(NamedTuple):
    """Phases that are columns of one product.

    residues: one for each phase. weight: filters ``(phases * M, C / group, *taps)``, phase by phase; None for phases
    without taps.
    """

    residues: tuple[Residue, ...]
    weight: PackedWeight | None


@dataclass(frozen=True, eq=False)
class PackedTransposed:
    """Weights packed by :func:`pack_transposed`. Immutable.

    shape: ``(C, M / group, *kernel)``, that of the weights. scale: float32, one or ``[M]``. sets: all phases.

    >>> import numpy as np, pyq
    >>> w = pyq.quantize(np.ones((8, 4, 3, 3), np.float32), dtype="int8", axis=1)
    >>> packed = pyq.pack_transposed(w, strides=(2, 2))
    >>> [phases.weight.shape[2:] for phases in packed.sets]
    [(2, 2), (2, 1), (1, 2), (1, 1)]
    """

    shape: tuple[int, ...]
    group: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    scale: NDArray[np.float32]
    sets: tuple[PhaseSet, ...]

    @property
    def columns(self) -> int:
        """Output channels."""
        return self.shape[1] * self.group

    @property
    def weights(self) -> list[PackedWeight]:
        """Those of all sets; the first phase always has taps."""
        return [phases.weight for phases in self.sets if phases.weight is not None]

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weights take in memory."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def kept(self) -> dict[Hashable, Any]:
        """Things derived from the weights, as :attr:`pyq.packing.PackedWeight.kept`."""
        return self.weights[0].kept

    def keep(self, key: Hashable, value: Any) -> Any:
        """As :meth:`pyq.packing.PackedWeight.keep`."""
        return self.weights[0].keep(key, value)


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

    >>> import pyq
    >>> packed = pack_transposed(QTensor(np.ones((1, 1, 2), np.int8), 0.5), strides=(2,))
    >>> pyq.conv_transpose(QTensor(np.array([[[1, 2]]], np.uint8), 1.0), packed)
    array([[[0.5, 0.5, 1. , 1. ]]], dtype=float32)
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
    columns, depth, *kernel = filters.shape
    steps = check_integers("strides", strides, len(kernel), 1, 1)
    gaps = check_integers("dilations", dilations, len(kernel), 1, 1)
    together: dict[tuple[int, ...], list[Residue]] = {}
    for residue in itertools.product(*map(range, steps)):
        counts = tuple(len(taps(*along)) for along in zip(kernel, steps, gaps, residue, strict=True))
        together.setdefault(counts if group == 1 else residue, []).append(residue)  # columns of a group stand together
    inner = tuple(map(_inner_dilation, steps, gaps))
    sets = []
    for residues in together.values():
        part = _phase_filters(filters, residues, steps, gaps)
        weight = None if 0 in part.shape else pack(part, amax=amax, group=group, dilations=inner, prove=prove)
        sets.append(PhaseSet(tuple(residues), weight))
    return PackedTransposed((depth * group, columns // group, *kernel), group, steps, gaps, filters.scale, tuple(sets))


def _phase_filters(
    filters: QTensor, residues: Sequence[Residue], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> QTensor:
    """The filters of phases with equally many taps, one phase after the other."""
    columns, depth, *kernel = filters.shape
    parts = []
    for residue in residues:
        met = map(taps, kernel, strides, dilations, residue)
        parts.append(filters.data[np.ix_(range(columns), range(depth), *(places[::-1] for places in met))])
    data = np.concatenate(parts)
    if filters.axis is None:
        return QTensor(data, filters.scale, filters.zero_point)
    return QTensor(data, np.tile(filters.scale, len(parts)), np.tile(filters.zero_point, len(parts)), 0)


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


class Target(NamedTuple):
    """Outputs of one phase, slices of spatial dimensions: where they are in what its set makes, and where they go."""

    phase: int
    made: tuple[slice, ...]
    whole: tuple[slice, ...]


class SetPlace(NamedTuple):
    """Where a set of phases reads and writes; geometry: of the convolution of ``source``, a part of the images.

    None when no window meets the images, so that all outputs are sums of nothing.
    """

    source: tuple[slice, ...]
    geometry: ConvGeometry | None
    targets: tuple[Target, ...]


class _Line(NamedTuple):
    """A phase along one dimension: the first input of its first window, inputs behind the first of each window."""

    start: int
    reach: int
    outputs: int
    whole: slice


def _line(kernel: int, stride: int, dilation: int, pad: int, out: int, residue: int) -> _Line:
    first = (residue - pad) % stride  # output of this phase that is not cut off
    met, whole = taps(kernel, stride, dilation, residue), slice(first, out, stride)
    start = (first + pad - met[-1] * dilation) // stride if met else 0
    return _Line(start, (len(met) - 1) * _inner_dilation(stride, dilation), len(range(first, out, stride)), whole)


@lru_cache(maxsize=1024)
def set_place(sizes: tuple[int, ...], placement: Placement, residues: tuple[Residue, ...]) -> SetPlace:
    """The phases of one set of a transposed convolution, placed on images of spatial ``sizes``."""
    numbers = placement.kernel, placement.strides, placement.dilations, placement.pads[: len(sizes)], placement.out
    phases = {index: tuple(map(_line, *numbers, residue)) for index, residue in enumerate(residues)}
    phases = {index: lines for index, lines in phases.items() if all(line.outputs for line in lines)}
    if not phases:  # the output is shorter than the stride
        return SetPlace((), None, ())
    axes = list(zip(*phases.values(), strict=True))
    starts = [min(line.start for line in axis) for axis in axes]
    stops = [max(line.start + line.outputs + line.reach for line in axis) for axis in axes]
    targets = []
    for index, lines in phases.items():
        begins = [line.start - start for line, start in zip(lines, starts, strict=True)]
        made = tuple(slice(begin, begin + line.outputs) for line, begin in zip(lines, begins, strict=True))
        targets.append(Target(index, made, tuple(line.whole for line in lines)))
    source = tuple(slice(max(a, 0), min(b, size)) for a, b, size in zip(starts, stops, sizes, strict=True))
    geometry = None
    if all(part.start < part.stop for part in source):
        pads = *(max(-a, 0) for a in starts), *(max(b - size, 0) for b, size in zip(stops, sizes, strict=True))
        inner = tuple(map(_inner_dilation, placement.strides, placement.dilations))
        geometry = ConvGeometry((1,) * len(sizes), pads, inner)
    return SetPlace(source, geometry, tuple(targets))


def run_phases(
    images: NDArray[Any],
    zero_point: int,
    w: PackedTransposed,
    placement: Placement,
    epilogue: Epilogue,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The transposed convolution of ``[N, *spatial, C]``: ``[N, *placement.out, M]``, in ``out`` if given.

    epilogue: of M columns. out: contiguous.
    """
    backend, every, images = current_backend(), slice(None), np.ascontiguousarray(images)
    if out is None:
        out = np.empty((len(images), *placement.out, w.columns), epilogue.dtype)
    pixel = np.dtype((np.void, epilogue.dtype.itemsize * w.columns))  # NumPy copies one element faster than a run
    pixels = out.view(pixel)[..., 0]
    for residues, weight in w.sets:
        source, geometry, targets = set_place(images.shape[1:-1], placement, residues)
        if weight is None or geometry is None:
            nothing = backend.requantize(np.zeros((1, w.columns), np.int32), epilogue)
            for target in targets:
                pixels[(every, *target.whole)] = nothing.view(pixel)[0]
            continue
        repeated = weight.cached(("repeated", epilogue), partial(_repeated, epilogue, len(residues), w.columns))
        whole = out if len(targets) == 1 and math.prod(w.strides) == 1 else None
        y = backend.conv(images[(every, *source)], zero_point, weight, geometry, repeated, whole)
        if whole is None:
            made = y.view(pixel)
            for target in targets:
                pixels[(every, *target.whole)] = made[..., target.phase][(every, *target.made)]
    return out


def _repeated(epilogue: Epilogue, times: int, columns: int) -> Epilogue:
    """The epilogue of ``times`` as many columns."""
    if times == 1:
        return epilogue

    def each(values: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if values is None else np.tile(np.broadcast_to(values, (columns,)), times)

    return replace(
        epilogue, bias=each(epilogue.bias), multiplier=each(epilogue.multiplier), offset=each(epilogue.offset)
    )

"""PackedWeight: the weights of a matrix product or convolution, arranged once for the kernels.

The way of the data: quantized weights -> zero point folded in (int16) -> matrix of quads -> panels with a proof
that the kernel's 16-bit sums are exact (csrc/pack.c) -> :class:`PackedWeight`, which can be saved and mapped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq import panels as panel_format
from pyq.backends import ISA_NAMES
from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, Panels
from pyq.tensor import QTensor

INT16_MAX = 32767
FEW_QUADS = 18
"""Quads of a group, at most, for which groups are packed together until they fill a panel: 8 channels, 3x3. There twice
the products take as long with AVX2 as half the calls save; with VNNI less."""
LARGE = 1 << 21  # bytes: weights that no second-level cache keeps
CACHED = 64  # derived things that one weight keeps: image widths times epilogues


@dataclass(frozen=True)
class Certificate:
    """What packing proved, and at what cost.

    amax: largest uint8 activation for which no 16-bit sum can overflow. panels: of 16 columns each.
    quads: quads of four weight rows (taps, if depthwise) times panels.
    steps: steps of the kernels, after padding, by layout: "pairs16", "pairs8w" and "quads32" add every product in 32
    bits; "quads8", "quads8p2" and "quads8p4" add those of one, two and four quads in 16 bits; "taps16" is depthwise.
    """

    amax: int
    panels: int
    quads: int
    steps: dict[str, int]


class PackedWeight:
    """Weights packed by :func:`pack`. Immutable.

    kind "gemm", "conv" or "depthwise"; shape the logical shape, ``(K, N)`` or ``(M, C / group, *kernel)``;
    dtype, scale, zero_point those of the quantized weights; group; amax the largest shifted activation allowed;
    columns: output columns (features, channels).

    >>> import numpy as np, pyq
    >>> pw = pyq.pack(pyq.quantize(np.eye(8, dtype=np.float32), dtype="int8", axis=1))
    >>> pw.kind, pw.shape, pw.certificate.amax
    ('gemm', (8, 8), 255)
    """

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        scale: NDArray[np.float32],
        zero_point: NDArray[np.int32],
        group: int,
        amax: int,
        runs_per_row: int,
        panels: Panels,
        colsum: NDArray[np.int32],
    ) -> None:
        self.kind, self.shape, self.dtype, self.group, self.amax = kind, shape, dtype, group, amax
        self.scale, self.zero_point, self.colsum = scale, zero_point, colsum
        self.runs_per_row = runs_per_row
        self.columns = shape[1] if kind == "gemm" else shape[0]
        self.segments, self.order, self.data = panels
        for array in (scale, zero_point, colsum, *panels):
            array.flags.writeable = False
        self._layouts = frozenset(self.segments["layout"].tolist())
        self.kept: dict[Hashable, Any] = {}  # of a small product even the call of a method that looked here would count

    @property
    def kernel_shape(self) -> tuple[int, int, int]:
        """Depth, height and width of the kernel; what a matrix or a kernel of fewer dimensions lacks is 1."""
        spatial = () if self.kind == "gemm" else self.shape[2:]
        depth, height, width = (1, 1, 1, *spatial)[-3:]
        return depth, height, width

    @property
    def run(self) -> int:
        """Bytes of a row that one run of consecutive k covers."""
        if self.kind == "gemm":
            return self.shape[0]
        return self.shape[1] * self.together * self.kernel_shape[2] // self.runs_per_row

    @property
    def entries(self) -> int:
        """Quads (taps, if depthwise) of one column: what the numbers in ``order`` count."""
        per_run = 1 if self.kind == "depthwise" else -(-self.run // 4)
        return self.kernel_shape[0] * self.kernel_shape[1] * self.runs_per_row * per_run

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make()`` gave for ``key``: things derived from the weights for the calls that use them."""
        return self.kept[key] if key in self.kept else self.keep(key, make())

    def keep(self, key: Hashable, value: Any) -> Any:
        """Add to ``kept``; returns ``value``, or what another thread has kept for ``key`` meanwhile."""
        if len(self.kept) >= CACHED:
            self.kept.clear()
        return self.kept.setdefault(key, value)

    @property
    def layouts(self) -> frozenset[int]:
        """The layouts that occur (constants of :mod:`pyq.panels`)."""
        return self._layouts

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weights take in memory."""
        return int(self.data.nbytes + self.order.nbytes + self.segments.nbytes + self.colsum.nbytes)

    @property
    def certificate(self) -> Certificate:
        """What packing proved; :func:`verify_certificate` checks it against the packed bytes."""
        table = self.segments
        steps = {LAYOUT_NAMES[i]: int(table["steps"][table["layout"] == i].sum()) for i in sorted(self.layouts)}
        panels = len(np.unique(table["column"]))
        return Certificate(self.amax, panels, self.entries * panels, steps)

    def offsets(self, strides: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.int32]:
        """int32 offset of every step from the start of a row, in elements.

        strides: from one kernel plane, line and pixel to the next, dilation included.
        """
        if self.kind == "gemm":
            return self._matrix_offsets
        return self.cached(("offsets", strides), lambda: self._entry_offsets(strides)[self.order])

    @cached_property
    def _matrix_offsets(self) -> NDArray[np.int32]:
        return 4 * self.order

    @cached_property
    def quads(self) -> NDArray[np.uint16] | None:
        """``order`` in half the memory: what one row reads beside large weights, if any have 16-bit sums; else None."""
        grouped = self.kind == "gemm" and not self.layouts.isdisjoint(GROUP_SIZE)
        if not grouped or self.data.nbytes < LARGE or self.entries > 1 << 16:
            return None
        return self.order.astype(np.uint16)

    def _entry_offsets(self, strides: tuple[int, int, int]) -> NDArray[np.int32]:
        depth, height, _ = self.kernel_shape
        counts = (depth, height, self.runs_per_row)
        plane, line, pixel = (np.arange(n) * stride for n, stride in zip(counts, strides, strict=True))
        runs = plane[:, None, None] + line[:, None] + pixel
        quads = 1 if self.kind == "depthwise" else -(-self.run // 4)
        starts = runs.reshape(-1, 1) + 4 * np.arange(quads)
        if starts.max() > np.iinfo(np.int32).max:
            raise ValueError(f"x: a kernel whose lines are {strides[1]} bytes apart reaches beyond 2 GiB")
        return starts.reshape(-1).astype(np.int32)

    def unpack(self) -> NDArray[Any]:
        """The integer weights again, in ``shape`` and ``dtype``: exactly what was packed."""
        matrix = panel_format.unpack(
            Panels(self.segments, self.order, self.data), self.entries, self.columns, self.group_count
        )
        per_run = 1 if self.kind == "depthwise" else -(-self.run // 4) * 4
        folded = matrix.reshape(self.group_count, -1, per_run, matrix.shape[-1])[:, :, : self.run]
        if self.kind == "gemm":
            weights = folded.reshape(self.shape)
            return (weights + self.zero_point).astype(self.dtype)
        pixels = folded.reshape(self.group_count, *self.shape[2:], -1, matrix.shape[-1])
        channels_first = np.moveaxis(pixels, (-1, -2), (1, 2))
        own = channels_first.reshape(self.columns, self.together, *self.shape[1:])
        weights = own[np.arange(self.columns), _place_among(self.columns, self.group, self.together)]
        zero_point = (
            self.zero_point.reshape(-1, *[1] * (len(self.shape) - 1)) if self.zero_point.ndim else self.zero_point
        )
        return (weights + zero_point).astype(self.dtype)

    @property
    def group_count(self) -> int:
        """Groups that have panels of their own: 1 for a depthwise kernel, whose panels hold 16 groups."""
        return 1 if self.kind == "depthwise" else self.group // self.together

    @property
    def together(self) -> int:
        """Neighbouring groups that are packed as one, with weights 0 for each other's channels."""
        return groups_together(self.shape, self.group) if self.kind == "conv" else 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (a versioned, checksummed file; see docs/errors.md), replacing it only when complete."""
        from pyq.packfile import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str], *, mmap: bool = False) -> PackedWeight:
        """Read what :meth:`save` wrote. ``mmap=True`` maps the weights instead of reading them.

        Raises FormatError when the file is damaged, of another version, or not of this kind.
        """
        from pyq.packfile import load

        return load(path, mmap=mmap)

    def __reduce__(self) -> tuple[Any, ...]:
        form = self.kind, self.shape, self.dtype, self.scale, self.zero_point, self.group, self.amax, self.runs_per_row
        return PackedWeight, (*form, Panels(self.segments, self.order, self.data), self.colsum)

    def __repr__(self) -> str:
        group = f", group={self.group}" if self.group > 1 else ""
        form = f"{self.kind}, shape={self.shape}, dtype={self.dtype}{group}"
        return f"PackedWeight({form}, amax={self.amax}, {self.nbytes} bytes)"


def pack(
    qw: QTensor,
    *,
    amax: int = 255,
    group: int = 1,
    dilations: Sequence[int] | None = None,
    isa: str | None = None,
    prove: bool = True,
) -> PackedWeight:
    """Arrange quantized weights for the kernels, once.

    qw: int8 or uint8; ``(K, N)``, per tensor or axis=1, for a matrix product; ``(M, C / group, *kernel)`` with one
    to three kernel dimensions, per tensor or axis=0, for a convolution. amax: the largest uint8 activation that will
    come (127 for 7-bit activations; int8 activations count from -(amax + 1) / 2); an activation above it is a
    ValueError later, never a wrong result. dilations: of the convolution, when they are not 1. isa: the instruction
    set of the CPU that the weights are for, "scalar", "avx2" or "avx512vnni"; default that of this one. It decides what
    is fast there; the results are the same everywhere. prove=False packs faster, for this CPU whatever ``isa`` is,
    and leaves out the search for exact 16-bit sums, which pays only when weights are used more than once.

    Raises TypeError for another dtype and ValueError for a shape, axis, group, amax or isa that is not allowed.
    """
    if not isinstance(qw, QTensor):
        raise TypeError(f"qw: expected a QTensor, got {type(qw).__name__}; quantize the weights first")
    if qw.dtype not in (np.int8, np.uint8):
        raise TypeError(f"qw: expected int8 or uint8 weights, got {qw.dtype}")
    if not 1 <= amax <= 255:
        raise ValueError(f"amax: got {amax}, expected 1 to 255")
    if qw.ndim not in (2, 3, 4, 5) or 0 in qw.shape:
        raise ValueError(
            f"qw: got shape {qw.shape}, expected (K, N), or (M, C / group, *kernel) with a 1-D to 3-D kernel; not empty"
        )
    channel_axis = 1 if qw.ndim == 2 else 0
    if qw.axis not in (None, channel_axis):
        raise ValueError(f"qw: quantized along axis {qw.axis}, expected {channel_axis} (the output channels) or None")
    if group < 1 or (qw.ndim == 2 and group != 1) or qw.shape[channel_axis] % group:
        allowed = "1 for a matrix" if qw.ndim == 2 else f"a divisor of the {qw.shape[0]} output channels"
        raise ValueError(f"group: got {group}, expected {allowed}")
    if isa is not None and isa not in ISA_NAMES:
        raise ValueError(f"isa: got {isa!r}, expected one of {ISA_NAMES}")
    target = None if isa is None else ISA_NAMES.index(isa)
    kind, runs_per_row = "gemm", 1
    if qw.ndim == 2 and not prove:
        panels, colsum = panel_format.pack_bytes(qw.data, qw.zero_point)
    else:
        zero_point = qw.zero_point.reshape([-1 if axis == qw.axis else 1 for axis in range(qw.ndim)])
        folded = np.subtract(qw.data, zero_point, dtype=np.int16, casting="unsafe")
        other_axes = tuple(axis for axis in range(qw.ndim) if axis != channel_axis)
        colsum = folded.sum(axis=other_axes, dtype=np.int32)  # modulo 2^32, as the accumulators
        if qw.ndim == 2:
            panels = panel_format.pack_quads(_padded(folded[None])[0], amax, target, prove)
        else:
            dilated = dilations is not None and tuple(dilations)[-1] != 1
            kind, runs_per_row, panels = _pack_conv(folded, group, amax, dilated, target, prove)
    scale, zero = np.array(qw.scale, np.float32), np.array(qw.zero_point, np.int32)
    return PackedWeight(kind, qw.shape, qw.dtype, scale, zero, group, amax, runs_per_row, panels, colsum)


def _padded(runs: NDArray[np.int16]) -> NDArray[np.int16]:
    """``[groups, run, N]`` with each run zero padded to whole quads."""
    groups, run, n = runs.shape
    if run % 4 == 0:
        return runs
    padded = np.zeros((groups, run + -run % 4, n), np.int16)
    padded[:, :run] = runs
    return padded


def groups_together(shape: tuple[int, ...], group: int) -> int:
    """How many groups of a convolution ``(M, C / group, *kernel)`` become one with weights 0 in it.

    A panel has 16 columns, and the kernels for narrow ones compute 8: groups of fewer output channels leave the others
    idle. To fill 8 costs no product; to fill 16 costs some, and saves as much by half the calls where products are few.

    >>> groups_together((128, 4, 3, 3), 32), groups_together((128, 8, 5, 5), 16), groups_together((64, 64, 3, 3), 1)
    (4, 1, 1)
    """
    quads = -(-shape[1] // 4) * math.prod(shape[2:])
    columns = panel_format.NR if quads <= FEW_QUADS else panel_format.NR // 2
    most = min(columns // (shape[0] // group), group)
    return next((together for together in range(most, 1, -1) if group % together == 0), 1)


def _place_among(columns: int, group: int, together: int) -> NDArray[np.int64]:
    """For each output channel, which of the groups packed together is its own."""
    return np.arange(columns) // (columns // group) % together


def _united(folded: NDArray[np.int16], group: int, together: int) -> NDArray[np.int16]:
    """``(M, together * C / group, *kernel)``: neighbouring groups as one, with weights 0 for each other's channels."""
    m, c, *kernel = folded.shape
    wide = np.zeros((m, together, c, *kernel), np.int16)
    wide[np.arange(m), _place_among(m, group, together)] = folded
    return wide.reshape(m, together * c, *kernel)


def _pack_conv(
    folded: NDArray[np.int16], group: int, amax: int, dilated: bool, isa: int | None, prove: bool
) -> tuple[str, int, Panels]:
    m, c, *outer, width = folded.shape
    height = math.prod(outer)  # lines of the kernel, of all its planes
    if group == m and c == 1 and group > 1:
        taps = np.ascontiguousarray(folded.reshape(m, height * width).T)
        return "depthwise", width, panel_format.pack_taps16(taps)
    # A kernel row of an ungrouped convolution is one run: C = 3 then pads 3 weights of a row, not of every pixel.
    runs_per_row = 1 if group == 1 and c % 4 and not dilated else width
    together = groups_together(folded.shape, group)
    if together > 1:
        folded, group, c = _united(folded, group, together), group // together, c * together
    kernels = folded.reshape(group, m // group, c, height, width).transpose(0, 3, 4, 2, 1)
    parts = []
    for kernel in kernels:  # [height, width, c, m / group]
        runs = kernel.reshape(height * runs_per_row, -1, m // group)
        parts.append(panel_format.pack_quads(_padded(runs).reshape(-1, m // group), amax, isa, prove, height * width))
    return "conv", runs_per_row, panel_format.join(parts, [g * c for g in range(group)], m // group)


def verify_certificate(w: PackedWeight) -> None:
    """Prove again, from the packed bytes, that no 16-bit sum can overflow for activations up to ``w.amax``.

    Raises ValueError naming the first segment that breaks the bound; returns nothing when all hold.
    """
    panels = Panels(w.segments, w.order, w.data)
    for index, layout in enumerate(w.segments["layout"].tolist()):
        if layout not in GROUP_SIZE:
            continue
        _, weights = panel_format.segment_weights(panels, index)
        lanes = weights.reshape(-1, GROUP_SIZE[layout], 2, 2, panel_format.NR)  # [group, quad, lane, byte, column]
        for signed in (lanes, -lanes):
            sums = np.maximum(signed, 0).sum(axis=(1, 3))
            if sums.size and int(sums.max()) * w.amax > INT16_MAX:
                raise ValueError(
                    f"segment {index}: a 16-bit sum can reach {int(sums.max()) * w.amax}, the limit is {INT16_MAX}"
                )

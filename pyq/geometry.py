"""Where a kernel is placed on an image: attributes of ONNX Conv, ConvTranspose and the pools, made explicit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from pyq.checks import check_choice, check_integers

AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True)
class Placement:
    """Kernel, strides, pads (all begins, then all ends), dilations and output sizes per spatial dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    out: tuple[int, ...]

    def counts(self, sizes: Sequence[int], include_pad: bool = False) -> np.ndarray:
        """int64 elements of each window, [*out]: those within the image of `sizes`, or also those of its pads."""
        counts = np.ones((), np.int64)
        for i, size in enumerate(sizes):
            begin, end = (self.pads[i], self.pads[i + len(sizes)]) if include_pad else (0, 0)
            starts = np.arange(self.out[i]) * self.strides[i] - self.pads[i]
            taps = starts[:, None] + np.arange(self.kernel[i]) * self.dilations[i]
            counts = counts[..., None] * ((taps >= -begin) & (taps < size + end)).sum(axis=1)
        return counts


def place(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> Placement:
    """Resolve ONNX attributes for an image of spatial `sizes` (defaults: strides 1, pads 0, dilations 1).

    auto_pad: "SAME_UPPER" and "SAME_LOWER" pad so that the output has ceil(size / stride) elements, an odd
    element at the end or at the beginning; "VALID" does not pad. ceil_mode: round the output size up, but no
    window begins beyond the input and its leading padding. ValueError for a kernel that does not fit, or for
    an attribute with the wrong number of integers or an integer out of range.

    >>> place((5, 5), (3, 3), strides=(2, 2), auto_pad="SAME_UPPER").pads
    (1, 1, 1, 1)
    """
    rank = len(sizes)
    extents = check_integers("kernel_shape", kernel, rank, 1, 1)
    steps = check_integers("strides", strides, rank, 1, 1)
    gaps = check_integers("dilations", dilations, rank, 1, 1)
    check_choice("auto_pad", auto_pad, AUTO_PAD)
    if auto_pad != "NOTSET" and pads is not None and any(pads):
        raise ValueError(f"pads: not allowed with auto_pad {auto_pad!r}, got {list(pads)}")
    margins = check_integers("pads", pads, 2 * rank, 0, 0) if auto_pad == "NOTSET" else None
    return _resolved(tuple(sizes), extents, steps, margins, gaps, auto_pad, bool(ceil_mode))


@lru_cache(maxsize=1024)  # it takes as long as a small pool
def _resolved(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...] | None,
    dilations: tuple[int, ...],
    auto_pad: str,
    ceil_mode: bool,
) -> Placement:
    """`place` of attributes that have been checked."""
    rank = len(sizes)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    margins = _auto_pads(sizes, reach, strides, auto_pad) if pads is None else pads
    out = []
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        room = size + margins[i] + margins[i + rank] - reach[i]
        if room < 0:
            raise ValueError(
                f"x: the kernel covers {reach[i]} along spatial dimension {i}, more than the {size} elements "
                f"and their padding of {margins[i]} and {margins[i + rank]}"
            )
        count = (room + stride - 1 if ceil_mode else room) // stride + 1
        if ceil_mode and (count - 1) * stride >= size + margins[i]:
            count -= 1
        out.append(count)
    return Placement(kernel, strides, margins, dilations, tuple(out))


def place_transposed(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Placement:
    """Resolve the attributes of ONNX ConvTranspose, for which pads are what is cut off the output.

    output_padding: elements that the output has more at its end, 0 by default, less than the stride or the dilation.
    output_shape: spatial sizes of the output; pads are then ignored and chosen such that these come out. So do
    the "SAME" values of auto_pad for an output of size * stride elements. Of an odd number of elements to cut
    "SAME_UPPER" takes the last one from the end, any other auto_pad from the beginning; elements that are missing
    come at the end. ValueError as for `place`, and for pads that leave nothing.

    >>> place_transposed((5, 5), (3, 3), strides=(2, 2), auto_pad="SAME_UPPER").pads
    (0, 0, 1, 1)
    """
    rank = len(sizes)
    extents = check_integers("kernel_shape", kernel, rank, 1, 1)
    steps = check_integers("strides", strides, rank, 1, 1)
    gaps = check_integers("dilations", dilations, rank, 1, 1)
    extra = check_integers("output_padding", output_padding, rank, 0, 0)
    check_choice("auto_pad", auto_pad, AUTO_PAD)
    limits = [max(step, gap) for step, gap in zip(steps, gaps, strict=True)]
    if any(more >= limit for more, limit in zip(extra, limits, strict=True)):
        raise ValueError(f"output_padding: expected less than the stride or the dilation, {limits}, got {list(extra)}")
    along = zip(sizes, extents, steps, gaps, extra, strict=True)
    full = [(n - 1) * step + (k - 1) * gap + 1 + more for n, k, step, gap, more in along]
    if output_shape is not None:
        out = check_integers("output_shape", output_shape, rank, 1, 1)
        if any(n - most >= limit for n, most, limit in zip(out, full, limits, strict=True)):
            raise ValueError(f"output_shape: expected at most {full} and a part of a stride, got {list(out)}")
        return Placement(extents, steps, _cut(full, out, auto_pad), gaps, out)
    if auto_pad != "NOTSET" and pads is not None and any(pads):
        raise ValueError(f"pads: not allowed with auto_pad {auto_pad!r}, got {list(pads)}")
    if auto_pad.startswith("SAME"):
        out = tuple(n * step for n, step in zip(sizes, steps, strict=True))
        return Placement(extents, steps, _cut(full, out, auto_pad), gaps, out)
    margins = check_integers("pads", pads, 2 * rank, 0, 0)
    out = tuple(n - margins[i] - margins[i + rank] for i, n in enumerate(full))
    if min(out) < 1:
        raise ValueError(f"pads: expected to leave something of an output of {full}, got {list(margins)}")
    return Placement(extents, steps, margins, gaps, out)


def _cut(full: Sequence[int], out: Sequence[int], auto_pad: str) -> tuple[int, ...]:
    """The pads that leave `out` of `full` elements; none where `full` are too few."""
    total = [max(most - n, 0) for most, n in zip(full, out, strict=True)]
    begins = [n // 2 if auto_pad == "SAME_UPPER" else n - n // 2 for n in total]
    return (*begins, *(n - begin for n, begin in zip(total, begins, strict=True)))


def _auto_pads(sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], auto_pad: str) -> tuple[int, ...]:
    if auto_pad == "VALID":
        return (0,) * 2 * len(sizes)
    begins, ends = [], []
    for size, extent, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if auto_pad == "SAME_UPPER" else more)
        ends.append(more if auto_pad == "SAME_UPPER" else less)
    return (*begins, *ends)


def channels_last(x: np.ndarray) -> np.ndarray:
    """View [N, *spatial, C] of x [N, C, *spatial]."""
    return x.transpose(_last(x.ndim))


def channels_first(x: np.ndarray) -> np.ndarray:
    """View [N, C, *spatial] of x [N, *spatial, C]."""
    return x.transpose(_first(x.ndim))


@cache  # a small convolution takes as long as a few such tuples
def _last(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)


@cache
def _first(ndim: int) -> tuple[int, ...]:
    return (0, ndim - 1, *range(1, ndim - 1))

"""Where a kernel is placed on an image: attributes of ONNX Conv and the pools, made explicit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    reach = [(k - 1) * d + 1 for k, d in zip(extents, gaps, strict=True)]
    if auto_pad == "NOTSET":
        margins = check_integers("pads", pads, 2 * rank, 0, 0)
    elif pads is not None and any(pads):
        raise ValueError(f"pads: not allowed with auto_pad {auto_pad!r}, got {list(pads)}")
    else:
        margins = _auto_pads(sizes, reach, steps, auto_pad)
    out = []
    for i, (size, stride) in enumerate(zip(sizes, steps, strict=True)):
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
    return Placement(extents, steps, margins, gaps, tuple(out))


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
    return x.transpose(0, *range(2, x.ndim), 1)


def channels_first(x: np.ndarray) -> np.ndarray:
    """View [N, C, *spatial] of x [N, *spatial, C]."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))

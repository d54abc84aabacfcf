"""The taps of square depthwise kernels as csrc/depthwise.c and kernels/depthwise.py take them.

They are derived from packed weights when first used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyq import panels as panel_format
from pyq.backends import ConvGeometry, Epilogue
from pyq.packing import PackedWeight
from pyq.panels import NR, Panels, aligned_bytes

KERNELS = (3, 5, 7)
STRIDES = (1, 2)
"""Along a line, where it is 1 if there is dilation; the other one is free."""
PITCH = 72
"""Input pixels from one line of a table of addresses to the next: ``PYQ_PITCH`` in csrc/pyq.h."""


def taps_for(w: PackedWeight, geometry: ConvGeometry, epilogue: Epilogue) -> NDArray[np.int16] | None:
    """:func:`window_weights`, kept by ``w``, if the kernels of whole windows compute this layer."""
    if not fits(w, geometry) or epilogue.residual is not None:
        return None
    taps: NDArray[np.int16] = w.cached("window_weights", lambda: window_weights(w))
    return taps


def fits(w: PackedWeight, geometry: ConvGeometry) -> bool:
    """Whether there are kernels of whole windows for this convolution; the others are computed as products are."""
    return (
        w.kind == "depthwise"
        and w.shape[2:] in {(side, side) for side in KERNELS}
        and w.columns >= NR
        and geometry.strides[-1] in STRIDES
        and 1 in (geometry.strides[-1], geometry.dilations[-1])
    )


def tap_pairs(side: int) -> NDArray[np.int64]:
    """``[pairs, 2]`` numbers of the taps that are multiplied together; ``side ** 2`` stands for none.

    >>> tap_pairs(3).tolist()
    [[0, 3], [1, 4], [2, 5], [6, 7], [8, 9], [9, 6], [7, 8]]
    """
    taps = np.arange(side * side).reshape(side, side)
    lines = np.stack([taps[:-1:2], taps[1::2]], axis=-1).reshape(-1, 2)
    last, none = taps[-1], side * side
    return np.concatenate([lines, np.append(last, none).reshape(-1, 2), np.insert(last, 0, none).reshape(-1, 2)])


def window_weights(w: PackedWeight) -> NDArray[np.int16]:
    """``[panels, pairs, NR, 2]``, aligned to 64 bytes, of weights that :func:`fits` accepts.

    Panels begin at channel 0, NR, ...; the last one holds the last NR channels, some of them for the second time.
    """
    side = w.shape[-1]
    packed = Panels(w.segments, w.order, w.data)
    taps = np.zeros((side * side + 1, w.columns), np.int16)
    taps[:-1] = panel_format.unpack(packed, side * side, w.columns, 1)[0]
    first = np.minimum(np.arange(0, w.columns, NR), w.columns - NR)
    pairs = taps[tap_pairs(side)][:, :, first[:, None] + np.arange(NR)]  # [pair, 2, panel, NR]
    data = aligned_bytes(pairs.nbytes).view(np.int16).reshape(len(first), -1, NR, 2)
    data[...] = pairs.transpose(2, 0, 3, 1)
    return data

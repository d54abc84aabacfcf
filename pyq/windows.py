"""The taps of square depthwise kernels as csrc/depthwise.c and kernels/depthwise.py take them.

They are derived from packed weights when first used.
"""

from __future__ import annotations

from typing import Any

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


def tap_quads(side: int) -> NDArray[np.int64]:
    """``[quads, 4]`` numbers of the taps that are multiplied together where weights are bytes; ``side ** 2``: none.

    >>> tap_quads(3).tolist()
    [[0, 3, 6, 9], [1, 4, 7, 9], [2, 5, 8, 9]]
    """
    none = side * side
    taps = np.arange(none).reshape(side, side)
    along = side % 4 == 1  # a fourth of each quad of the last line alone would be used
    lines = taps[:-1] if along else taps
    lines = np.pad(lines, ((0, -len(lines) % 4), (0, 0)), constant_values=none)
    quads = lines.reshape(-1, 4, side).swapaxes(1, 2).reshape(-1, 4)
    if not along:
        return quads
    shifted = [np.pad(taps[-1], (shift, 8 - side - shift), constant_values=none) for shift in range(4)]
    return np.concatenate([quads, np.reshape(shifted, (-1, 4))])


def window_weights(w: PackedWeight) -> NDArray[np.int16]:
    """``[panels, pairs, NR, 2]``, aligned to 64 bytes, of weights that :func:`fits` accepts.

    Panels begin at channel 0, NR, ...; the last one holds the last NR channels, some of them for the second time.
    """
    return _arranged(_taps(w), tap_pairs(w.shape[-1]))


def quads_for(w: PackedWeight) -> NDArray[np.int8] | None:
    """:func:`window_quads`, kept by ``w``."""
    quads: NDArray[np.int8] | None = w.cached("window_quads", lambda: window_quads(w))
    return quads


def window_quads(w: PackedWeight) -> NDArray[np.int8] | None:
    """``[panels, quads, NR, 4]`` likewise; None where weights less their zero points are not all int8."""
    taps = _taps(w)
    return _arranged(taps.astype(np.int8), tap_quads(w.shape[-1])) if (taps == taps.astype(np.int8)).all() else None


def _taps(w: PackedWeight) -> NDArray[np.int16]:
    """``[side ** 2 + 1, channels]``: the last tap, which stands for none, is 0."""
    side = w.shape[-1]
    taps = np.zeros((side * side + 1, w.columns), np.int16)
    taps[:-1] = panel_format.unpack(Panels(w.segments, w.order, w.data), side * side, w.columns, 1)[0]
    return taps


def _arranged(taps: NDArray[Any], together: NDArray[np.int64]) -> NDArray[Any]:
    """``[panels, len(together), NR, taps that are multiplied together]``."""
    channels = taps.shape[1]
    first = np.minimum(np.arange(0, channels, NR), channels - NR)
    sets = taps[together][:, :, first[:, None] + np.arange(NR)]  # [set, tap, panel, NR]
    data = aligned_bytes(sets.nbytes).view(taps.dtype).reshape(len(first), len(together), NR, -1)
    data[...] = sets.transpose(2, 0, 3, 1)
    return data

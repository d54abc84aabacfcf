"""Pools of quantized images in NumPy: one spatial dimension after the other, which is exact for integers.

The maximum commutes with dequantization, so it is taken of the integers. An average is
`float32(float32(sum of (q - zero_point)) * scale) / float32(count)`, the sum exact, and is then quantized.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pyq.geometry import Placement
from pyq.qparams import QParams, quantize_array


def max_pool(x: np.ndarray, placement: Placement) -> np.ndarray:
    """Maxima of images [N, *spatial, C]; padding never is the maximum."""
    return _reduced(np.maximum, x, placement, np.iinfo(x.dtype).min)


def average_pool(
    x: np.ndarray, params: QParams, placement: Placement, include_pad: bool, out_params: QParams
) -> np.ndarray:
    """Means of images [N, *spatial, C]; `include_pad`: padding counts as elements of value 0."""
    sums = _reduced(np.add, np.subtract(x, params.zero_point, dtype=np.int64), placement, 0)
    counts = placement.counts(x.shape[1:-1], include_pad)[..., None]
    with np.errstate(over="ignore", under="ignore"):
        return quantize_array(sums.astype(np.float32) * params.scale / counts.astype(np.float32), out_params)


def _reduced(operation: np.ufunc, x: np.ndarray, placement: Placement, padding: int) -> np.ndarray:
    """`x` [N, *spatial, C] reduced over windows."""
    for i, (kernel, out) in enumerate(zip(placement.kernel, placement.out, strict=True)):
        axis, stride, dilation = 1 + i, placement.strides[i], placement.dilations[i]
        reach = (kernel - 1) * dilation + 1
        end = (out - 1) * stride + reach - x.shape[axis] - placement.pads[i]
        margins = [(placement.pads[i], max(end, 0)) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = np.pad(x, margins, constant_values=padding)
        every = (slice(None),) * axis
        windows = sliding_window_view(padded, reach, axis)[(*every, slice(0, (out - 1) * stride + 1, stride))]
        x = operation.reduce(windows[..., ::dilation], axis=-1)
    return x

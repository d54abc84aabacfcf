"""What the public products have in common: arguments as raw integers, and the epilogue that their reals describe."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyq.backends import Epilogue, requantize_epilogue
from pyq.checks import check_choice, check_params
from pyq.geometry import channels_first
from pyq.packing import PackedWeight
from pyq.qparams import LIMITS, QParams, as_float32, quantize_array
from pyq.tensor import QTensor
from pyq.transposed import PackedTransposed

Activation: TypeAlias = str | tuple[float | None, float | None] | None

ACCUMULATE = Epilogue(np.dtype(np.int32))
"""The sums as they are."""

_BOUNDS: dict[str, tuple[float | None, float | None]] = {"relu": (0.0, None), "relu6": (0.0, 6.0)}


def epilogue_of(
    x: QTensor,
    w: PackedWeight | PackedTransposed,
    bias: npt.ArrayLike | None,
    out: QParams | None,
    activation: Activation,
) -> Epilogue:
    """What turns the accumulators of `x` and `w` into float32, or into the integers of `out`; kept by `w`."""
    bounds, reals = real_bounds(activation), _reals(bias)
    params = None if out is None else check_params("out", out).identity
    key = "epilogue", x.params.identity, params, bounds, None if reals is None else (reals.shape, reals.tobytes())
    return w.kept.get(key) or w.keep(key, _epilogue(x.scale, w.scale, w.columns, reals, out, bounds))


def make_epilogue(
    x_scale: np.ndarray,
    w_scale: np.ndarray,
    columns: int,
    bias: npt.ArrayLike | None,
    out: QParams | None,
    activation: Activation,
) -> Epilogue:
    """As `epilogue_of`, for weights that keep nothing."""
    params = None if out is None else check_params("out", out)
    return _epilogue(x_scale, w_scale, columns, _reals(bias), params, real_bounds(activation))


def _epilogue(
    x_scale: np.ndarray,
    w_scale: np.ndarray,
    columns: int,
    bias: np.ndarray | None,
    out: QParams | None,
    bounds: tuple[float | None, float | None],
) -> Epilogue:
    if bias is not None and (bias.shape != (columns,) or not np.isfinite(bias).all()):
        raise ValueError(f"bias: expected {columns} finite numbers, got {bias!r}")
    with np.errstate(over="ignore", under="ignore"):
        scale = np.asarray(x_scale * w_scale)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"x, w: expected scales with a float32 product, got {x_scale!r}, {w_scale!r}")
        if out is not None and not np.isfinite(scale / out.scale).all():
            raise ValueError(f"out: scale {out.scale} is too small for products of scale {scale.max()}")
    if out is None:
        offset = None if bias is None else bias.copy()  # it is kept, and the caller may write to his own
        return Epilogue(np.dtype(np.float32), None, scale.reshape(-1), offset, 0, *bounds)
    steps = None
    if bias is not None:
        steps = quantize_array(bias, QParams(np.broadcast_to(scale, bias.shape), 0, "int32", axis=0))
    # Quantization is monotonic: bounds on the reals become bounds on the integers.
    low, high = (None if b is None else int(quantize_array(np.asarray(b, np.float32), out)) for b in bounds)
    return requantize_epilogue(x_scale, w_scale, out, steps, low, high)


def _reals(bias: npt.ArrayLike | None) -> np.ndarray | None:
    return None if bias is None else as_float32("bias", bias)


def real_bounds(activation: Activation) -> tuple[float | None, float | None]:
    """Lower and upper bound in reals, None where there is none."""
    if activation is None:
        return None, None
    if isinstance(activation, str):
        return _BOUNDS[check_choice("activation", activation, tuple(_BOUNDS))]
    try:
        low, high = (None if bound is None else float(bound) for bound in activation)
    except (TypeError, ValueError):
        raise TypeError(f'activation: expected "relu", "relu6" or (low, high), got {activation!r}') from None
    if not (-np.inf if low is None else low) <= (np.inf if high is None else high):
        raise ValueError(f"activation: expected low <= high, got {activation!r}")
    return low, high


def quantized(y: np.ndarray, out: QParams | None) -> np.ndarray | QTensor:
    """The result of a product: itself when it is float32, else integers with the parameters `out`."""
    return y if out is None else QTensor.of(y, out)


def unscaled(integers: np.ndarray, zero_points: np.ndarray, axis: int) -> QTensor:
    """Raw integers as a QTensor of scale 1 with a zero point for each index of `axis`."""
    return QTensor(integers, np.ones(zero_points.shape, np.float32), zero_points, axis)


def unwanted_zero_point(name: str, zero_point: npt.ArrayLike) -> ValueError:
    """What to raise for a zero point beside packed weights."""
    return ValueError(f"{name}: packed weights have their own, got {zero_point!r}")


def one_zero_point(value: npt.ArrayLike, dtype: np.dtype[Any]) -> int | None:
    """The value of a single zero point within `dtype`; None where `check_zero_points`, which is slow, has to look."""
    if type(value) is int:
        number = value
    elif isinstance(value, np.integer):
        number = int(value)
    elif isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iu":
        number = value.item()
    else:
        return None
    low, high = LIMITS[dtype]
    return number if low <= number <= high else None


def check_zero_points(
    name: str, values: npt.ArrayLike | None, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int
) -> np.ndarray:
    """Zero points within `dtype`: a single one as a 0-d array, several so that they broadcast to `shape`.

    A 1-d array has one zero point per index of `axis` of `shape`.
    """
    if values is None:
        return np.zeros((), np.int64)
    zeros = np.asarray(values)
    low, high = LIMITS[dtype]
    if zeros.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {zeros.dtype}")
    extremes = (int(zeros.item()),) * 2 if zeros.size == 1 else (zeros.min(initial=low), zeros.max(initial=low))
    if not low <= extremes[0] <= extremes[1] <= high:
        raise ValueError(f"{name}: expected {low} to {high} for {dtype}, got {values!r}")
    if zeros.size == 1:
        return zeros.reshape(())
    column = zeros[:, None] if zeros.ndim == 1 and axis == -2 else zeros
    try:
        np.broadcast_to(column, shape)
    except ValueError:
        raise ValueError(f"{name}: expected one, or as many as fit {shape}, got shape {zeros.shape}") from None
    return column


def in_layout(y: np.ndarray, layout: str) -> np.ndarray:
    """The channels-last result in `layout`, a view."""
    return y if layout == "NHWC" else channels_first(y)

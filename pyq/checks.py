"""Argument checks that the operations share: messages name the argument, what came and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyq.qparams import QParams
from pyq.tensor import QTensor

BYTES = (np.dtype("uint8"), np.dtype("int8"))
LAYOUTS = ("NCHW", "NHWC")


def check_activation(name: str, x: object) -> QTensor:
    """`x` as a uint8 or int8 QTensor with one scale, the left operand of integer kernels."""
    if not isinstance(x, QTensor):
        raise TypeError(f"{name}: expected a QTensor, got {type(x).__name__}")
    params = x.params
    if params.dtype not in BYTES:
        raise TypeError(f"{name}: expected uint8 or int8 data, got {x.dtype}")
    if params.axis is not None:
        raise ValueError(f"{name}: expected one scale for the whole tensor, got one per index of axis {x.axis}")
    return x


def check_bytes(name: str, x: object) -> np.ndarray:
    """`x` as a uint8 or int8 array."""
    array = x if type(x) is np.ndarray else np.asarray(x)
    if array.dtype not in BYTES:
        raise TypeError(f"{name}: expected an array of uint8 or int8, got {array.dtype}")
    return array


def check_params(name: str, params: object) -> QParams:
    """`params` as QParams that an activation can have: uint8 or int8, one scale."""
    if not isinstance(params, QParams):
        raise TypeError(f"{name}: expected QParams, got {type(params).__name__}")
    if params.dtype not in BYTES:
        raise ValueError(f"{name}: expected dtype uint8 or int8, got {params.dtype}")
    if params.axis is not None:
        raise ValueError(f"{name}: expected one scale for the whole tensor, got one per index of axis {params.axis}")
    return params


def check_integer(name: str, value: object, least: int, default: int) -> int:
    """`value` as an integer not below `least`; `default` when None."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value}")
    return int(value)


def check_integers(name: str, values: Any, count: int, least: int, default: int) -> tuple[int, ...]:
    """`values` as `count` integers, none below `least`; `default` for each when None."""
    if values is None:
        return (default,) * count
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
        raise TypeError(f"{name}: expected {count} integers, got {values!r}")
    try:
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name}: expected {count} integers, got {values!r}") from None
    if len(integers) != count or min(integers, default=least) < least:
        raise ValueError(f"{name}: expected {count} integers of at least {least}, got {list(integers)}")
    return integers


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """`value` as one of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value

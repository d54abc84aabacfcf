"""Computations whose results are pinned: integers and floats from a fixed source, through every kind of kernel.

Run as a program, it prints the SHA-256 of each result on the default backend, or on the one that is named.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import pyq
from pyq.backends import Epilogue, current_backend
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor


def raw(seed: int, *shape: int, dtype: str = "uint8") -> np.ndarray:
    """Integers of full range. NumPy promises the stream of a bit generator, not those of its distributions."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return (
        np.random.PCG64(seed).random_raw(size // 8 + 1).astype("<u8").view(np.uint8)[:size].view(dtype).reshape(shape)
    )


def reals(seed: int, *shape: int, unit: float = 1.0) -> np.ndarray:
    """float32 multiples of unit / 2**15 in [-unit, unit)."""
    return raw(seed, *shape, dtype="int16").astype(np.float32) * np.float32(unit / 2**15)


def narrow(seed: int, *shape: int) -> np.ndarray:
    """int8 weights as those of layers: near zero, with few that are large."""
    wide = raw(seed, *shape, dtype="int8").astype(np.int32)
    return (wide * raw(seed + 1, *shape) * raw(seed + 2, *shape) // 2**16).astype(np.int8)


def scales(seed: int, n: int) -> np.ndarray:
    return (1 + raw(seed, n).astype(np.float32)) / np.float32(2**12)


ACTIVATION = QParams(np.float32(0.047), 131, "uint8")
SIGNED = QParams(np.float32(0.031), -9, "int8")


def _activation(seed: int, *shape: int) -> QTensor:
    return QTensor(raw(seed, *shape), ACTIVATION.scale, ACTIVATION.zero_point)


def _signed(seed: int, *shape: int) -> QTensor:
    return QTensor(raw(seed, *shape, dtype="int8"), SIGNED.scale, SIGNED.zero_point)


def _conv(seed: int, x: tuple[int, ...], w: tuple[int, ...], out: QParams | None = None, **attributes: Any) -> Any:
    weights = QTensor(narrow(seed, *w), scales(seed + 3, w[0]), np.zeros(w[0], np.int8), 0)
    packed = pack(weights, group=attributes.get("group", 1))
    return pyq.conv(_activation(seed + 4, *x), packed, reals(seed + 5, w[0], unit=40), out=out, **attributes)


def _conv_transpose(
    seed: int, x: tuple[int, ...], w: tuple[int, ...], out: QParams | None = None, **attributes: Any
) -> Any:
    weights = QTensor(narrow(seed, *w), scales(seed + 3, w[1]), np.zeros(w[1], np.int8), 1)
    placed = {name: attributes.pop(name, None) for name in ("strides", "dilations")}
    packed = pyq.pack_transposed(weights, group=attributes.get("group", 1), **placed)
    bias = reals(seed + 5, packed.columns, unit=40)
    return pyq.conv_transpose(_activation(seed + 4, *x), packed, bias, out=out, **attributes)


def _requantize(seed: int, dtype: str) -> np.ndarray:
    acc = raw(seed, 40, 37, dtype="int32")
    multiplier = scales(seed + 1, 37) * np.float32(2**-18)
    table = None if dtype == "float32" else raw(seed + 3, 256)
    bias = raw(seed + 2, 37, dtype="int32")
    epilogue = Epilogue(np.dtype(dtype), bias, multiplier, zero_point=0 if dtype == "float32" else 11, table=table)
    return current_backend().requantize(acc, epilogue)


CASES: dict[str, Callable[[], Any]] = {
    "matmul_integer u8 s8": lambda: pyq.matmul_integer(raw(1, 67, 130), raw(2, 130, 45, dtype="int8"), 200, -3),
    "matmul_integer s8 u8": lambda: pyq.matmul_integer(raw(3, 5, 33, dtype="int8"), raw(4, 33, 70), -128, raw(5, 70)),
    "matmul_integer proven": lambda: pyq.matmul_integer(raw(6, 200, 256), pack(QTensor(narrow(7, 256, 64), 1.0)), 77),
    "matmul to float32": lambda: pyq.matmul(
        _activation(8, 50, 96), QTensor(narrow(9, 96, 40), scales(10, 40), np.zeros(40, np.int8), 1), reals(11, 40)
    ),
    "matmul to uint8, relu": lambda: pyq.matmul(
        _signed(12, 50, 96), pack(QTensor(narrow(13, 96, 40), 0.011)), reals(14, 40), ACTIVATION, "relu"
    ),
    "conv 3x3": lambda: _conv(20, (2, 19, 13, 17), (21, 19, 3, 3), strides=(2, 1), pads=(1, 1, 1, 1)),
    "conv stem to int8": lambda: _conv(30, (1, 3, 32, 40), (32, 3, 3, 3), SIGNED, strides=(2, 2), activation="relu6"),
    "conv grouped": lambda: _conv(40, (1, 12, 9, 9), (20, 3, 3, 3), ACTIVATION, group=4, pads=(0, 1, 2, 1)),
    "conv depthwise": lambda: _conv(50, (1, 37, 14, 15), (37, 1, 5, 5), ACTIVATION, group=37, pads=(2, 2, 2, 2)),
    "conv 1-D": lambda: _conv(60, (2, 8, 50), (24, 8, 5), pads=(2, 2)),
    "conv 3-D": lambda: _conv(65, (1, 5, 6, 9, 8), (18, 5, 2, 3, 3), strides=(1, 2, 1), pads=(0, 1, 1, 1, 1, 0)),
    "conv_transpose 4x4": lambda: _conv_transpose(
        120, (1, 20, 9, 7), (20, 13, 4, 4), ACTIVATION, strides=(2, 2), pads=(1, 1, 1, 1), activation="relu"
    ),
    "conv_transpose grouped": lambda: _conv_transpose(
        130, (2, 12, 6, 5), (12, 5, 3, 2), group=3, strides=(2, 3), dilations=(1, 2), output_padding=(1, 0)
    ),
    "conv_integer dilated": lambda: pyq.conv_integer(
        raw(70, 1, 5, 20, 20), raw(71, 7, 5, 3, 3), 128, raw(72, 7), dilations=(2, 3), pads=(1, 2, 3, 0)
    ),
    "requantize uint8": lambda: _requantize(80, "uint8"),
    "requantize float32": lambda: _requantize(90, "float32"),
    "quantize": lambda: current_backend().quantize(reals(100, 900, unit=8), ACTIVATION),
    "dequantize": lambda: current_backend().dequantize(raw(101, 900), ACTIVATION),
    "add": lambda: pyq.add(_activation(102, 7, 90), _signed(103, 90), SIGNED),
    "mul": lambda: pyq.mul(_signed(104, 7, 1, 9), _activation(105, 5, 9), ACTIVATION),
    "div": lambda: pyq.div(_activation(106, 400), QTensor(raw(107, 400) | 1, 0.5), SIGNED),
    "hardswish": lambda: pyq.unary(_activation(108, 300), "hardswish", SIGNED),
    "average pool": lambda: pyq.average_pool(_activation(109, 1, 6, 9, 9), (3, 2), pads=(1, 0, 1, 1), out=ACTIVATION),
    "softmax": lambda: pyq.softmax(_signed(110, 12, 33), out=QParams(np.float32(1 / 256), 0)),
}


def digest(name: str) -> str:
    """SHA-256 of dtype, shape and bytes, little endian."""
    result = CASES[name]()
    array = np.ascontiguousarray(result.data if isinstance(result, QTensor) else result)
    little = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode() + little.tobytes()).hexdigest()


def digests() -> dict[str, str]:
    return {name: digest(name) for name in CASES}


if __name__ == "__main__":
    with pyq.use_backend(*(sys.argv[1:] or ["c"])):
        print(json.dumps(digests(), indent=4))

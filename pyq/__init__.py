"""pyq: exact, fast int8 on ordinary CPUs.

Kernels for int8 matrix products and convolutions, quantized tensors for NumPy, and the way from a trained float
model to an int8 one that is verified against it. ``import pyq`` needs NumPy and cffi; :mod:`pyq.onnx`, Numba and
the rest are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyq.backends import available_backends, use_backend
from pyq.config import get_num_threads, kernels_available, set_num_threads, show_config
from pyq.conv_transpose import conv_transpose, conv_transpose_integer
from pyq.elementwise import add, concat, div, mul, sub
from pyq.errors import FormatError, UnsupportedOperator
from pyq.ops import conv, conv_integer, linear, matmul, matmul_dynamic, matmul_integer
from pyq.packing import Certificate, PackedWeight, pack, verify_certificate
from pyq.pooling import average_pool, global_average_pool, global_max_pool, max_pool
from pyq.softmax import softmax
from pyq.tables import UnaryTable, requantize, unary, unary_table
from pyq.tensor import QParams, QTensor, choose_qparams, dequantize, quantize
from pyq.transposed import PackedTransposed, pack_transposed

if TYPE_CHECKING:
    from pyq.onnx.quantize import quantize_model

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "FormatError",
    "PackedTransposed",
    "PackedWeight",
    "QParams",
    "QTensor",
    "UnaryTable",
    "UnsupportedOperator",
    "add",
    "available_backends",
    "average_pool",
    "choose_qparams",
    "concat",
    "conv",
    "conv_integer",
    "conv_transpose",
    "conv_transpose_integer",
    "dequantize",
    "div",
    "get_num_threads",
    "global_average_pool",
    "global_max_pool",
    "kernels_available",
    "linear",
    "matmul",
    "matmul_dynamic",
    "matmul_integer",
    "max_pool",
    "mul",
    "pack",
    "pack_transposed",
    "quantize",
    "quantize_model",
    "requantize",
    "set_num_threads",
    "show_config",
    "softmax",
    "sub",
    "unary",
    "unary_table",
    "use_backend",
    "verify_certificate",
]


def __getattr__(name: str) -> Any:
    if name == "quantize_model":  # needs onnx, which import pyq must not
        from pyq.onnx.quantize import quantize_model

        return quantize_model
    raise AttributeError(f"module 'pyq' has no attribute {name!r}")

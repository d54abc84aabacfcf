"""Linear layers with dynamic quantization: float32 in and out, range, scale and integers in between."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

import pyq
from bench.peers import ort
from pyq.benchmark import Contender, Task
from pyq.workloads import MatMul, random_weights

LAYERS = [MatMul(m, n, k) for m in (1, 16, 128) for n, k in ((768, 768), (3072, 768), (768, 3072))]
"""Those of a transformer, for one token, some, and a sentence."""


def dynamic_task(shape: MatMul, seed: int, threads: int) -> Task:
    """NumPy's float32, ONNX Runtime, and pyq in one call and in two; right is what the exact integers stand for."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(shape.m, shape.k)).astype(np.float32)
    bias = rng.normal(size=shape.n).astype(np.float32)
    weights = random_weights(rng, "laplace", (shape.k, shape.n), axis=1)
    with pyq.use_backend("reference"):
        q = pyq.quantize(x)
    sums = (q.data.astype(np.float64) - int(q.zero_point)) @ weights.data.astype(np.float64)
    expected = sums * q.scale.astype(np.float64) * weights.scale + bias
    packed, reals = pyq.pack(weights), weights.dequantize()
    in_integers = partial(Contender, expected=expected, in_float=False)
    contenders = [
        Contender("NumPy float32", lambda: x @ reals + bias, x.astype(np.float64) @ reals + bias),
        replace(ort.dynamic_matmul(x, weights, bias, expected, threads), in_float=False),
        in_integers("pyq matmul_dynamic", lambda: pyq.matmul_dynamic(x, packed, bias)),
        in_integers("pyq quantize, matmul", lambda: pyq.matmul(pyq.quantize(x), packed, bias)),
    ]
    return Task(f"dynamic {shape.label}", shape.macs, shape.bytes, seed, contenders)

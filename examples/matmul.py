"""A matrix product in int8: exact integers, and what that makes of the real numbers behind them."""

import numpy as np

import pyq

rng = np.random.default_rng(0)
x = rng.normal(size=(128, 768)).astype(np.float32)
w = rng.normal(size=(768, 256)).astype(np.float32)

qx = pyq.quantize(x, dtype="uint8")
qw = pyq.quantize(w, dtype="int8", axis=1)
packed = pyq.pack(qw)
print(packed.certificate)

accumulators = pyq.matmul_integer(qx.data, packed, qx.zero_point)
exact = (qx.data.astype(np.int64) - int(qx.zero_point)) @ qw.data.astype(np.int64)
print("every integer is exact:", np.array_equal(accumulators, exact))

y = pyq.matmul(qx, packed)
print(f"relative error of the real product: {np.linalg.norm(y - x @ w) / np.linalg.norm(x @ w):.4f}")

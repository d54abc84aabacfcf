"""From a float ONNX model to a verified int8 one: a small convolutional network made on the spot."""

import numpy as np
import onnx
from onnx import numpy_helper, parser

import pyq
import pyq.onnx

rng = np.random.default_rng(0)
model = parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    network (float[N, 3, 32, 32] image) => (float[N, 10] scores) {
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w1)
        b = Relu(a)
        c = Conv <pads = [1, 1, 1, 1]> (b, w2)
        d = Relu(c)
        pooled = GlobalAveragePool(d)
        flat = Flatten(pooled)
        scores = Gemm(flat, w3)
    }
""")
for name, shape in {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 10)}.items():
    weights = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, name))
onnx.checker.check_model(model)

batches = [{"image": rng.uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)} for _ in range(8)]
result = pyq.quantize_model(model, calibration=batches)
for layer in result.report.layers:
    print(f"{layer.op_type:18} {layer.output:8} exact={layer.exact} SQNR={layer.sqnr:.1f} dB")

result.save("network.int8.onnx")
scores = pyq.onnx.Session("network.int8.onnx").run(None, batches[0])[0]
expected = pyq.onnx.Session(model).run(None, batches[0])[0]
print(f"largest difference of a score: {np.abs(scores - expected).max():.4f}")

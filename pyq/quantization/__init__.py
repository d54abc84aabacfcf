"""From a float graph to a verified int8 one: select, calibrate, insert quantizers, verify, report.

It works on a small graph view (`graph`) and does not care where a model came from; `pyq.quantize_model` is
the way in for ONNX models.
"""

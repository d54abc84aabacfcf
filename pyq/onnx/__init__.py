"""Run, optimize and write ONNX models with pyq's kernels."""

from pyq.onnx.session import Session

__all__ = ["Session"]

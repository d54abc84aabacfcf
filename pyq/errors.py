"""Exceptions that pyq adds to Python's own.

Bad arguments are `ValueError` or `TypeError`. The two classes here refine built-in ones, so that a caller
who knows nothing of pyq still catches them.
"""


class FormatError(ValueError):
    """A file or buffer is not what it says it is: wrong magic, version, length or checksum, broken model.

    >>> raise FormatError("weights.pyq: checksum differs, the file is damaged")
    Traceback (most recent call last):
    pyq.errors.FormatError: weights.pyq: checksum differs, the file is damaged
    """


class UnsupportedOperator(NotImplementedError):
    """An ONNX operator that cannot run. Raised when a model is loaded, before anything runs.

    Attributes: `node` (its name), `operator` (op_type, with its domain unless that is ONNX's own), `opset`
    and `reason` (empty, or what about the node is not supported).

    >>> raise UnsupportedOperator("conv_7", "com.acme.Conv", 17)
    Traceback (most recent call last):
    pyq.errors.UnsupportedOperator: node 'conv_7': operator com.acme.Conv of opset 17 is not supported
    """

    def __init__(self, node: str, operator: str, opset: int, reason: str = "") -> None:
        super().__init__(node, operator, opset, reason)
        self.node, self.operator, self.opset, self.reason = node, operator, opset, reason

    def __str__(self) -> str:
        text = f"node {self.node!r}: operator {self.operator} of opset {self.opset} is not supported"
        return f"{text}: {self.reason}" if self.reason else text

"""What a compiled model is made of: steps, and the memory their outputs go to."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike


class Buffers(Protocol):
    """Gives the running step memory for an output."""

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An uninitialized C-ordered array, valid until the last step that reads the value has run."""
        ...


class Fresh:
    """Buffers that are new each time: for a step that runs once."""

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """See `Buffers.take`."""
        return np.empty(shape, dtype)


class Step(Protocol):
    """One operation of a compiled model; everything that can be prepared was prepared when it was made.

    name, op_type: of the node (or of the main node of a fused pattern), for reports and errors.
    inputs: names of the values that `run` expects, in order; constants the step holds are not among them.
    outputs: names of the values that `run` returns, in order.
    """

    name: str
    op_type: str
    inputs: list[str]
    outputs: list[str]

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        """Compute the outputs. Quantized tensors come and go as raw uint8 / int8 arrays.

        Values may have any strides: they carry the layout. A step may take its outputs from `out`, or return
        new arrays or views of its inputs; it never writes to its inputs.
        """
        ...


class Stopwatch:
    """A step that also notes the milliseconds of each of its runs."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.name, self.op_type = step.name, step.op_type
        self.inputs, self.outputs = step.inputs, step.outputs
        self.milliseconds: list[float] = []

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        """See `Step.run`."""
        start = time.perf_counter()
        outputs = self._step.run(inputs, out)
        self.milliseconds.append((time.perf_counter() - start) * 1e3)
        return outputs

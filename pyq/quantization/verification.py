"""Verify an int8 model: its kernels against the integer reference, its layers against the float model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyq.qparams import QParams, dequantize_array
from pyq.quantization.calibration import FloatModel, Progress
from pyq.quantization.graph import Graph

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Operators between float and int8; layers are what computes in between."""


@dataclass(frozen=True)
class LayerResult:
    """What verification found out about one int8 layer.

    index: position in the order of execution. name, op_type: of the layer; output: the float tensor it stands
    for. mismatches: output elements that are not those of the integer reference, of `elements` in all. sqnr:
    signal to quantization noise against the float model in dB, `max_error` the largest absolute difference;
    None when the float model has no such tensor. scale, zero_point: of the output, None when it is float.
    """

    index: int
    name: str
    op_type: str
    output: str
    mismatches: int
    elements: int
    sqnr: float | None = None
    max_error: float | None = None
    scale: float | None = None
    zero_point: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the layer gave the bytes of the integer reference."""
        return self.mismatches == 0


@dataclass
class Noise:
    """Sums up, batch by batch, how far an approximation is from its signal.

    SQNR is the mean power of the signal over that of the error (Gray and Neuhoff, "Quantization", IEEE
    Transactions on Information Theory 44 (6), 1998, section I): `10 log10(sum f**2 / sum (f - q)**2)`, in dB.

    >>> noise = Noise()
    >>> noise.add(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    >>> noise.sqnr, noise.max_error
    (20.0, 0.5)
    """

    signal: float = 0.0
    error: float = 0.0
    max_error: float = 0.0

    def add(self, f: NDArray[Any], q: NDArray[Any]) -> None:
        """Take in a signal `f` and its approximation `q`, of the same shape; sums are in float64."""
        if f.shape != q.shape:
            raise ValueError(f"q: expected the shape of f, {f.shape}, got {q.shape}")
        exact = f.astype(np.float64)
        difference = exact - q
        self.signal += float(np.square(exact).sum())
        self.error += float(np.square(difference).sum())
        self.max_error = max(self.max_error, float(np.abs(difference).max(initial=0)))

    @property
    def sqnr(self) -> float:
        """In dB; infinite when there is no error, minus infinite when there is only error."""
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal > 0 else -math.inf


@dataclass(frozen=True)
class Verification:
    """The results of `verify`: the int8 layers, worst first, and the SQNR in dB of every model output."""

    layers: list[LayerResult]
    outputs: dict[str, float]


class Step(Protocol):
    """One operation of a compiled model, and the names of the values it reads and makes."""

    name: str
    op_type: str
    inputs: list[str]
    outputs: list[str]


class Int8Model(Protocol):
    """The model to verify; `pyq.onnx.Session` is one."""

    graph: Graph

    @property
    def steps(self) -> Sequence[Step]:
        """Everything the model executes, in order."""
        ...

    def compare_steps(
        self, other: str, feeds: Mapping[str, Any], compare: Callable[[Any, list[Any], list[Any]], None]
    ) -> dict[str, Any]:
        """Run on `feeds`, each int8 step once more by the backend `other`; returns all outputs by name.

        compare: called with each int8 step, its outputs, and its outputs by `other`.
        """
        ...


def verify(
    float_model: FloatModel,
    int8_model: Int8Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    progress: Progress | None = None,
) -> Verification:
    """Compare every int8 layer, on its actual inputs, with the reference backend, and with the float model.

    A layer is found in the float model by the name of the tensor that its QuantizeLinear reads.
    ValueError when there are no feeds.
    """
    if not feeds:
        raise ValueError("feeds: got none, at least one is needed to verify a model")
    comparison = _Comparison(float_model, int8_model)
    for done, feed in enumerate(feeds, 1):
        comparison.truth = float_model.run_values(comparison.names, feed)
        results = int8_model.compare_steps("reference", feed, comparison.compare)
        for name, noise in comparison.outputs.items():
            noise.add(comparison.truth[name], results[name])
        if progress is not None:
            progress(done, len(feeds), "verify")
    layers = [layer.result(index) for index, layer in enumerate(comparison.layers.values())]
    outputs = {name: noise.sqnr for name, noise in comparison.outputs.items()}
    return Verification(sorted(layers, key=_badness), outputs)


def count_mismatches(made: NDArray[Any], expected: NDArray[Any]) -> int:
    """How many elements differ in any bit; all of them when the shapes or types differ.

    >>> count_mismatches(np.array([0.0, 1.0]), np.array([-0.0, 1.0]))
    1
    """
    if made.shape != expected.shape or made.dtype != expected.dtype:
        return made.size
    bits = f"u{made.dtype.itemsize}"
    return int(np.count_nonzero(np.ascontiguousarray(made).view(bits) != np.ascontiguousarray(expected).view(bits)))


def _badness(layer: LayerResult) -> tuple[bool, float]:
    """Sorts layers worst first: those that are not exact, then by SQNR; those without one come last."""
    return layer.exact, math.inf if layer.sqnr is None else layer.sqnr


@dataclass(frozen=True)
class _Tensor:
    """The float tensor that a value stands for; params: how, None when the value is that tensor itself."""

    name: str
    params: QParams | None = None


@dataclass
class _Layer:
    """What is summed up for one layer. noise is None when the float model does not have its tensor."""

    step: Step
    tensor: _Tensor
    noise: Noise | None
    mismatches: int = 0
    elements: int = 0

    def result(self, index: int) -> LayerResult:
        params, noise = self.tensor.params, self.noise
        return LayerResult(
            index,
            self.step.name,
            self.step.op_type,
            self.tensor.name,
            self.mismatches,
            self.elements,
            None if noise is None else noise.sqnr,
            None if noise is None else noise.max_error,
            None if params is None else float(params.scale),
            None if params is None else int(params.zero_point),
        )


class _Comparison:
    """What is gathered over all feeds.

    names: the values of the float model that are needed. truth: these values for the feed at hand.
    layers: by the name of what they make, in the order of execution. outputs: of the model.
    """

    def __init__(self, float_model: FloatModel, int8_model: Int8Model) -> None:
        self._tensors = _tensors(int8_model.graph)
        made = [name for step in int8_model.steps if self._reads_integers(step) for name in step.outputs]
        outputs = int8_model.graph.output_names
        wanted = [self._tensors[name].name for name in [*made, *outputs] if name in self._tensors]
        known = float_model.graph.consumers()
        self.names = [name for name in dict.fromkeys(wanted) if name in known]
        self.truth: Mapping[str, NDArray[Any]] = {}
        self.layers: dict[str, _Layer] = {}
        self.outputs = {name: Noise() for name in outputs if name in known}

    def compare(self, step: Step, outputs: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
        """Take in what a step made, and what the reference makes of the same inputs."""
        if step.op_type in CONVERSIONS:
            return
        for name, made, reference in zip(step.outputs, outputs, expected, strict=True):
            layer = self.layers.setdefault(name, self._layer(step, name, made.dtype))
            layer.elements += made.size
            layer.mismatches += count_mismatches(made, reference)
            if layer.noise is not None:
                params = layer.tensor.params
                layer.noise.add(
                    self.truth[layer.tensor.name], made if params is None else dequantize_array(made, params)
                )

    def _reads_integers(self, step: Step) -> bool:
        """Whether the step reads the output of a QuantizeLinear, or integers that only fusion has made."""
        found = [self._tensors.get(name) for name in step.inputs]
        return any(tensor is None or tensor.params is not None for tensor in found)

    def _layer(self, step: Step, name: str, dtype: np.dtype[Any]) -> _Layer:
        tensor = self._tensors.get(name, _Tensor(name))
        comparable = tensor.name in self.truth and (tensor.params is not None or dtype.kind == "f")
        return _Layer(step, tensor, Noise() if comparable else None)


def _tensors(graph: Graph) -> dict[str, _Tensor]:
    """What the values of a graph stand for: the output of a QuantizeLinear for its input, others for itself."""
    tensors = {name: _Tensor(name) for name in graph.consumers()}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and len(node.inputs) == 3:
            scale, zero_point = (graph.constants.get(name) for name in node.inputs[1:])
            if scale is not None and zero_point is not None and scale.size == 1:
                params = QParams(scale.reshape(()), zero_point.reshape(()), zero_point.dtype)
                tensors[node.outputs[0]] = _Tensor(node.inputs[0], params)
    return tensors

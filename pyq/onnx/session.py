"""`Session`: load a model, compile it to steps, run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import helper

from pyq.backends import backend as backend_named
from pyq.backends import use_backend
from pyq.config import set_num_threads
from pyq.onnx.compile import compile_steps
from pyq.onnx.load import ModelSource, load
from pyq.onnx.passes import optimize
from pyq.onnx.plan import Plan
from pyq.onnx.step import Fresh, Step, Stopwatch
from pyq.onnx.steps import Int8Step
from pyq.quantization.graph import ValueInfo

Comparer: TypeAlias = Callable[[Step, list[Any], list[Any]], None]


@dataclass(frozen=True)
class NodeArg:
    """An input or output of a session: name, shape (ints, symbols, None) and type, such as "tensor(float)"."""

    name: str
    shape: list[int | str | None]
    type: str

    @classmethod
    def of(cls, value: ValueInfo) -> NodeArg:
        """What onnxruntime would say about the value."""
        return cls(value.name, list(value.shape or ()), f"tensor({_type_name(value.dtype)})")


def _type_name(dtype: np.dtype[Any] | None) -> str:
    if dtype is None:
        return "unknown"
    name = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(dtype))
    return name.removeprefix("TensorProto.").lower()


class Compiled(NamedTuple):
    """What computes one set of outputs: the plan, and the outputs that are constants."""

    plan: Plan
    constants: dict[str, np.ndarray]


class Session:
    """An ONNX model, ready to run; shaped like onnxruntime.InferenceSession.

    model: path of a file, its bytes, or an onnx.ModelProto; float, or quantized (QDQ or QLinear / Integer operators).
    threads: how many threads pyq's kernels may use from now on, in the whole process (see `pyq.set_num_threads`).
    backend: name of the pyq backend that this session uses; the one in force when it runs, unless given.

    Raises FormatError when the model is broken, and UnsupportedOperator, naming node, operator and opset, when
    something in it cannot run.

    >>> from onnx import parser
    >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    >>> session = Session(parser.parse_model(text))
    >>> session.run(None, {"x": np.float32([-1, 2])})
    [array([0., 2.], dtype=float32)]
    """

    def __init__(self, model: ModelSource, *, threads: int | None = None, backend: str | None = None) -> None:
        if threads is not None:
            set_num_threads(threads)
        if backend is not None:
            backend_named(backend)
        self._backend = backend
        self.graph = optimize(load(model))
        self._compiled: dict[tuple[str, ...], Compiled] = {}
        self._compile(self.graph.output_names)

    def get_inputs(self) -> list[NodeArg]:
        """The inputs that `run` must be fed, in the model's order."""
        return [NodeArg.of(value) for value in self.graph.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs that `run` returns, in the model's order."""
        return [NodeArg.of(value) for value in self.graph.outputs]

    @property
    def metadata(self) -> dict[str, str]:
        """The free-form properties that the model's file carries."""
        return dict(self.graph.metadata)

    @property
    def steps(self) -> list[Step]:
        """The compiled steps of a plain run, in order."""
        return self._compile(self.graph.output_names).plan.steps

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model; returns the outputs asked for, all of them for None, in the order of the names.

        feeds: one array per input. ValueError when one is missing, unknown, or of a wrong type, rank or fixed size.
        """
        names = self.graph.output_names if output_names is None else list(output_names)
        unknown = [name for name in names if name not in self.graph.output_names]
        if unknown:
            raise ValueError(f"output_names: no output {unknown[0]!r}, the model has {self.graph.output_names}")
        values = self._run(self.graph.output_names, feeds)
        return [values[name] for name in names]

    def run_values(self, names: Iterable[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model and return any of its values, by name: outputs, inputs and what nodes make in between.

        Folded and fused away values can be asked for as long as they are in `self.graph`; ValueError otherwise. The
        steps for a new set of names are compiled once and kept.
        """
        wanted = list(dict.fromkeys(names))
        known = self.graph.consumers()
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ValueError(f"names: the optimized model has no value {unknown[0]!r}")
        return self._run(wanted, feeds)

    def step_times(self, feeds: Mapping[str, Any], rounds: int = 5) -> list[list[float]]:
        """Run the model `rounds` times, after once to plan its memory; milliseconds of each of `steps` in each run."""
        compiled = self._compile(self.graph.output_names)
        watches = [Stopwatch(step) for step in compiled.plan.steps]
        plan, values = Plan(watches, self.graph.output_names), {**compiled.constants, **self._checked(feeds)}
        with self._chosen_backend(), np.errstate(all="ignore"):
            for _ in range(rounds + 1):
                plan.run(values)
        return [watch.milliseconds[1:] for watch in watches]

    def compare_steps(self, other: str, feeds: Mapping[str, Any], compare: Comparer) -> dict[str, Any]:
        """Run the model, each int8 step a second time by the backend `other` on the same inputs.

        compare: called with each int8 step, its outputs, and its outputs by `other`. Returns all outputs by name.
        """
        compiled = self._compile(self.graph.output_names)
        values: dict[str, Any] = {**compiled.constants, **self._checked(feeds)}
        for step in compiled.plan.steps:
            inputs = [values[name] for name in step.inputs]
            with self._chosen_backend(), np.errstate(all="ignore"):
                outputs = step.run(inputs, Fresh())
            if isinstance(step, Int8Step):
                with use_backend(other):
                    compare(step, outputs, step.run(inputs, Fresh()))
            values.update(zip(step.outputs, outputs, strict=True))
        return {name: values[name] for name in self.graph.output_names}

    def _run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
        checked = self._checked(feeds)
        compiled = self._compile(names)
        # Infinities and NaN are values of the model, not events, as in every float runtime.
        with self._chosen_backend(), np.errstate(all="ignore"):
            return compiled.plan.run({**compiled.constants, **checked})

    def _compile(self, names: Sequence[str]) -> Compiled:
        key = tuple(names)
        if key not in self._compiled:
            known = {value.name: value for value in self.graph.outputs}
            graph = replace(self.graph.copy(), outputs=[known.get(name, ValueInfo(name)) for name in names])
            graph.prune()
            with self._chosen_backend():
                steps, constants = compile_steps(graph)
            outputs = {name: constants[name] for name in names if name in constants}
            self._compiled[key] = Compiled(Plan(steps, names), outputs)
        return self._compiled[key]

    def _chosen_backend(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._backend is None else use_backend(self._backend)

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        expected = {value.name: value for value in self.graph.inputs}
        for name in feeds:
            if name not in expected:
                raise ValueError(f"feeds: the model has no input {name!r}, its inputs are {list(expected)}")
        for name in expected:
            if name not in feeds:
                raise ValueError(f"feeds: input {name!r} is missing")
        return {name: _checked_array(value, feeds[name]) for name, value in expected.items()}


def _checked_array(value: ValueInfo, given: Any) -> Any:
    if value.dtype is None:
        return given
    array = np.asarray(given)
    if array.dtype != value.dtype and not (value.dtype == object and array.dtype.kind in "US"):
        raise ValueError(f"feeds: input {value.name!r} is {array.dtype}, expected {value.dtype}")
    if value.shape is None:
        return array
    fits = array.ndim == len(value.shape) and all(
        not isinstance(fixed, int) or n == fixed for n, fixed in zip(array.shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"feeds: input {value.name!r} has shape {array.shape}, expected {value.shape}")
    return array

"""pyq as an ONNX backend: the interface of `onnx.backend.base.Backend` over `pyq.onnx.Session`.

>>> import numpy as np
>>> from onnx import helper
>>> import pyq.onnx.backend as backend
>>> backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [np.float32([-1, 2])])
(array([0., 2.], dtype=float32),)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.backend.base import Backend, BackendRep

from pyq.onnx.session import Session


class PyqRep(BackendRep):
    """A prepared model."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model; returns its outputs.

        inputs: a sequence of arrays in the model's order, a mapping by name, or one array alone.
        """
        names = [value.name for value in self.session.get_inputs()]
        if not isinstance(inputs, Mapping):
            given = inputs if isinstance(inputs, Sequence) else [inputs]
            if len(given) != len(names):
                raise ValueError(f"inputs: got {len(given)}, the model has {len(names)}: {names}")
            inputs = dict(zip(names, given, strict=True))
        return tuple(self.session.run(None, inputs))


class PyqBackend(Backend):
    """See `onnx.backend.base.Backend`; `run_model` is inherited."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on `device`: "CPU", with or without a number."""
        return device.split(":")[0] == "CPU"

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> PyqRep:
        """Compile a model. kwargs: those of `pyq.onnx.Session`, which also says what is raised."""
        _check_device(device)
        return PyqRep(Session(model, **kwargs))

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays in the order of its inputs, absent ones left out, or on a mapping by name.

        outputs_info: not needed. kwargs: opset_version, by default the latest that onnx knows.
        """
        _check_device(device)
        names = list(dict.fromkeys(name for name in node.input if name))
        feeds = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        arrays = {name: np.asarray(feeds[name]) for name in names}
        opset = helper.make_opsetid(node.domain, kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        given = {
            name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        }
        made = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset.version, node.domain),
            node,
            given,
            {name: numpy_helper.from_array(array, name) for name, array in arrays.items()},
            opset_imports=[opset],
        )
        x, y = ([helper.make_value_info(*item) for item in types.items()] for types in (given, made))
        model = helper.make_model(helper.make_graph([node], node.op_type, x, y), opset_imports=[opset])
        return cls.prepare(model, device).run(arrays)


def _check_device(device: str) -> None:
    if not PyqBackend.supports_device(device):
        raise ValueError(f"device: got {device!r}, pyq runs on the CPU")


is_compatible = PyqBackend.is_compatible
prepare = PyqBackend.prepare
run_model = PyqBackend.run_model
run_node = PyqBackend.run_node
supports_device = PyqBackend.supports_device

"""Verification: SQNR is what it says, and a kernel or a layer that is wrong is found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from models import MODELS, conv_hardswish_chain, feeds, residual
from test_static import quantized

from pyq.backends import available_backends
from pyq.onnx import Session
from pyq.onnx.export import to_proto
from pyq.quantization.verification import Noise, count_mismatches, verify
from pyq.reference import ReferenceBackend


def sessions(make: Any, backend: str | None = None) -> tuple[Session, Session]:
    model = make()
    return Session(model), Session(to_proto(quantized(model)[1]), backend=backend)


# ---- measures


def test_sqnr_of_known_noise() -> None:
    noise = Noise()
    noise.add(np.full(100, 10.0), np.full(100, 10.1))
    assert noise.sqnr == pytest.approx(40) and noise.max_error == pytest.approx(0.1)


def test_sqnr_does_not_depend_on_the_batches() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=60).astype(np.float32)
    q = f + rng.normal(size=60).astype(np.float32) / 50
    whole, parts = Noise(), Noise()
    whole.add(f, q)
    for a, b in zip(np.split(f, 4), np.split(q, 4), strict=True):
        parts.add(a, b)
    assert parts.sqnr == pytest.approx(whole.sqnr) and parts.max_error == whole.max_error


@pytest.mark.parametrize("f, q, sqnr", [(1, 1, math.inf), (0, 0, math.inf), (0, 1, -math.inf)])
def test_sqnr_without_noise_or_signal(f: float, q: float, sqnr: float) -> None:
    noise = Noise()
    noise.add(np.array([f]), np.array([q]))
    assert noise.sqnr == sqnr


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"q: expected the shape of f, \(2,\), got \(1,\)"):
        Noise().add(np.zeros(2), np.zeros(1))


@pytest.mark.parametrize(
    "made, expected, count",
    [
        (np.uint8([1, 2]), np.uint8([1, 2]), 0),
        (np.uint8([1, 2]), np.uint8([1, 3]), 1),
        (np.uint8([1, 2]), np.int8([1, 2]), 2),
        (np.uint8([1, 2]), np.uint8([[1, 2]]), 2),
        (np.float32([np.nan, 0]), np.float32([np.nan, -0.0]), 1),
        (np.arange(6, dtype=np.uint8).reshape(2, 3).T, np.uint8([[0, 3], [1, 4], [2, 5]]), 0),
    ],
)
def test_mismatches_are_counted_in_bits(made: np.ndarray, expected: np.ndarray, count: int) -> None:
    assert count_mismatches(made, expected) == count


# ---- models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", available_backends()[:-1])  # all but the reference
def test_every_layer_is_exact_and_near_float(name: str, backend: str) -> None:
    float_session, int8_session = sessions(MODELS[name], backend)
    verification = verify(float_session, int8_session, feeds(MODELS[name](), 2))
    assert verification.layers and all(layer.exact for layer in verification.layers)
    assert min(layer.sqnr for layer in verification.layers if layer.sqnr is not None) > 25
    assert list(verification.outputs) == int8_session.graph.output_names
    assert min(verification.outputs.values()) > 25


def test_a_layer_row_says_what_can_be_computed_by_hand() -> None:
    float_session, int8_session = sessions(conv_hardswish_chain)
    batches = feeds(conv_hardswish_chain(), 2)
    layers = {layer.output: layer for layer in verify(float_session, int8_session, batches).layers}
    assert sorted(layers) == ["Add11", "Conv12", "Div4"]
    layer = layers["Div4"]
    signal = error = 0.0
    for feed in batches:
        f = float_session.run_values(["Div4"], feed)["Div4"].astype(np.float64)
        q = int8_session.run_values(["Div4_quantized"], feed)["Div4_quantized"].astype(np.float64)
        signal += np.square(f).sum()
        error += np.square(f - (q - layer.zero_point) * layer.scale).sum()
    assert layer.sqnr == pytest.approx(10 * math.log10(signal / error), abs=1e-4)
    assert layer.elements == 2 * 16 * 6 * 8
    assert (layers["Conv12"].scale, layers["Conv12"].zero_point) == (None, None)


def test_layers_are_sorted_worst_first() -> None:
    found = [layer.sqnr for layer in verify(*sessions(residual), feeds(residual(), 1)).layers]
    measured = [sqnr for sqnr in found if sqnr is not None]
    assert measured == sorted(measured)
    assert found == measured + [None] * (len(found) - len(measured))


def test_a_kernel_that_differs_by_one_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is made to differ: the two really are run apart, and every bit counts."""
    original = ReferenceBackend.conv

    def wrong(*args: Any) -> np.ndarray:
        made = original(*args)
        if len(args) > 7:  # a residual
            made[0, 0, 0, 0] ^= 1
        return made

    models = sessions(residual, backend=available_backends()[0])
    monkeypatch.setattr(ReferenceBackend, "conv", wrong)
    first, *others = verify(*models, feeds(residual(), 3)).layers
    assert (first.op_type, first.output, first.mismatches, first.exact) == ("Conv", "Relu4", 3, False)
    assert all(layer.exact for layer in others)


def test_a_model_of_other_weights_has_a_low_sqnr() -> None:
    _, int8_session = sessions(conv_hardswish_chain)
    proto = conv_hardswish_chain()
    values = np.random.default_rng(9).normal(size=(16, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer[0].raw_data = values.tobytes()
    layers = verify(Session(proto), int8_session, feeds(proto, 1)).layers
    assert all(layer.exact for layer in layers) and all((layer.sqnr or 0) < 6 for layer in layers)


def test_progress_and_feeds() -> None:
    seen: list[Any] = []
    models = sessions(residual)
    verify(*models, feeds(residual(), 2), progress=lambda *step: seen.append(step))
    assert seen == [(1, 2, "verify"), (2, 2, "verify")]
    with pytest.raises(ValueError, match="feeds: got none"):
        verify(*models, [])


def test_comparing_steps_returns_the_outputs_of_a_plain_run() -> None:
    _, session = sessions(residual)
    (feed,) = feeds(residual(), 1)
    steps: list[str] = []
    outputs: Mapping[str, np.ndarray] = session.compare_steps(
        "reference", feed, lambda step, made, expected: steps.append(step.op_type)
    )
    np.testing.assert_array_equal(outputs["Conv6"], session.run(None, feed)[0])
    assert steps == ["QuantizeLinear", "Conv", "Conv", "MaxPool", "Conv"]  # the second with the residual

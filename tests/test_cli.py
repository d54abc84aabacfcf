"""The commands: what they write, what they print, and how they fail."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from pyq import FormatError
from pyq.cli import _parser, main
from pyq.feeds import read_feeds
from pyq.onnx import Session
from pyq.onnx.session import NodeArg

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
model (float[2, 3, 8, 8] x, float[2, 4] y) => (float[2, 4] z) {
    features = Conv (x, kernels)
    active = Relu(features)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    z = Add(flat, y)
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.onnx, of two inputs and batch 2, and data.npz, of 6 samples."""
    rng = np.random.default_rng(3)
    model = parser.parse_model(MODEL)
    kernels = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernels, "kernels"))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(
        tmp_path / "data.npz",
        x=rng.normal(size=(6, 3, 8, 8)).astype(np.float32),
        y=rng.normal(size=(6, 4)).astype(np.float32),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return subparsers.choices


def run(arguments: str) -> int:
    return main(arguments.split())


def failure(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail as documented: exit code 2, one line on stderr; return that line."""
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pyq {arguments.split()[0]}: ") and error.count("\n") == 1
    return error


def test_the_entry_point_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="pyq")
    assert script.load() is main


@pytest.mark.parametrize("name", commands())
def test_examples_in_help_parse(name: str) -> None:
    examples = (commands()[name].epilog or "").splitlines()[1:]
    assert examples
    for example in examples:
        program, *arguments = example.split()
        assert program == "pyq" and _parser().parse_args(arguments).command == name


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("isa", "backend", "threads", "kernels"))


def test_quantize_run_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quantize model.onnx --calibration data.npz --report report.html") == 0
    assert "all exact" in capsys.readouterr().out
    onnx.checker.check_model(folder / "model.int8.onnx", full_check=True)
    assert b"<html" in (folder / "report.html").read_bytes()

    for backend in ("c", "reference"):
        command = f"run model.int8.onnx --data data.npz --output {backend}.npz --backend {backend}"
        assert run(command) == 0
    fast, exact = np.load("c.npz"), np.load("reference.npz")
    assert fast.files == exact.files == ["z.0", "z.1", "z.2"]
    data = np.load("data.npz")
    for i, name in enumerate(fast.files):
        np.testing.assert_array_equal(fast[name], exact[name])
        feed = {key: data[key][2 * i : 2 * i + 2] for key in data.files}
        np.testing.assert_array_equal(fast[name], Session("model.int8.onnx").run(None, feed)[0])

    capsys.readouterr()
    assert run("compare model.onnx model.int8.onnx --data data.npz --threads 1 --rounds 1") == 0
    shown = capsys.readouterr().out
    sqnr = float(shown.split("SQNR of z: ")[1].split()[0])
    assert 25 < sqnr < 80 and "File size" in shown


def test_compare_needs_the_same_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("model.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, "other.onnx")
    assert "'other'" in failure("compare model.onnx other.onnx --data data.npz", capsys)


def test_documented_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100])
    (folder / "text.npz").write_text("not an archive")
    data = dict(np.load("data.npz"))
    np.savez("names.npz", a=data["x"], y=data["y"])
    np.savez("odd.npz", x=data["x"][:5], y=data["y"][:5])
    np.savez("uneven.npz", x=data["x"], y=data["y"][:4])
    np.savez("nan.npz", **{**data, "x": np.full_like(data["x"], np.nan)})
    (folder / "empty").mkdir()

    assert "nothing.onnx" in failure("quantize nothing.onnx --calibration data.npz", capsys)
    assert "broken.onnx" in failure("run broken.onnx --data data.npz --output out.npz", capsys)
    assert "NaN" in failure("quantize model.onnx --calibration nan.npz", capsys)
    assert "not a readable .npz" in failure("quantize model.onnx --calibration text.npz", capsys)
    assert "['a', 'y']" in failure("quantize model.onnx --calibration names.npz", capsys)
    assert "takes 2 at a time" in failure("quantize model.onnx --calibration odd.npz", capsys)
    assert "same number of samples" in failure("quantize model.onnx --calibration uneven.npz", capsys)
    assert "no .npy or .npz" in failure("quantize model.onnx --calibration empty", capsys)
    assert ".npy or .npz" in failure("quantize model.onnx --calibration model.onnx", capsys)
    assert sorted(path.name for path in folder.glob("*.int8.onnx")) == []


def test_traceback_shows_where_it_failed(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("quantize nothing.onnx --calibration data.npz --traceback")


def test_missing_package_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "pip install" in failure("quantize model.onnx --calibration data.npz", capsys)


@pytest.mark.parametrize("arguments", ["", "unknown", "run model.onnx", "demo --lines 0", "demo --threads x"])
def test_wrong_usage_exits_with_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(arguments)
    assert stop.value.code == 2


def test_feeds_from_folders_and_single_arrays(tmp_path: Path) -> None:
    array = np.arange(12).reshape(4, 3)
    for name in ("b", "a"):
        np.save(tmp_path / f"{name}.npy", array + ord(name))
    (tmp_path / "notes.txt").write_text("not data")
    fixed, free = [NodeArg("x", [2, 3], "tensor(int64)")], [NodeArg("x", ["N", 3], "tensor(int64)")]
    feeds = read_feeds(tmp_path, fixed)
    assert [feed["x"][0, 0] - ord(name) for feed, name in zip(feeds, "aabb", strict=True)] == [0, 6, 0, 6]
    assert [feed["x"].shape for feed in read_feeds(tmp_path, free)] == [(4, 3), (4, 3)]
    with pytest.raises(ValueError, match=r"use a \.npz file"):
        read_feeds(tmp_path / "a.npy", [NodeArg(name, [], "tensor(int64)") for name in "xy"])


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"objects\.npy"):
        read_feeds(tmp_path / "objects.npy", [NodeArg("x", [], "tensor(int64)")])

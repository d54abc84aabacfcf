"""The benchmark: a wrong contender is rejected, data and expectations are right, every command runs. No times."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exact import conv, matmul
from rich.console import Console

import pyq
from bench import kernels, shapes
from bench.__main__ import main
from bench.peers import conv_peers, matmul_peers
from bench.suites import PARTS, Options, tasks
from pyq import cli
from pyq.benchmark import Contender, Result, Task, Timing, WrongResult, mean_ratios, measure
from pyq.config import Kernel
from pyq.console import speed_table
from pyq.workloads import DISTRIBUTIONS, Conv, MatMul, conv_data, conv_task, matmul_data, matmul_task, task_of

SMALL_CONVS = [Conv(9, 3, 5, 3), Conv(8, 8, 12, 1), Conv(9, 6, 9, 3, 2, 3), Conv(8, 20, 20, 5, 2, 20)]
EXACT = np.arange(12, dtype=np.int32).reshape(3, 4)


def wrong_integer() -> np.ndarray:
    result = EXACT.copy()
    result[1, 2] += 1
    return result


WRONG: dict[str, Callable[[], np.ndarray]] = {
    "one integer": wrong_integer,
    "shape": lambda: EXACT.T,
    "float": lambda: EXACT * np.float32(1.001),
    "not a number": lambda: np.full(EXACT.shape, np.nan, np.float32),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_contender_is_rejected_with_its_seed(name: str) -> None:
    right = Contender("right", lambda: EXACT, EXACT)
    wrong = Contender("wrong one", WRONG[name], EXACT)
    with pytest.raises(WrongResult, match=r"wrong one, label, seed 42: \d+ of 12"):
        measure(Task("label", 1, 42, [right, wrong]), seconds=0)


def test_wrong_outputs_of_others_are_counted() -> None:
    other = Contender("other", wrong_integer, EXACT, required=False)
    floats = Contender("float32", lambda: EXACT.astype(np.float32), EXACT)
    result = measure(Task("label", 1, 0, [floats, other]), seconds=0)
    assert [(t.wrong, t.outputs, t.is_float) for t in result.timings] == [(0, 12, True), (1, 12, False)]


def test_ratios_are_to_the_fastest_float32() -> None:
    timings = (Timing("slow", 4.0, 0, 1, True), Timing("fast", 2.0, 0, 1, True), Timing("int8", 1.0, 3, 9, False))
    result = Result("label", 10**6, 0, timings)
    assert [result.ratio(timing) for timing in timings] == [0.5, 1, 2]
    assert [result.gops(timing) for timing in timings] == [0.5, 1, 2]
    second = replace(result, timings=(timings[1], replace(timings[2], milliseconds=0.25)))
    assert mean_ratios([result, second]) == pytest.approx({"slow": 0.5, "fast": 1, "int8": 4})

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(speed_table("title", [result], peak=4, ghz=0.5))
    cells = [line.split() for line in console.export_text().splitlines() if line.strip().startswith("int8")]
    assert cells[0] == ["int8", "1.000", "2.0", "2.00", "3", "50%", "2.0"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_matrix_data_is_exact(distribution: str, rng: np.random.Generator) -> None:
    data = matmul_data(MatMul(5, 7, 33), rng, distribution)
    np.testing.assert_array_equal(data.expected, matmul(data.activations, data.weights.data))
    signed = data.signed()
    assert signed.activations.dtype == np.int8
    np.testing.assert_array_equal(signed.expected, matmul(signed.activations, data.weights.data))
    assert np.abs(data.weights.data).max(axis=0).tolist() == [127] * 7


@pytest.mark.parametrize("shape", SMALL_CONVS, ids=lambda shape: shape.label)
def test_convolution_data_is_exact(shape: Conv, rng: np.random.Generator) -> None:
    data = conv_data(shape, rng, "laplace")
    images = data.image.data.transpose(0, 3, 1, 2)
    pads = (shape.kernel // 2,) * 4
    strides = (shape.stride,) * 2
    sums = conv(images, data.weights.data, 128, strides=strides, pads=pads, group=shape.group)
    np.testing.assert_array_equal(data.sums, sums.transpose(0, 2, 3, 1))
    depth = shape.channels // shape.group * shape.kernel**2
    assert shape.macs == sums.size * depth
    with pyq.use_backend("reference"):
        y = pyq.conv(
            data.image, data.weights, strides=strides, pads=pads, group=shape.group, out=data.out, layout="NHWC"
        )
    np.testing.assert_array_equal(data.expected, y.data)
    assert len(np.unique(data.expected)) > 20


@pytest.mark.parametrize("make", [matmul_task, matmul_peers], ids=["own", "peers"])
@pytest.mark.parametrize("shape", [MatMul(1, 17, 5), MatMul(9, 16, 64)], ids=lambda shape: shape.label)
def test_matrix_contenders(make: Callable[..., Task], shape: MatMul, rng: np.random.Generator) -> None:
    arguments = (["gaussian"],) if make is matmul_task else ("gaussian",)
    check(make(shape, int(rng.integers(1000)), *arguments))


@pytest.mark.parametrize("make", [conv_task, conv_peers], ids=["own", "peers"])
@pytest.mark.parametrize("shape", SMALL_CONVS, ids=lambda shape: shape.label)
def test_convolution_contenders(make: Callable[..., Task], shape: Conv, rng: np.random.Generator) -> None:
    arguments = (["uniform"],) if make is conv_task else ("uniform",)
    check(make(shape, int(rng.integers(1000)), *arguments))


def check(task: Task) -> None:
    """All are right, but for modes that are known to saturate; there is a baseline, and names are unique."""
    result = measure(task, seconds=0)
    assert len({timing.name for timing in result.timings}) == len(task.contenders) >= 3
    assert result.timings[0].is_float
    assert all(timing.wrong == 0 for timing in result.timings if timing.name != "ORT u8s8")


@pytest.mark.parametrize("kernel", [k for k in pyq.kernels_available() if k.runnable], ids=lambda kernel: kernel.name)
def test_every_kernel_is_checked_and_measured(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "REPETITIONS", 1)
    assert np.isfinite(kernels.rate(kernel, seed=0))
    work, _ = kernels.works(kernel, seed=0)
    work.expected[-1, -1] += 1
    with pytest.raises(WrongResult, match=f"{kernel.name}, seed 7: 1 of"):
        work.check(seed=7)


def test_shapes_have_labels_of_their_own() -> None:
    everything = [*shapes.SQUARES, *shapes.TRANSFORMER, *shapes.LLM]
    everything += [*shapes.RESNET50, *shapes.POINTWISE, *shapes.DEPTHWISE]
    labels = [shape.label for shape in everything]
    assert len(set(labels)) == len(labels)
    assert set(labels) >= shapes.QUICK
    assert all(list(tasks(part, Options())) for part in PARTS)


def test_bench_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "peers.json"), "--plot", str(tmp_path / "peers.svg")]
    assert main(["peers", "--only", "64x64x64", "--seconds", "0", *files]) == 0
    [result] = json.loads((tmp_path / "peers.json").read_text())["results"]
    assert result["label"] == "64x64x64" and result["macs"] == 64**3
    assert b"<svg" in (tmp_path / "peers.svg").read_bytes()
    shown = capsys.readouterr().out
    assert all(timing["name"] in shown for timing in result["timings"])

    assert main(["depthwise", "--only", "dw 3x3 960 @7", "--seconds", "0"]) == 0
    assert "dw 3x3 960 @7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["peers", "--threads", "2"])
    assert "only with one thread" in capsys.readouterr().err


def test_pyq_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = tmp_path / "times.json"
    assert cli.main(["bench", "gemm", "--shape", "3", "4", "5", "--seconds", "0", "--json", str(times)]) == 0
    assert "3x4x5" in capsys.readouterr().out and json.loads(times.read_text())["results"][0]["macs"] == 60
    assert cli.main(["bench", "conv", "--shape", "6", "4", "4", "3", "2", "4", "--seconds", "0"]) == 0
    assert "dw 3x3 s2 4 @6" in capsys.readouterr().out
    for kind, shape in {"gemm": "1 2", "conv": "6 4 4 3 1 3"}.items():
        assert cli.main(["bench", kind, "--shape", *shape.split()]) == 2
        assert capsys.readouterr().err.startswith("pyq bench: ")

    def wrong_task(kind: str, numbers: list[int], seed: int) -> Task:
        return replace(task_of(kind, numbers, seed), contenders=[Contender("wrong one", wrong_integer, EXACT)])

    monkeypatch.setattr("pyq.workloads.task_of", wrong_task)
    assert cli.main(["bench", "gemm", "--shape", "3", "4", "5", "--seed", "11"]) == 1
    assert "seed 11" in capsys.readouterr().err

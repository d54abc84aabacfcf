"""The benchmark: a wrong contender is rejected, data and expectations are right, every command runs. No times."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from exact import conv, matmul
from onnx import numpy_helper, parser
from rich.console import Console

import pyq
from bench import kernels, ranges
from bench.__main__ import main
from bench.elementwise import OPERATIONS, Operation, copies
from bench.machine import measure_machine
from bench.peers import LIBRARIES, installed
from bench.processes import Worker, WorkerError, workers
from bench.sets import FILES, chosen, read_shapes
from bench.suites import own_task, peer_task
from bench.tables import copies_table, mean_ratio, peers_table
from pyq import cli
from pyq.benchmark import Contender, Result, Task, Timing, WrongResult, checked, mean_ratios, measure
from pyq.config import Kernel
from pyq.console import speed_table
from pyq.onnx.profile import random_feed
from pyq.quantization.graph import ValueInfo
from pyq.timing import QUIET, Sample, run_queue_delay, sample, undisturbed
from pyq.workloads import DISTRIBUTIONS, Conv, MatMul, conv_data, matmul_data, task_of

ROOT = Path(__file__).parent.parent
SMALL_CONVS = [
    *(Conv(9, 3, 5, 3), Conv(8, 8, 12, 1), Conv(9, 6, 9, 3, 2, 3), Conv(8, 20, 20, 5, 2, 20)),
    *(Conv((7, 12), 4, 6, (1, 3), (2, 1)), Conv(1, 1, 1, 1)),
]
SMALL_MATRICES = [MatMul(1, 17, 5), MatMul(9, 16, 64)]
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
        measure(Task("label", 1, 1, 42, [right, wrong]), seconds=0)


def test_wrong_outputs_of_others_are_counted() -> None:
    other = Contender("other", wrong_integer, EXACT, required=False)
    floats = Contender("float32", lambda: EXACT.astype(np.float32), EXACT)
    result = measure(Task("label", 1, 1, 0, [floats, other]), seconds=0)
    assert [(t.wrong, t.outputs, t.is_float) for t in result.timings] == [(0, 12, True), (1, 12, False)]


def test_ratios_are_to_the_fastest_float32() -> None:
    timings = (Timing("slow", 4.0, 0, 1, True), Timing("fast", 2.0, 0, 1, True), Timing("int8", 1.0, 3, 9, False))
    result = Result("label", 10**6, 1, 0, timings)
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
    pads, strides = shape.placement.pads, shape.placement.strides
    sums = conv(images, data.weights.data, 128, strides=strides, pads=pads, group=shape.group)
    np.testing.assert_array_equal(data.sums, sums.transpose(0, 2, 3, 1))
    assert shape.macs == sums.size * data.weights.data[0].size
    assert shape.bytes == data.image.data.size + data.weights.data.size + data.expected.size
    with pyq.use_backend("reference"):
        y = pyq.conv(
            data.image, data.weights, strides=strides, pads=pads, group=shape.group, out=data.out, layout="NHWC"
        )
    np.testing.assert_array_equal(data.expected, y.data)
    assert len(np.unique(data.expected)) > 20 or data.expected.size == 1


@pytest.mark.parametrize("shape", [*SMALL_MATRICES, *SMALL_CONVS], ids=lambda shape: shape.label)
def test_own_contenders(shape: MatMul | Conv, rng: np.random.Generator) -> None:
    check(own_task(shape, int(rng.integers(1000)), threads=1))


@pytest.fixture(scope="module", params=LIBRARIES)
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """The process of each library that is installed."""
    pytest.importorskip(LIBRARIES[request.param])
    with workers([request.param], threads=1) as [worker]:
        yield worker


@pytest.mark.parametrize("shape", [*SMALL_MATRICES, *SMALL_CONVS], ids=lambda shape: shape.label)
def test_peers(worker: Worker, shape: MatMul | Conv, rng: np.random.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a library is left out
        check(peer_task(shape, int(rng.integers(1000)), "gaussian", [worker]))


def check(task: Task) -> None:
    """Names are unique, and all are right but for those that are known to saturate: these are nearly right."""
    result = measure(task, seconds=0)
    assert len({timing.name for timing in result.timings}) == len(task.contenders) >= 2
    for timing in result.timings:
        saturates = timing.name.startswith(("ORT u8s8", "torch", "OpenVINO")) and "exact" not in timing.name
        assert timing.wrong <= timing.outputs * 0.5 * saturates, timing


@pytest.mark.parametrize("library", [name for name in installed() if name != "numkong"])
def test_peers_are_right_where_nothing_saturates(library: str, rng: np.random.Generator) -> None:
    with workers([library], threads=2) as [worker]:
        for shape in (MatMul(5, 24, 40), Conv(9, 8, 12, 3, 2)):
            if isinstance(shape, MatMul):
                contenders = worker.prepare(shape, matmul_data(shape, rng, "laplace", amax=63))
            else:
                contenders = worker.prepare(shape, conv_data(shape, rng, "laplace", amax=63))
            assert contenders and [contender.check().wrong for contender in contenders] == [0] * len(contenders)


def test_a_library_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = MatMul(2, 3, 4)
    with workers(["ort"], threads=1) as [worker]:
        with pytest.warns(UserWarning, match="2x3x4 is left out: ort: AttributeError"):
            assert worker.prepare(shape, "no data") == []  # type: ignore[arg-type]
        worker._process.kill()
        with pytest.raises(WorkerError, match="ort: its process has died"):
            worker.ask("prepare", shape, None)


def test_disturbed_repetitions_do_not_count() -> None:
    quiet = [Sample(1.0, 0.0), Sample(2.0, QUIET), Sample(3.0, 0.0)]
    assert undisturbed([*quiet, Sample(0.1, 2 * QUIET), Sample(9.0, 0.5)]) == 2
    busy = [Sample(float(n), n / 10) for n in range(1, 9)]
    assert undisturbed(busy) == 1.5  # the least disturbed quarter


@pytest.mark.skipif(run_queue_delay() == 0, reason="this kernel does not count how long threads wait for a core")
def test_waiting_for_a_core_is_seen() -> None:
    [core, *_] = all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # inherits the core
    try:
        waited = max(sample(lambda: sum(range(10**6)), repeats=10).waited for _ in range(10))
    finally:
        rival.kill()
        rival.wait()
        os.sched_setaffinity(0, all_cores)
    assert waited > QUIET


@pytest.mark.parametrize("kernel", [k for k in pyq.kernels_available() if k.runnable], ids=lambda kernel: kernel.name)
def test_every_kernel_is_checked_and_measured(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "REPETITIONS", 1)
    assert np.isfinite(kernels.rate(kernel, seed=0))
    work, _ = kernels.works(kernel, seed=0)
    work.expected[-1, -1] += 1
    with pytest.raises(WrongResult, match=f"{kernel.name}, seed 7: 1 of"):
        work.check(seed=7)


@pytest.mark.parametrize("name", FILES)
def test_shapes_have_labels_of_their_own(name: str) -> None:
    shapes = chosen(name, full=True)
    assert len({shape.label for shape in shapes}) == len(shapes) > len(chosen(name, full=False)) > 0
    assert chosen(name, full=False, only=shapes[-1].label) == shapes[-1:]


def test_shape_files(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("# mine\n\ngemm 3 4 5 * # quick\nconv 24x160 8 8 3 2x1 8\n")
    assert read_shapes(file) == {MatMul(3, 4, 5): True, Conv((24, 160), 8, 8, 3, (2, 1), 8): False}
    assert [shape.label for shape in read_shapes(file)] == ["3x4x5", "dw 3x3 s2x1 8 @24x160"]
    for line in ("gemm 3 4", "gemm 3 4 0", "gemm 3 4 5x6", "conv 5 3x3 4 1", "conv 6 4 4 3 1 3", "product 1 2 3"):
        file.write_text(f"gemm 1 1 1\n{line}")
        with pytest.raises(ValueError, match=r"own\.txt, line 2: "):
            read_shapes(file)


def test_measured_peaks() -> None:
    machine = measure_machine()
    assert machine.bandwidth > 0 and all(peak > 0 for peak in machine.peaks.values())
    assert machine.peak("no such thing", 1) is None
    assert all(machine.peak(name, 2) == 2 * peak for name, peak in machine.peaks.items())
    if platform.machine() == "x86_64":  # two products a cycle at most, of 8 words or 32 bytes
        assert machine.ghz and next(iter(machine.peaks)) == "scalar"
        for name, lanes in {"scalar": 8, "avx2": 32, "avx512vnni": 64}.items():
            assert lanes / 2 < machine.peaks.get(name, 2 * lanes * machine.ghz) / 2 / machine.ghz < 4 * lanes
    if "avx2" in machine.peaks:  # with additions, at most as fast; half as many products fit a register
        assert machine.with_sums and 0.1 * machine.peaks["avx2"] < machine.with_sums < 0.6 * machine.peaks["avx2"]


def test_ratios_to_peers() -> None:
    timings = {
        "pyq u8s8": Timing("pyq u8s8", 1.0, 0, 9, False),
        "float": Timing("float", 4.0, 0, 9, True),
        "exact": Timing("exact", 3.0, 0, 9, False),
        "saturating": Timing("saturating", 0.5, 1, 9, False),
    }
    result = Result("label", 1, 1, 0, tuple(timings.values()))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(peers_table("set", [result, result]))
    [cells] = [line.split() for line in console.export_text().splitlines() if line.strip().startswith("pyq")]
    assert cells == ["pyq", "u8s8", "4.00", "3.00", "0.50"]
    slower = replace(result, timings=(replace(timings["pyq u8s8"], milliseconds=4.0), *result.timings[1:]))
    assert mean_ratio([result, slower], "pyq u8s8", lambda timing: timing.is_float) == pytest.approx(2)
    assert np.isnan(mean_ratio([result], "pyq u8s8", lambda timing: timing.name == "nobody"))


def test_bench_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bench.__main__.installed", lambda: ["ort"])
    files = ["--json", str(tmp_path / "made" / "peers.json"), "--plot", str(tmp_path / "pictures")]
    command = ["squares", "depthwise", "--peers", "--threads", "2", "--only", "64", "--seconds", "0"]
    assert main([*command[:1], *command[2:], *files]) == 0
    document = json.loads((tmp_path / "made" / "peers.json").read_text())
    [result] = document["sets"]["squares"]
    assert result["label"] == "64x64x64" and result["macs"] == 64**3 and document["machine"]["bandwidth"] > 0
    for picture in ("squares", "roofline"):
        assert b"<svg" in (tmp_path / "pictures" / f"{picture}.svg").read_bytes()
        assert (tmp_path / "pictures" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(timing["name"] in shown for timing in result["timings"]) and "ORT" in shown

    own = tmp_path / "own.txt"
    own.write_text("conv 7 16 16 3 1 16\n")
    assert main(["--shapes", str(own), "--seconds", "0"]) == 0
    assert "dw 3x3 16 @7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["triangles"])
    assert "SET: got 'triangles'" in capsys.readouterr().err


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_operations_beside_a_copy(operation: Operation) -> None:
    """Every operation is right; a wrong one would be named with its seed."""
    task = operation.task(seed=3)
    assert [checked(task, contender).wrong for contender in task.contenders] == [0, 0]
    own = task.contenders[-1]
    assert isinstance(own, Contender)
    other = own.expected.copy()
    other.flat[-1] ^= 1
    with pytest.raises(WrongResult, match=r"pyq, .*, seed 3: 1 of"):
        checked(task, replace(own, expected=other))


def test_copies() -> None:
    timings = (Timing("copy", 0.5, 0, 9, False), Timing("pyq", 1.0, 0, 9, False))
    result = Result("twice x", 0, 10**6, 0, timings)
    assert copies(result) == 2
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(copies_table([result]))
    assert ["twice", "x", "1000", "1.0", "2.0"] in [line.split() for line in console.export_text().splitlines()]


@pytest.mark.slow
def test_suites(tmp_path: Path) -> None:
    """pytest-benchmark runs a kernel and a shape; a wrong result names the seed."""
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--benchmark-quiet"]
    saved = tmp_path / "bench.json"
    options = ["-k", "scalar_quads8_1x16 or (squares-64x64x64) or hardswish", "--benchmark-max-time=0.01", "--seed=5"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no xdist
    run = subprocess.run(
        [*command, *options, f"--benchmark-json={saved}"], cwd=ROOT, env=alone, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    names = [each["name"] for each in json.loads(saved.read_text())["benchmarks"]]
    assert any("NumPy float32" in name for name in names) and any("scalar_quads8_1x16" in name for name in names)
    assert all(text in run.stdout for text in ("64x64x64", "MAC/cycle", "copies", "hardswish 1048576"))


def test_pyq_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = tmp_path / "times.json"
    assert cli.main(["bench", "gemm", "--shape", "3", "4", "5", "--seconds", "0", "--json", str(times)]) == 0
    assert "3x4x5" in capsys.readouterr().out and json.loads(times.read_text())["results"][0]["macs"] == 60
    assert cli.main(["bench", "conv", "--shape", "6", "4", "4", "3", "2", "4", "--seconds", "0"]) == 0
    assert "dw 3x3 s2 4 @6" in capsys.readouterr().out
    for kind, shape in {"gemm": "1 2", "conv": "6 4 4 3 1 3"}.items():
        assert cli.main(["bench", kind, "--shape", *shape.split()]) == 2
        assert capsys.readouterr().err.startswith("pyq bench: ")
    assert cli.main(["bench", "gemm", "model.onnx"]) == 2 and cli.main(["bench", "model"]) == 2
    assert capsys.readouterr().err.count("FILE: got") == 2

    def wrong_task(shape: MatMul, seed: int) -> Task:
        return replace(task_of(shape, seed), contenders=[Contender("wrong one", wrong_integer, EXACT)])

    monkeypatch.setattr("pyq.workloads.task_of", wrong_task)
    assert cli.main(["bench", "gemm", "--shape", "3", "4", "5", "--seed", "11"]) == 1
    assert "seed 11" in capsys.readouterr().err


MODEL = """
<ir_version: 8, opset_import: ["": 17]>
model (float[N, 512] input, int64[M] rows) => (float[M, 64] output) {
    hidden = MatMul(input, weights)
    active = Relu(hidden)
    output = Gather(active, rows)
}
"""


def test_pyq_bench_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, times = parser.parse_model(MODEL), tmp_path / "times.json"
    weights = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    onnx.save(model, tmp_path / "model.onnx")
    command = ["bench", "model", str(tmp_path / "model.onnx"), "--seconds", "0"]
    shapes = ["--shape", "2", "512", "--shape", "3"]
    assert cli.main([*command, *shapes, "--threads", "2", "--json", str(times)]) == 0
    document, shown = json.loads(times.read_text()), capsys.readouterr().out
    assert [step["output"] for step in document["steps"]][-1] == "output" and "output" in shown
    assert set(document["runs"]) == {"pyq", "ONNX Runtime"} and all(time > 0 for time in document["runs"].values())

    np.savez(tmp_path / "feed.npz", input=np.ones((1, 512), np.float32), rows=np.zeros(2, np.int64))
    assert cli.main([*command, "--data", str(tmp_path / "feed.npz")]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out
    assert cli.main([*command, "--shape", "2", "some"]) == 2
    assert "shape: got 'some'" in capsys.readouterr().err


def test_random_feeds() -> None:
    inputs = [ValueInfo("x", np.dtype(np.float32), ("N", 3)), ValueInfo("i", np.dtype(np.int64), (2, 2))]
    feed = random_feed(inputs, [(4, 3)], seed=1)
    assert feed["x"].shape == (4, 3) and feed["x"].std() > 0 and feed["i"].tolist() == [[1, 1], [1, 1]]
    assert random_feed(inputs, [], seed=1)["x"].shape == (1, 3)
    with pytest.raises(ValueError, match="input 'x' of the model is"):
        random_feed([ValueInfo("x", np.dtype(np.float32), (1, "W"))], [], seed=1)
    with pytest.raises(ValueError, match="input 'x' is not of numbers"):
        random_feed([ValueInfo("x", np.dtype(object), (1,))], [], seed=1)


# --- ranges -------------------------------------------------------------------------------------------------------


def test_smaller_ranges_are_less_accurate() -> None:
    found = ranges.trades(MatMul(16, 32, 64), "gaussian", seed=1, seconds=0)
    assert [(trade.qmax, trade.amax) for trade in found] == [(q, a) for q in ranges.QMAX for a in ranges.AMAX]
    sqnr = {(trade.qmax, trade.amax): trade.sqnr for trade in found}
    # A bit of the weights or of the activations is worth 6 dB of their own error.
    assert sqnr[127, 255] > sqnr[127, 127] + 1
    assert sqnr[127, 255] > sqnr[64, 255] + 3 > sqnr[64, 127] + 3
    assert all(np.isfinite(trade.speed) and trade.speed > 0 for trade in found)
    text = io.StringIO()
    Console(file=text, width=100).print(ranges.table("title", found))
    assert f"{sqnr[96, 127]:.1f} dB" in text.getvalue()


def test_sqnr_of_a_known_error() -> None:
    assert ranges.sqnr(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)  # 10 log10(25 / 0.25)

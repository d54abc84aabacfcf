"""The command line: `pyq info`, `quantize`, `run`, `compare`, `bench` and `demo`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pyq
from pyq.backends import BACKENDS, use_backend
from pyq.feeds import read_feeds
from pyq.files import write_file

if TYPE_CHECKING:
    from rich.console import Console

BENCH_SHAPES = {
    "gemm": ["64 64 64", "512 512 512", "1 4096 4096", "128 3072 768"],
    "conv": ["56 64 64 3", "14 1024 256 1", "56 144 144 3 2 144"],
}
DATA = "a .npz file (one array per model input), a .npy file, or a folder of them"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when what it verified does not hold, or 2 when it could not be done.

    What the user can mend (a missing file or package, a model that cannot run) is told in one line on stderr.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ValueError, TypeError, NotImplementedError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"pyq {arguments.command}: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the Python package {error.name}: pip install 'pyq-int8[all]'"
    return " ".join(str(error).split())


def info(arguments: argparse.Namespace) -> int:
    """`pyq info`: what this machine and this installation offer."""
    pyq.show_config()
    return 0


def quantize(arguments: argparse.Namespace) -> int:
    """`pyq quantize`: static quantization, verified; 1 when a layer is not exact."""
    from rich.console import Console

    from pyq.console import layers_table, progress
    from pyq.onnx import Session

    console = Console()
    feeds = read_feeds(arguments.calibration, Session(arguments.model).get_inputs())
    with progress(console) as update:
        result = pyq.quantize_model(arguments.model, calibration=feeds, progress=update)
    output = arguments.output or arguments.model.with_suffix(".int8.onnx")
    result.save(output)
    console.print(layers_table(result.report, worst=10))
    console.print(result.report.table())
    print(f"wrote {output}")
    if arguments.report:
        result.report.to_html(arguments.report)
        print(f"wrote {arguments.report}")
    return 0 if result.report.ok else 1


def run(arguments: argparse.Namespace) -> int:
    """`pyq run`: run a model on every feed and save what it returns."""
    from pyq.onnx import Session

    session = Session(arguments.model, threads=arguments.threads)
    names = [value.name for value in session.get_outputs()]
    results: dict[str, Any] = {}
    with _backend(arguments.backend):
        for i, feed in enumerate(read_feeds(arguments.data, session.get_inputs())):
            outputs = session.run(None, feed)
            results.update({f"{name}.{i}": array for name, array in zip(names, outputs, strict=True)})
    archive = io.BytesIO()
    np.savez(archive, **results)
    write_file(arguments.output, archive.getvalue())
    print(f"wrote {arguments.output}")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """`pyq compare`: how far an int8 model is from its float model, and the speed and size of both."""
    from rich.console import Console

    from pyq.comparison import compare_models

    with _backend(arguments.backend):
        report = compare_models(
            arguments.float_model,
            arguments.int8_model,
            arguments.data,
            threads=arguments.threads,
            rounds=arguments.rounds,
        )
    Console().print(report.table())
    for name, sqnr in report.outputs.items():
        print(f"SQNR of {name}: {sqnr:.1f} dB")
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """`pyq bench`: int8 products, convolutions or a model against float32; 1 when a result is wrong."""
    from rich.console import Console
    from threadpoolctl import threadpool_limits

    import pyq.threadpool  # noqa: F401, for threadpool_limits to limit pyq too
    from pyq.benchmark import WrongResult

    if (arguments.what == "model") != (arguments.model is not None):
        raise ValueError(
            f"FILE: got {arguments.model}; expected a model's file after `model`, and nothing after others"
        )
    with threadpool_limits(arguments.threads):  # of BLAS too: its idle threads would spin on cores that pyq's need
        try:
            (_bench_model if arguments.what == "model" else _bench_shapes)(arguments, Console())
        except WrongResult as error:
            print(f"pyq bench: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(f"wrote {arguments.json}")
    return 0


def _bench_shapes(arguments: argparse.Namespace, console: Console) -> None:
    from pyq.benchmark import measure, save_json
    from pyq.config import isa
    from pyq.console import speed_table
    from pyq.workloads import shape_of, task_of

    kind = arguments.what
    shapes = [shape_of(kind, words) for words in arguments.shape or map(str.split, BENCH_SHAPES[kind])]
    results = [measure(task_of(shape, arguments.seed), arguments.seconds) for shape in shapes]
    console.print(speed_table(f"pyq bench {kind}, {arguments.threads} thread(s), {isa()}", results))
    if arguments.json:
        save_json(arguments.json, results)


def _bench_model(arguments: argparse.Namespace, console: Console) -> None:
    from pyq.console import profile_table
    from pyq.onnx import Session
    from pyq.onnx.profile import profile_model, random_feed

    session = Session(arguments.model)
    if arguments.data:
        feed = read_feeds(arguments.data, session.get_inputs())[0]
    else:
        shapes = [[_size(word) for word in words] for words in arguments.shape or []]
        feed = random_feed(session.graph.inputs, shapes, arguments.seed)
    profile = profile_model(session, arguments.model, feed, arguments.seconds)
    console.print(profile_table(f"{arguments.model.name}, {arguments.threads} thread(s)", profile.steps, most=20))
    for name, time in profile.runs.items():
        print(f"{name:13} {time:.3f} ms a run")
    if arguments.json:
        steps = [step._asdict() for step in profile.steps]
        write_file(arguments.json, json.dumps({"runs": profile.runs, "steps": steps}, indent=1).encode())


def _size(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise ValueError(f"shape: got {word!r}, expected whole numbers above 0")
    return int(word)


def demo(arguments: argparse.Namespace) -> int:
    """`pyq demo`: from a float model to a verified int8 one; 1 when int8 is not exact or not as good."""
    from rich.console import Console

    from pyq.demo.flow import Settings, run_demo

    settings = Settings(arguments.lines, arguments.calibration, 3, arguments.threads, arguments.output)
    if arguments.quick:
        settings = replace(settings, lines=12, calibration=8, rounds=1)
    return 0 if run_demo(settings, Console()) else 1


def _backend(name: str | None) -> AbstractContextManager[Any]:
    return use_backend(name) if name else nullcontext()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyq",
        description="Exact int8 inference on CPUs.",
        epilog="example: pyq quantize model.onnx --calibration inputs/ (pyq COMMAND --help shows more)",
    )
    parser.add_argument("--version", action="version", version=f"pyq {pyq.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add(commands, info, "show instruction sets, kernels, threads and backends", "pyq info")

    add = _add(
        commands,
        quantize,
        "make an int8 model of a float ONNX model, and verify it",
        "pyq quantize model.onnx --calibration inputs/",
        "pyq quantize model.onnx --calibration inputs.npz --output small.onnx --report report.html",
    )
    add("model", type=Path, help="the float ONNX model")
    add("--calibration", type=Path, required=True, metavar="DATA", help=f"real inputs: {DATA}")
    add("--output", type=Path, metavar="FILE", help="the int8 model to write (MODEL with suffix .int8.onnx)")
    add("--report", type=Path, metavar="FILE", help="write the report, as one HTML file")

    add = _add(
        commands,
        run,
        "run a model, float or int8, and save its outputs",
        "pyq run model.int8.onnx --data inputs.npz --output outputs.npz",
        "pyq run model.int8.onnx --data inputs/ --output outputs.npz --backend reference",
    )
    add("model", type=Path, help="an ONNX model")
    _add_execution(add)
    add("--output", type=Path, required=True, metavar="FILE", help=".npz file to write; run i gives NAME.i")

    add = _add(
        commands,
        compare,
        "compare an int8 model with its float model: SQNR, speed, size",
        "pyq compare model.onnx model.int8.onnx --data inputs/",
    )
    add("float_model", type=Path, help="the float ONNX model")
    add("int8_model", type=Path, help="the int8 ONNX model")
    _add_execution(add)
    add("--rounds", type=_positive, default=5, metavar="N", help="timed runs per input; the median counts (5)")

    add = _add(
        commands,
        bench,
        "time int8 matrix products and convolutions beside NumPy's float32, or a model and its layers",
        "pyq bench gemm",
        "pyq bench gemm --shape 128 3072 768 --shape 1 4096 4096",
        "pyq bench conv --shape 56 64 64 3 --shape 24x160 32 32 3 2x1 32 --json times.json",
        "pyq bench model model.onnx --shape 1 3 224 224",
    )
    add("what", choices=(*BENCH_SHAPES, "model"))
    add("model", type=Path, nargs="?", metavar="FILE", help="model: the ONNX model, float or int8")
    add(
        "--shape",
        nargs="+",
        action="append",
        metavar="N",
        help="gemm: M N K; conv: SIZE CHANNELS FILTERS KERNEL [STRIDE [GROUP]], 24x160 is a pair; may be repeated "
        "(some common ones); model: of its inputs, in order (its own)",
    )
    add("--data", type=Path, help=f"model: its inputs, of which the first are taken: {DATA} (random ones)")
    add("--threads", type=_positive, default=1, metavar="N", help="of every library (1)")
    add("--seconds", type=float, default=0.5, metavar="S", help="to time each shape for, about (0.5)")
    add("--seed", type=int, default=0, metavar="N", help="of the random data (0)")
    add("--json", type=Path, metavar="FILE", help="write the results")

    add = _add(
        commands,
        demo,
        "read text with a real OCR model in float and in int8, and compare",
        "pyq demo",
        "pyq demo --quick",
        "pyq demo --lines 200 --calibration 64 --threads 2 --output results",
    )
    add("--lines", type=_positive, default=60, metavar="N", help="lines to read (60)")
    add("--calibration", type=_positive, default=32, metavar="N", help="other lines, to calibrate on (32)")
    add("--quick", action="store_true", help="12 lines, 8 to calibrate on, each timed once")
    add("--threads", type=_positive, default=1, metavar="N", help="threads of every runtime (1)")
    add(
        "--output",
        type=Path,
        default=Path("demo"),
        metavar="FOLDER",
        help="folder for the int8 model and the report; the sentences are looked for here too (demo)",
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    function: Callable[[argparse.Namespace], int],
    summary: str,
    *examples: str,
) -> Callable[..., argparse.Action]:
    """Add a command that is named after its function; return what adds arguments to it."""
    command = commands.add_parser(
        function.__name__,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n  ".join(("examples:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=function)
    command.add_argument("--traceback", action="store_true", help="when it fails, show where")
    return command.add_argument


def _add_execution(add: Callable[..., argparse.Action]) -> None:
    add("--data", type=Path, required=True, help=f"inputs: {DATA}")
    add("--threads", type=_positive, metavar="N", help="threads to run on (all CPUs this process may use)")
    add("--backend", choices=BACKENDS, help="kernels to run on (the fastest there are)")

"""The thread pool: the same bytes for any number of threads, in forked children, and from several threads at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from exact import assert_same, full_range, matmul, transposed

import pyq
from pyq import ops
from pyq.geometry import place
from pyq.packing import pack
from pyq.tensor import QTensor

# Python 3.12 warns of what is tested here: that a fork with threads around does not deadlock.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

FORKS = 10
SECONDS = 30  # that a computation of milliseconds may take before it counts as a deadlock


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = pyq.get_num_threads()
    with pyq.use_backend("c"):
        yield
    pyq.set_num_threads(before)


def product(seed: int) -> tuple[np.ndarray, Any, np.ndarray]:
    """Activations and packed weights that make dozens of tasks, and the right result."""
    rng = np.random.default_rng(seed)
    a, b = full_range(rng, (1500, 90), "uint8"), np.clip(rng.normal(0, 20, (90, 70)).round(), -128, 127).astype(np.int8)
    return a, pack(QTensor(b, 1.0)), matmul(a, b, 7)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    pyq.set_num_threads(threads)
    assert pyq.get_num_threads() == threads
    rng = np.random.default_rng(5)
    for m, k, n in ((1500, 90, 70), (1, 700, 900), (3, 64, 2000), (193, 300, 17), (5000, 8, 8)):
        a, b = full_range(rng, (m, k), "uint8"), full_range(rng, (k, n), "int8")
        assert_same(ops.matmul_integer(a, b, 200), matmul(a, b, 200), f"{threads} threads, {m} x {k} x {n}")
    x, w = full_range(rng, (1, 40, 60, 50), "int8"), full_range(rng, (40, 1, 3, 3), "int8")
    pads = (1, 1, 1, 1)
    one_tap = np.zeros_like(w)
    one_tap[:, :, 1, 1] = 1
    assert_same(np.ascontiguousarray(ops.conv_integer(x, one_tap, pads=pads, group=40)), x.astype(np.int32))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_element_wise_operations_of_many_tasks(threads: int) -> None:
    """More elements than one thread would take, and no multiple of what a task takes."""
    rng = np.random.default_rng(6)
    kernels, reference = pyq.backends.backend("c"), pyq.backends.backend("reference")
    x = rng.normal(0, 3, (37, 5003)).astype(np.float32)
    q, images = full_range(rng, (37, 5003), "uint8"), full_range(rng, (2, 61, 67, 40), "int8")
    table, p, signed = full_range(rng, (256,), "uint8"), pyq.QParams(0.03, 120), pyq.QParams(0.02, -5, "int8")
    scale, exponentials = x[0].copy(), np.arange(256, 0, -1, np.int32)
    window = place((61, 67), (3, 3), (1, 1), (1, 1, 1, 1))
    calls: list[Callable[[pyq.backends.Backend], Any]] = [
        lambda b: b.lookup(q, table, np.dtype(np.uint8)),
        lambda b: b.quantize(x, p),
        lambda b: b.dequantize(q, p),
        lambda b: np.array(b.value_range(x)),
        lambda b: b.binary("add", q, p, q[:, ::-1], p, p),
        lambda b: b.binary("add", q, p, q[:, :1], p, p),
        lambda b: b.max_pool(images, window),
        lambda b: b.average_pool(images, signed, window, False, p),
        lambda b: transposed(b, images.reshape(2, -1, 40).view(np.uint8)),
        lambda b: b.softmax(x),
        lambda b: b.softmax_of_bytes(q, exponentials),
        lambda b: b.layer_norm(x, scale, None, 1e-5)[0],
    ]
    pyq.set_num_threads(threads)
    for i, call in enumerate(calls):
        assert_same(call(kernels), call(reference), f"{threads} threads, operation {i}")
    x[36, 5002] = np.nan  # in the last task
    for call in (calls[1], calls[3]):
        with pytest.raises(ValueError, match="NaN"):
            call(kernels)


def test_the_pool_really_starts_threads() -> None:
    """Otherwise the test above would compare one thread with itself. OpenBLAS has none here."""
    script = """
import os, numpy as np, pyq
before = len(os.listdir("/proc/self/task"))
a, b = np.ones((2000, 64), np.uint8), np.ones((64, 64), np.int8)
print(pyq.get_num_threads())
for threads in (4, 2, 7):
    pyq.set_num_threads(threads)
    pyq.matmul_integer(a, b)
    print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "PYQ_NUM_THREADS": "5", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5", "3", "3", "6"]  # fewer threads leave some asleep


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("3", 3), ("0", None), ("many", None), ("100000", 256)])
def test_the_environment_sets_the_number(value: str, threads: int | None) -> None:
    """What is no positive number counts as not set: then the CPUs that the process may use."""
    environment = {**os.environ, "PYQ_NUM_THREADS": value}
    script = "import pyq; print(pyq.get_num_threads())"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) == (threads or len(os.sched_getaffinity(0)))


def wait(child: int) -> int:
    """Exit code of a child; kills it when it takes too long."""
    for _ in range(SECONDS * 100):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("a forked child hangs")


def forked(a: np.ndarray, w: Any, right: np.ndarray) -> int:
    """Exit code of a child that computes: 0 when the result is right and came from four threads of its own."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            same = np.array_equal(ops.matmul_integer(a, w, 7), right)
            code = 1 if not same else 2 if len(os.listdir("/proc/self/task")) != 4 else 0
        finally:
            os._exit(code)
    return wait(child)


def test_forked_children_compute_with_a_pool_of_their_own() -> None:
    pyq.set_num_threads(4)
    a, w, right = product(1)
    for _ in range(FORKS):
        assert_same(ops.matmul_integer(a, w, 7), right)  # the parent's pool is warm, and works on
        assert forked(a, w, right) == 0
    assert forked(a, w, right + 1) == 1  # the child does compare


def test_fork_while_other_threads_compute() -> None:
    """The child must not inherit a lock that a thread, which does not exist there, was holding."""
    pyq.set_num_threads(4)
    a, w, right = product(2)
    stop = threading.Event()
    wrong: list[int] = []

    def compute() -> None:
        with pyq.use_backend("c"):
            while not stop.is_set():
                if not np.array_equal(ops.matmul_integer(a, w, 7), right):
                    wrong.append(1)

    workers = [threading.Thread(target=compute) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        codes = [forked(a, w, right) for _ in range(FORKS)]
    finally:
        stop.set()
        for worker in workers:
            worker.join(SECONDS)
    assert codes == [0] * FORKS
    assert not wrong and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("name", ["c", "numba"])
def test_four_python_threads_at_once(name: str) -> None:
    """Each has its own data; one gets the pool, the others work in their own thread, and all are right."""
    pyq.set_num_threads(3)
    cases = [product(seed) for seed in range(4)]
    start = threading.Barrier(4)

    def compute(index: int) -> int:
        a, w, right = cases[index]
        start.wait(SECONDS)
        with pyq.use_backend(name):
            return sum(np.array_equal(ops.matmul_integer(a, w, 7), right) for _ in range(25))

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(compute, range(4), timeout=SECONDS)) == [25] * 4


def test_changing_the_number_while_others_compute() -> None:
    a, w, right = product(9)
    with ThreadPoolExecutor(1) as executor:

        def compute() -> int:
            with pyq.use_backend("c"):
                return sum(np.array_equal(ops.matmul_integer(a, w, 7), right) for _ in range(100))

        result = executor.submit(compute)
        while not result.done():
            for threads in (1, 5, 2, 8):
                pyq.set_num_threads(threads)
        assert result.result() == 100


@pytest.mark.parametrize("value", [0, -1, 257, 10**9])
def test_a_number_out_of_range_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError, match=f"n: got {value}, expected 1 to 256 threads"):
        pyq.set_num_threads(value)


@pytest.mark.parametrize("value", [1.0, "2", None, True])
def test_what_is_no_integer_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"n: expected an integer, got {type(value).__name__}"):
        pyq.set_num_threads(value)

"""What runs here and what does not: backends, the kernel list, show_config, and what `import pyq` leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import pyq
from pyq.backends import backend
from pyq.config import config


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", script], env=everything, capture_output=True, text=True, timeout=120)


def test_this_environment_has_every_backend() -> None:
    """Tests over `available_backends()` cover what they should only if this holds."""
    assert pyq.available_backends() == ("c", "numba", "reference")


def test_importing_pyq_needs_numpy_and_cffi_alone() -> None:
    optional = ["onnx", "onnxruntime", "numba", "llvmlite", "torch", "rich", "matplotlib", "PIL", "dask", "pytest"]
    work = "pyq.matmul_integer(np.ones((3, 4), np.uint8), np.ones((4, 5), np.int8))"
    script = (
        f"import sys, json, numpy as np, pyq; {work}; print(json.dumps([m for m in {optional} if m in sys.modules]))"
    )
    result = run(script, PYQ_BACKEND="c")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_every_public_name_is_there_and_none_is_private() -> None:
    for name in pyq.__all__:
        assert getattr(pyq, name) is not None
        assert not name.startswith("_") or name == "__version__"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pyq.no_such_name


def test_show_config_prints_what_config_knows(capsys: pytest.CaptureFixture[str], backend: str) -> None:
    pyq.show_config()
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    known = config()
    assert list(shown) == list(known)
    assert shown["backend"] == backend
    assert shown["backends"] == "c, numba, reference"
    assert shown["pyq"] == pyq.__version__
    assert int(shown["threads"]) == pyq.get_num_threads()
    assert shown["kernels"] == (", ".join(known["kernels"]) or "none")


@pytest.mark.parametrize("name", ["c", "numba", "reference"])
def test_the_kernels_shown_belong_to_the_backend(name: str) -> None:
    with pyq.use_backend(name):
        chosen = config()["kernels"]
    rows = {k.name: k for k in pyq.kernels_available()}
    assert {rows[kernel].backend for kernel in chosen} == ({name} - {"reference"})
    assert {rows[kernel].layout for kernel in chosen} >= ({"pairs16", "quads8", "taps16"} if chosen else set())


def test_kernel_records_are_complete() -> None:
    for k in pyq.kernels_available():
        assert k.operation in ("gemm", "depthwise", "requantize", "gemm_requantize", "gemm_sums")
        assert k.backend in ("c", "numba")
        assert k.isa in k.name or k.operation == "requantize"
        if k.layout:
            assert k.layout in k.name
            assert k.name.endswith(f"{k.mr}x{k.nr}")
            assert (k.mr >= 1, k.nr in (8, 16, 32), k.p >= 1) == (True, True, True)
        assert isinstance(k.runnable, bool)


@pytest.mark.parametrize("name", ["", "C", "cuda", "torch"])
def test_an_unknown_backend_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of \('c', 'numba', 'reference'\)"):
        backend(name)
    with pytest.raises(ValueError, match=f"got '{name}'"), pyq.use_backend(name):
        pass


def test_a_backend_that_is_left_is_the_one_that_was_before() -> None:
    with pyq.use_backend("reference"):
        with pytest.raises(RuntimeError, match="from the block"), pyq.use_backend("numba"):
            raise RuntimeError("from the block")
        assert config()["backend"] == "reference"


def test_the_environment_chooses_the_backend() -> None:
    for name in pyq.available_backends():
        result = run("import pyq.config; print(pyq.config.config()['backend'])", PYQ_BACKEND=name)
        assert result.stdout.split() == [name]
    assert "expected one of ('c', 'numba', 'reference')" in run("import pyq; pyq.show_config()", PYQ_BACKEND="x").stderr


def test_a_missing_numba_is_an_import_error_when_it_is_asked_for() -> None:
    script = "import sys; sys.modules['numba'] = None; import pyq\nwith pyq.use_backend('numba'): pass"
    result = run(script)
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith(("ImportError", "ModuleNotFoundError"))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PYQ_ISA", "avx3", "'scalar', 'avx2'"),
        ("PYQ_BACKEND", "fortran", "'c', 'numba', 'reference'"),
        ("PYQ_NUM_THREADS", "many", "1 to 256"),
        ("PYQ_NUM_THREADS", "0", "1 to 256"),
    ],
)
def test_an_environment_variable_with_another_value_is_named(name: str, value: str, allowed: str) -> None:
    result = run("import pyq; pyq.show_config()", **{name: value})
    assert result.returncode == 1
    assert f"ValueError: {name}: got '{value}', expected" in result.stderr
    assert allowed in result.stderr

"""PYQ_ISA caps the instruction set: what is shown, what is run, and that no byte of a result changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from exact import assert_same, full_range, matmul

import pyq
from pyq import ops
from pyq._core import lib
from pyq.backends import ISA_NAMES, backend
from pyq.config import config, isa
from pyq.packing import pack
from pyq.panels import GROUP_SIZE
from pyq.tensor import QTensor, quantize

SCRIPT = """
import hashlib, sys
import numpy as np, pyq
a = np.load(sys.argv[1])
b = np.load(sys.argv[2])
pyq.show_config()
print(hashlib.sha256(pyq.matmul_integer(a, pyq.pack(pyq.QTensor(b, 1.0)), 77).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("name", ["c", "numba"])
def test_a_capped_process_says_scalar_and_gives_the_same_bytes(
    name: str, tmp_path: os.PathLike[str], rng: np.random.Generator
) -> None:
    a, b = full_range(rng, (50, 200), "uint8"), np.clip(rng.laplace(0, 20, (200, 40)), -128, 127).astype(np.int8)
    files = [os.path.join(tmp_path, file) for file in ("a.npy", "b.npy")]
    np.save(files[0], a)
    np.save(files[1], b)
    environment = {**os.environ, "PYQ_ISA": "scalar", "PYQ_BACKEND": name}
    command = [sys.executable, "-c", SCRIPT, *files]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    *shown, digest = run.stdout.splitlines()
    values = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown}
    assert (values["isa"], values["backend"]) == ("scalar", name)
    assert all("scalar" in kernel or kernel == "numba_requantize" for kernel in values["kernels"].split(", "))
    with pyq.use_backend(name):
        ours = ops.matmul_integer(a, pack(QTensor(b, 1.0)), 77)
    assert digest == hashlib.sha256(ours.tobytes()).hexdigest()


def test_an_uncapped_process_uses_the_best_there_is() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYQ_ISA"}
    script = "import pyq.config; print(pyq.config.isa())"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [ISA_NAMES[lib.pyq_isa_detected()]]


def test_the_cpu_flags_agree_with_what_was_detected() -> None:
    """Linux lists what the CPU has and the system allows, and did not read it from our code."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    needed = {"avx2": {"avx2"}, "avx512vnni": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}}
    has = ["scalar", *(name for name, names in needed.items() if names <= set(flags))]
    assert ISA_NAMES[lib.pyq_isa_detected()] == has[-1]


def test_a_cap_within_the_process_takes_other_kernels() -> None:
    before = lib.pyq_get_isa()
    try:
        for limit in range(lib.pyq_isa_detected() + 1):
            assert lib.pyq_set_isa(limit) == limit
            with pyq.use_backend("c"):
                assert isa() == ISA_NAMES[limit]
                chosen = config()["kernels"]
            isas = {kernel.partition("_")[0] for kernel in chosen}
            assert ISA_NAMES[limit] in isas <= set(ISA_NAMES[: limit + 1])
            assert limit == 0 or "scalar" not in isas
        assert lib.pyq_set_isa(len(ISA_NAMES)) == lib.pyq_isa_detected()  # never more than there is
    finally:
        lib.pyq_set_isa(before)


@pytest.mark.parametrize("distribution", ["laplace", "normal", "uniform"])
def test_one_row_of_large_weights_that_avx2_packed(distribution: str, rng: np.random.Generator) -> None:
    """Every instruction set runs them; with AVX2's kernels one of them takes several segments, and shorter offsets."""
    before = lib.pyq_get_isa()
    try:
        shapes = (1021, 2051, 127), (1021, 2051, 16), (33, 70_000, 127), (140_000, 15, 127), (2**18 + 1, 3, 127)
        for k, n, qmax in shapes:
            b = quantize(getattr(rng, distribution)(size=(k, n)), "int8", axis=1, qmax=qmax)
            w, a = pack(b, isa="avx2"), full_range(rng, (1, k), "uint8")
            assert (w.quads is None) == (k > 2**18 or w.layouts.isdisjoint(GROUP_SIZE))
            for limit in range(lib.pyq_isa_detected() + 1):
                lib.pyq_set_isa(limit)
                assert_same(ops.matmul_integer(a, w, 3), matmul(a, b.data, 3, b.zero_point), f"{limit} {w.certificate}")
    finally:
        lib.pyq_set_isa(before)


def test_a_chosen_backend_is_the_one_that_runs() -> None:
    for name in pyq.available_backends():
        with pyq.use_backend(name) as current:
            assert current.name == name
            assert current is backend(name)
            assert config()["backend"] == name
    with pyq.use_backend("numba") as current:
        assert config()["isa"] == ISA_NAMES[current.isa]
    with pyq.use_backend("reference"):
        assert config()["isa"] == "scalar"

"""How the Numba kernels are compiled: for which target, when, and from which cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import pyq
from pyq.kernels import depthwise, elementwise, epilogue, gemm, host, tile


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_target_without_avx2_gets_plain_loops() -> None:
    """An intrinsic that the target lacks would abort the process."""
    code = (
        "import numpy as np; from pyq.kernels import host, tile; "
        "from pyq.panels import TAPS16; "
        "acc = np.zeros((1, 16), np.int32); "
        "tile.tiles(host.AVX2, TAPS16, 16, np.full(32, 3, np.uint8), np.empty(0, np.int16), np.array([0]), "
        "np.array([0, 16], np.int32), np.full(32, 5, np.int16).view(np.uint8), acc); "
        "print(host.available_isas(), host.default_isa(), set(acc.ravel().tolist()))"
    )
    assert run_python(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == "(0,) 0 {30}\n"


def test_a_target_without_avx2_computes_the_same() -> None:
    """Also the vectors that LLVM has to make smaller there: windows, and panels that are not full."""
    code = (
        "import numpy as np, pyq; from pyq.workloads import Conv, conv_data, pyq_conv; "
        "rng = np.random.default_rng(0); "
        "shapes = Conv(7, 24, 24, 3, 1, 24), Conv(8, 17, 17, 5, 2, 17), Conv(5, 8, 28, 1); "
        "tasks = [(shape, conv_data(shape, rng, 'uniform')) for shape in shapes]; "
        "pyq.use_backend('numba').__enter__(); "
        "print([bool((pyq_conv('', *task).call() == task[1].expected).all()) for task in tasks])"
    )
    assert run_python(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == "[True, True, True]\n"


def test_pyq_isa_caps_the_choice() -> None:
    code = "from pyq.kernels import host; print(host.default_isa() == max(host.available_isas()), host.default_isa())"
    assert run_python(code, PYQ_ISA="scalar").endswith(" 0\n")
    assert run_python(code, PYQ_ISA="").startswith("True ")


def test_listing_kernels_compiles_nothing() -> None:
    code = "import json, sys, pyq; pyq.kernels_available(); print(json.dumps([m for m in sys.modules if 'pyq.' in m]))"
    loaded = json.loads(run_python(code))
    assert "pyq.kernels.registry" in loaded
    assert not {"pyq.kernels.tile", "pyq.kernels.gemm", "pyq.kernels.epilogue", "pyq.kernels.elementwise"} & set(loaded)


def test_importing_pyq_does_not_import_numba() -> None:
    assert run_python("import sys, pyq; print('numba' in sys.modules)") == "False\n"


def test_one_compilation_each_for_writable_and_read_only_arrays() -> None:
    """Signatures are fixed: other array types would compile for seconds in the middle of a run."""
    compiled = [
        tile.tiles,
        gemm.gemm,
        depthwise.depthwise,
        epilogue.finish,
        elementwise.lookup,
        elementwise.quantize,
        elementwise.dequantize,
        elementwise.binary,
    ]
    x, table, out = np.arange(4, dtype=np.uint8), np.arange(256, dtype=np.uint8)[::-1].copy(), np.zeros(4, np.uint8)
    elementwise.lookup(x, table, out)
    table.flags.writeable = False
    elementwise.lookup(x, table, out)
    assert out.tolist() == [255, 254, 253, 252]
    assert [len(function.signatures) for function in compiled] == [1] * len(compiled)


def test_code_older_than_a_source_is_not_reused(tmp_path: Path) -> None:
    source, cached = tmp_path / "source.py", tmp_path / "__pycache__"
    cached.mkdir()
    source.touch()
    for name, age in (("old.nbi", -10), ("old.1.nbc", -10), ("old.pyc", -10), ("new.nbi", 10), ("new.1.nbc", 10)):
        (cached / name).touch()
        time = source.stat().st_mtime + age
        os.utime(cached / name, (time, time))
    host.drop_stale_cache(tmp_path)
    assert sorted(path.name for path in cached.iterdir()) == ["new.1.nbc", "new.nbi", "old.pyc"]


AVX2_TARGET = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}


def test_no_microkernel_keeps_vectors_on_the_stack(tmp_path: Path) -> None:
    """But for two that are added here: five rows of QUADS8P4 need 18 registers, eight pixels of a window more than 16.

    Those are what a CPU of AVX2 has; nothing runs, so it is compiled for one anywhere: with AVX-512 there are 32.
    Of windows the products count: what finishes the sums may keep a constant on the stack.
    """
    code = (
        "from pyq.kernels import host, registry; from pyq.panels import QUADS8P4; "
        "registry.MICROKERNELS.append((host.AVX2, QUADS8P4, 5, 16)); "
        "registry.WINDOWS.append(registry.Window(host.AVX2, 3, 1, 8)); "
        "from pyq.kernels import depthwise, tile; "
        "print(*(f.inspect_asm(f.signatures[0]) for f in (tile.tiles, depthwise.depthwise)))"
    )
    assembly = run_python(code, NUMBA_CACHE_DIR=str(tmp_path), **AVX2_TARGET)  # code from the cache has no listing
    bodies = dict(re.findall(r"^pyq_(numba_avx2_\w+):$(.*?)^\.Lfunc_end", assembly, re.DOTALL | re.MULTILINE))
    rows = {k.name for k in pyq.kernels_available() if k.name.startswith("numba_avx2")}
    added = {"numba_avx2_quads8p4_5x16", "numba_avx2_window3s1_8x16"}
    assert bodies.keys() == rows | added
    spilling = set()
    for name, body in bodies.items():
        counted = body[body.index("vpmaddwd") : body.rindex("vpmaddwd")] if "window" in name else body
        if re.search(r"\(%r[sb]p\).*%ymm|%ymm.*\(%r[sb]p\)", counted):
            spilling.add(name)
    assert spilling == added


def test_registry_rows() -> None:
    rows = [k for k in pyq.kernels_available() if k.backend == "numba"]
    assert {k.operation for k in rows} == {"gemm", "depthwise", "requantize"}
    assert {k.runnable for k in rows if k.isa == "scalar"} == {True}
    assert {k.runnable for k in rows if k.isa == "avx2"} == {host.AVX2 in host.available_isas()}

"""How the Numba kernels are compiled: for which target, when, and from which cache."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyq
from pyq.backends import ISA_NAMES
from pyq.kernels import depthwise, elementwise, epilogue, gemm, host, tile


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TARGETS = {
    "scalar": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"},
    "avx512vnni": {
        "NUMBA_CPU_NAME": "cascadelake",
        "NUMBA_CPU_FEATURES": "+avx2,+avx512f,+avx512bw,+avx512vl,+avx512vnni",
    },
    "with vbmi": {
        "NUMBA_CPU_NAME": "icelake-server",
        "NUMBA_CPU_FEATURES": "+avx2,+avx512f,+avx512bw,+avx512vl,+avx512vnni,+avx512vbmi",
    },
}
"""What Numba is told to compile for, on any host, by the best instruction set that this has."""


def test_a_target_without_avx2_gets_plain_loops() -> None:
    """An intrinsic that the target lacks would abort the process."""
    code = (
        "import numpy as np; from pyq.kernels import host, tile; "
        "from pyq.panels import TAPS16; "
        "acc = np.zeros((1, 16), np.int32); "
        "[tile.tiles(isa, TAPS16, 16, np.full(32, 3, np.uint8), np.empty(0, np.int16), np.array([0]), "
        "np.array([0, 16], np.int32), np.full(32, 5, np.int16).view(np.uint8), acc) for isa in host.ISAS]; "
        "print(host.available_isas(), host.default_isa(), set(acc.ravel().tolist()))"
    )
    assert run_python(code, **TARGETS["scalar"]) == "(0,) 0 {90}\n"


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
    assert run_python(code, **TARGETS["scalar"]) == "[True, True, True]\n"


@pytest.mark.parametrize("target", ISA_NAMES)
@pytest.mark.parametrize("cap", ["", *ISA_NAMES])
def test_the_best_instruction_set_of_the_target_unless_pyq_isa_caps_it(target: str, cap: str) -> None:
    code = "from pyq.kernels import host; print(host.available_isas()[-1], host.default_isa())"
    best = ISA_NAMES.index(target)
    used = min(best, ISA_NAMES.index(cap)) if cap else best
    assert run_python(code, **TARGETS[target], PYQ_ISA=cap) == f"{best} {used}\n"


def test_what_avx512_has_no_kernel_for_is_avx2s() -> None:
    """And where there is one it comes first: two rows of a narrow panel are computed whole, or are twice one."""
    code = (
        "from pyq.kernels import registry; from pyq.backends import ISA_NAMES; from pyq.panels import LAYOUT_NAMES; "
        "tiles = [[registry.MICROKERNELS[registry.best_tile(2, layout, columns, left)] for columns in (8, 16) "
        "for left in (2, 5, 8)] for layout in range(len(LAYOUT_NAMES))]; "
        "print({LAYOUT_NAMES[of[0].layout]: [(ISA_NAMES[t.isa], t.mr, t.nr) for t in of] for of in tiles}); "
        "print({registry.WINDOWS[registry.best_window(2, side, 1, 4)][:4] for side in (3, 5)})"
    )
    tiles, windows = map(ast.literal_eval, run_python(code, **TARGETS["avx512vnni"]).splitlines())
    few = 2 * [("avx512vnni", 1, 16), ("avx512vnni", 4, 16), ("avx512vnni", 8, 16)]
    assert tiles["quads32"][:3] == [("avx512vnni", 2, 16), ("avx512vnni", 4, 8), ("avx512vnni", 8, 8)]
    assert tiles["quads32"][3:] == [("avx512vnni", mr, 16) for mr in (2, 5, 8)]
    assert (tiles["quads8"], tiles["quads8p2"], tiles["quads8p4"]) == (few, few, few)
    assert tiles["pairs8w"][:3] == [("avx2", 2, 16), ("avx2", 4, 8), ("avx2", 6, 8)]
    assert tiles["pairs16"][3:] == [("avx2", 2, 16), ("avx2", 4, 16), ("avx2", 6, 16)]
    assert {isa for isa, _, _ in tiles["taps16"]} == {"avx2"}
    assert windows == {(host.AVX512VNNI, 3, 1, 4), (host.AVX512VNNI, 5, 1, 4)}


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


def compiled(target: str, folder: Path, more: str, functions: str) -> dict[str, str]:
    """What LLVM makes for a target of the microkernels that some functions call, by their names.

    more: code that adds rows to the registry. Plain loops are not among them. Nothing runs: any host will do.
    """
    code = (
        "from pyq.kernels import host, registry; from pyq.panels import QUADS8P4, QUADS32; "
        f"{more}; from pyq.kernels import depthwise, tile; "
        f"print(*(f.inspect_asm(f.signatures[0]) for f in ({functions},)))"
    )
    assembly = run_python(code, NUMBA_CACHE_DIR=str(folder), **TARGETS[target])  # code from the cache has no listing
    found = re.findall(r"^pyq_(numba_avx\w+):$(.*?)^\.Lfunc_end", assembly, re.DOTALL | re.MULTILINE)
    return dict(found)


def rows(isa: str) -> set[str]:
    return {k.name for k in pyq.kernels_available() if (k.backend, k.isa) == ("numba", isa)}


def spills(code: str) -> bool:
    return re.search(r"\(%r[sb]p\).*%[yz]mm|%[yz]mm.*\(%r[sb]p\)", code) is not None


def test_no_microkernel_of_avx2_keeps_vectors_on_the_stack(tmp_path: Path) -> None:
    """But for two that are added here: five rows of QUADS8P4 need 18 registers, eight pixels of a window more than 16.

    Of windows the products count: what finishes the sums may keep a constant on the stack.
    """
    more = (
        "registry.MICROKERNELS.append(registry.Microkernel(host.AVX2, QUADS8P4, 5, 16)); "
        "registry.WINDOWS.append(registry.Window(host.AVX2, 3, 1, 8))"
    )
    bodies = compiled("avx2", tmp_path, more, FUNCTIONS)
    added = {"numba_avx2_quads8p4_5x16", "numba_avx2_window3s1_8x16"}
    assert bodies.keys() == rows("avx2") | added  # and none that the target lacks
    assert {name for name, body in products(bodies).items() if spills(body)} == added


FUNCTIONS = "tile.tiles, depthwise.depthwise"


def products(bodies: dict[str, str]) -> dict[str, str]:
    """The code of microkernels, that of windows from the first multiplication to the last."""

    def part(body: str) -> str:
        places = [match.start() for match in re.finditer("vpmaddwd|vpdpwssd|vpdpbusd", body)]
        return body[places[0] : places[-1]]

    return {name: part(body) if "window" in name else body for name, body in bodies.items()}


@pytest.mark.parametrize("target", ["avx512vnni", "with vbmi"])
def test_no_microkernel_of_avx512_keeps_vectors_on_the_stack(target: str, tmp_path: Path) -> None:
    """But for one that is added here: 32 rows need 34 of the 32 registers. Weights are loaded once for all rows."""
    more = "registry.MICROKERNELS.append(registry.Microkernel(host.AVX512VNNI, QUADS32, 32, 16))"
    bodies = compiled(target, tmp_path, more, FUNCTIONS)
    added = "numba_avx512vnni_quads32_32x16"
    ours = {name: body for name, body in bodies.items() if "avx512vnni" in name}
    there = {name for name in rows("avx512vnni") if target == "with vbmi" or "quads_window" not in name}
    assert ours.keys() == there | {added}  # and none that the target lacks
    assert {name for name, body in products(ours).items() if spills(body)} == {added}
    tiles = [body for name, body in ours.items() if "window" not in name]
    multiplied = [line for body in tiles for line in body.splitlines() if "vpdpbusd" in line]
    assert all(re.fullmatch(r"\s*vpdpbusd(\s+%[yz]mm\d+,){2} %[yz]mm\d+", line) for line in multiplied)


def test_registry_rows() -> None:
    found = [k for k in pyq.kernels_available() if k.backend == "numba"]
    assert {k.operation for k in found} == {"gemm", "depthwise", "requantize"}
    quads = {k for k in found if "quads_window" in k.name}
    assert {k.runnable for k in quads} == {host.permutes_bytes(host.AVX512VNNI)}
    for number, isa in enumerate(ISA_NAMES):
        assert {k.runnable for k in found if k.isa == isa and k not in quads} == {number in host.available_isas()}

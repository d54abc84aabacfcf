"""Every row of AVX512-VNNI on an emulated CPU that has it, whatever CPU runs the tests: exact sums, memory bounds.

Cases and expectations are those of test_kernels.py. Each buffer ends, or starts, at a page that the emulated CPU does
not have. Twins of these tests show that they can fail: CPUs without the instructions, buffers without an element.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import numpy as np
import pytest
import test_depthwise
import test_gemm_epilogue
from exact import assert_same, full_range, wrapped
from guarded import guarded
from test_kernels import C_ROWS, NR, Case, columns, exact_sums, random_case, run, with_panels_below, with_rows_apart

import pyq
from pyq._core import ffi, lib
from pyq.backends import ISA_NAMES, Epilogue
from pyq.config import Kernel

if (sys.platform, platform.machine(), sys.implementation.name) != ("linux", "x86_64", "cpython"):
    pytest.skip("runs the x86 code of an extension for Linux, in CPython", allow_module_level=True)
if sys.version_info >= (3, 13):
    pytest.skip("bochscpu has no module for this Python, only up to 3.12", allow_module_level=True)

from emulator import AVX512_STATE, AVX_STATE, INVALID_OPCODE, PAGE_FAULT, SSE_STATE, Cpu, Fault, address, on_cpu

ICE_LAKE, SKYLAKE_X, HASWELL = "corei7_icelake_u", "corei7_skylake_x", "corei7_haswell_4770"  # the second: no VNNI
ROWS = [k for k in pyq.kernels_available() if (k.backend, k.isa) == ("c", "avx512vnni") and k.layout]
OTHERS = [k for k in pyq.kernels_available() if (k.backend, k.isa) == ("c", "avx512vnni") and not k.layout]
WINDOWS, PAIRS = ([k for k in OTHERS if k.operation.startswith(start)] for start in ("depthwise", "gemm_"))
AVX2_ROWS = [k for k in pyq.kernels_available() if (k.backend, k.isa) == ("c", "avx2") and k.layout]
every_row = pytest.mark.parametrize("kernel", ROWS, ids=lambda k: k.name)


def tile_of(
    cpu: Cpu,
    kernel: Kernel,
    case: Case,
    edge: str = "end",
    short: str | None = None,
    before: np.ndarray | None = None,
    xcr0: int = AVX512_STATE,
) -> np.ndarray:
    """What the kernel computes on that CPU; see `run` of test_kernels.py."""

    def call(kernel: Kernel, case: Case, accumulate: bool, *buffers: np.ndarray) -> None:
        flags = accumulate * lib.PYQ_ADD_TO_TILE + lib.PYQ_FETCH_AHEAD
        tile, base, offsets, weights = buffers
        function = int(ffi.cast("uintptr_t", C_ROWS[kernel.name].gemm))
        rows = guarded((base.ctypes.data + case.rows * base.itemsize).astype(np.uint64), edge)
        steps, apart, below = len(case.offsets), with_rows_apart(tile), with_panels_below(tile)
        for sums in (tile, apart, below):
            how = flags + lib.PYQ_STRIDE * sums.shape[-1]
            cpu.call(function, sums, rows, offsets, weights, steps, how, reached=(base,), xcr0=xcr0)
        np.testing.assert_array_equal(apart[:, : columns(kernel)], tile)
        np.testing.assert_array_equal(np.hstack(list(below[:, : kernel.mr])), tile)

    return run(kernel, case, edge, short, before, call)


@every_row
@pytest.mark.parametrize("edge", ["end", "start"])
def test_sums_are_exact(kernel: Kernel, edge: str, rng: np.random.Generator) -> None:
    def check(cpu: Cpu) -> None:
        for steps in (*range(1, 14), 50):
            case = random_case(kernel, rng, steps, rng.random() < 0.5, rng.choice([255, 127]), rng.random() < 0.5)
            sums = exact_sums(kernel, case)
            assert_same(tile_of(cpu, kernel, case, edge), sums, f"{kernel.name}, {steps} steps")
            before = full_range(rng, (kernel.mr, columns(kernel)), np.int32)
            both = wrapped(before[:, : kernel.nr].astype(np.int64) + sums)
            assert_same(tile_of(cpu, kernel, case, edge, before=before), both, f"{kernel.name}, {steps} steps added")

    on_cpu(ICE_LAKE, check)


@every_row
def test_a_buffer_without_its_last_element_faults(kernel: Kernel, rng: np.random.Generator) -> None:
    def check(cpu: Cpu) -> None:
        case = random_case(kernel, rng, 1, False, 255, False)
        case = Case(case.base, np.full(kernel.mr, case.rows.max()), case.offsets, case.weights)
        # Of weights and tile, kernels for narrow panels leave the last columns alone.
        for short in ("base", "offsets", *(("weights", "tile") if kernel.nr >= NR else ())):
            with pytest.raises(Fault) as fault:
                tile_of(cpu, kernel, case, short=short)
            assert fault.value.vector == PAGE_FAULT, short
        assert_same(tile_of(cpu, kernel, case), exact_sums(kernel, case), kernel.name)

    on_cpu(ICE_LAKE, check)


def pixels_of(cpu: Cpu, kernel: Kernel, rng: np.random.Generator, xcr0: int = AVX512_STATE, **places: str) -> None:
    """Check what a depthwise kernel computes on that CPU; see `run` of test_depthwise.py."""

    def call(
        kernel: Kernel, table: np.ndarray, weights: np.ndarray, channels: int, e: Epilogue, out: np.ndarray
    ) -> None:
        taps, [finish] = test_depthwise.taps_of(kernel, weights, channels, e)
        structs = [np.frombuffer(ffi.buffer(struct), np.uint8) for struct in (taps, finish.c)]
        pixel = ctypes.c_uint8 * (channels - (places.get("short") == "pixels"))
        pixels = [np.frombuffer(pixel.from_address(address), np.uint8) for address in table[table > 0].tolist()]
        window = int(ffi.cast("uintptr_t", C_ROWS[kernel.name].window))
        arguments = structs[0], table, len(out) // kernel.mr, out
        cpu.call(window, *arguments, reached=(structs[1], weights, *pixels), xcr0=xcr0)

    channels = int(rng.integers(16, 50))
    x = test_depthwise.random_input(kernel, rng, channels, rng.random() < 0.5)
    w = test_depthwise.packed_for(kernel, rng, channels, rng.random() < 0.5)
    sums = test_depthwise.run(kernel, x, w, test_depthwise.INT32, call=call, **places)
    assert_same(sums, test_depthwise.expected(kernel, x, w), f"{kernel.name}, {channels} channels")


@pytest.mark.parametrize("kernel", WINDOWS, ids=lambda k: k.name)
def test_windows_are_exact(kernel: Kernel, rng: np.random.Generator) -> None:
    """With every buffer at the end of a page; without its last element it faults."""

    def check(cpu: Cpu) -> None:
        for _ in range(5):
            pixels_of(cpu, kernel, rng, edge="end")
        for short in ("pixels", "weights", "out"):
            with pytest.raises(Fault) as fault:
                pixels_of(cpu, kernel, rng, edge="end", short=short)
            assert fault.value.vector == PAGE_FAULT, short

    on_cpu(ICE_LAKE, check)


def pairs_of(cpu: Cpu, kernel: Kernel, rng: np.random.Generator, xcr0: int = AVX512_STATE, **how: str) -> None:
    """Check what a kernel that finishes its products computes on that CPU; see `run` of test_gemm_epilogue.py."""

    def call(kernel: Kernel, pointers: test_gemm_epilogue.Pointers, epilogue: Any, arrays: list[np.ndarray]) -> None:
        pair, rows, flags, out = pointers
        structs = [np.frombuffer(ffi.buffer(struct), np.uint8) for struct in (pair, epilogue)]
        function = int(ffi.cast("uintptr_t", C_ROWS[kernel.name].panels))
        cpu.call(function, structs[0], guarded(rows), len(rows), flags, out, reached=(structs[1], *arrays), xcr0=xcr0)

    rows, steps, columns = (int(rng.integers(*limits)) for limits in ((1, 18), (1, 14), (9, 33)))
    table = how.get("short") == "table" or rng.random() < 0.5
    test_gemm_epilogue.check(kernel, rng, rows, steps, columns, table, call=call, **how)


@pytest.mark.parametrize("kernel", PAIRS, ids=lambda k: k.name)
def test_finished_products_are_exact(kernel: Kernel, rng: np.random.Generator) -> None:
    """With every buffer at the end of a page; without its last element it faults."""
    always_read = ("multiplier", "table") if kernel.operation == "gemm_requantize" else ()

    def check(cpu: Cpu) -> None:
        for _ in range(30):
            pairs_of(cpu, kernel, rng, edge="end")
        for short in ("offsets", "weights", "out", *always_read):
            with pytest.raises(Fault) as fault:
                pairs_of(cpu, kernel, rng, edge="end", short=short)
            assert fault.value.vector == PAGE_FAULT, short

    on_cpu(ICE_LAKE, check)


LACKING = {
    "no AVX-512": (HASWELL, AVX_STATE),
    "no VNNI": (SKYLAKE_X, AVX512_STATE),
    "a system that does not save the registers": (ICE_LAKE, AVX_STATE),
}
lacking = pytest.mark.parametrize(("model", "xcr0"), LACKING.values(), ids=LACKING.keys())


@lacking
def test_rows_fault_where_their_instructions_lack(model: str, xcr0: int, rng: np.random.Generator) -> None:
    """It is for these alone: the rows of AVX2 compute there."""

    def check(cpu: Cpu) -> None:
        for kernel in AVX2_ROWS:
            case = random_case(kernel, rng, 5, False, 255, False)
            assert_same(tile_of(cpu, kernel, case, xcr0=xcr0), exact_sums(kernel, case), kernel.name)
        for kernel in ROWS:
            with pytest.raises(Fault) as fault:
                tile_of(cpu, kernel, random_case(kernel, rng, 5, False, 255, False), xcr0=xcr0)
            assert fault.value.vector == INVALID_OPCODE, kernel.name
        for kernel in WINDOWS:
            with pytest.raises(Fault) as fault:
                pixels_of(cpu, kernel, rng, xcr0)
            assert fault.value.vector == INVALID_OPCODE, kernel.name
        for kernel in PAIRS:
            with pytest.raises(Fault) as fault:
                pairs_of(cpu, kernel, rng, xcr0)
            assert fault.value.vector == INVALID_OPCODE, kernel.name

    on_cpu(model, check)


def packed(cpu: Cpu, b: np.ndarray, short: str = "", xcr0: int = AVX512_STATE) -> tuple[np.ndarray, np.ndarray]:
    """Panels and column sums of b, as the packing of bytes stores them on that CPU; short: what lacks an element."""
    (k, columns), is_signed = b.shape, b.dtype == np.int8
    panels = np.full(-(-k // 4) * -(-columns // NR) * 4 * NR, 77, np.int8)
    buffers = {"b": b.reshape(-1), "panels": panels, "sums": np.full(columns, 77, np.int32)}
    matrix, panels, sums = (guarded(buffer[:-1] if name == short else buffer) for name, buffer in buffers.items())
    cpu.call(address("pyq_avx512vnni_pack_bytes"), matrix, int(is_signed), k, columns, panels, sums, xcr0=xcr0)
    return panels, sums


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_are_packed(dtype: str, rng: np.random.Generator) -> None:
    """Quads of 16 columns, [panel][quad][column][4]; what is behind the last row or column is zero."""

    def check(cpu: Cpu) -> None:
        for _ in range(40):
            k, columns = rng.integers(1, 70, 2)
            b = full_range(rng, (k, columns), dtype)
            weights = b.astype(np.int64) - (128 if dtype == "uint8" else 0)
            padded = np.pad(weights, ((0, -k % 4), (0, -columns % NR)))
            expected = padded.reshape(-(-k // 4), 4, -1, NR).transpose(2, 0, 3, 1)
            panels, sums = packed(cpu, b)
            assert_same(panels, expected.astype(np.int8).reshape(-1), f"{k} x {columns}")
            assert_same(sums, wrapped(weights.sum(0)), f"sums of {k} x {columns}")
        for short in ("b", "panels", "sums"):
            with pytest.raises(Fault) as fault:
                packed(cpu, b, short)
            assert fault.value.vector == PAGE_FAULT, short

    on_cpu(ICE_LAKE, check)


@lacking
def test_packing_faults_where_its_instructions_lack(model: str, xcr0: int) -> None:
    def check(cpu: Cpu) -> None:
        with pytest.raises(Fault) as fault:
            packed(cpu, np.ones((8, 32), np.int8), xcr0=xcr0)
        assert fault.value.vector == INVALID_OPCODE

    on_cpu(model, check)


DETECTED = [
    ("core2_penryn_t9600", SSE_STATE, "scalar"),
    ("corei7_sandy_bridge_2600k", AVX_STATE, "scalar"),
    (HASWELL, AVX_STATE, "avx2"),
    (HASWELL, SSE_STATE, "scalar"),
    ("ryzen", AVX_STATE, "avx2"),
    ("arrow_lake", AVX_STATE, "avx2"),
    (SKYLAKE_X, AVX512_STATE, "avx2"),
    (ICE_LAKE, AVX512_STATE, "avx512vnni"),
    (ICE_LAKE, AVX_STATE, "avx2"),
    (ICE_LAKE, SSE_STATE, "scalar"),
    ("sapphire_rapids", AVX512_STATE, "avx512vnni"),
]


@pytest.mark.parametrize(("model", "xcr0", "isa"), DETECTED)
def test_what_cpu_and_system_have_is_detected(model: str, xcr0: int, isa: str) -> None:
    def check(cpu: Cpu) -> None:
        assert ISA_NAMES[cpu.call(address("detect"), xcr0=xcr0) & 0xFFFFFFFF] == isa

    on_cpu(model, check)

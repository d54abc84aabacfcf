"""No hot loop of a SIMD kernel keeps vectors on the stack: their registers are what its speed comes from."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from disassembly import Instruction, functions, hot_loops, spills

import pyq
from pyq import _core
from pyq.config import Kernel

SIMD = [k for k in pyq.kernels_available() if k.backend == "c" and k.isa != "scalar" and k.operation != "requantize"]

ACCUMULATORS = """
#include <immintrin.h>
#include <stdint.h>
__attribute__((target("avx2"))) void tile(int32_t *out, const int16_t *a, const int16_t *w, int64_t steps) {
    __m256i acc[COUNT];
    for (int c = 0; c < COUNT; c++) acc[c] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s++, a += 2, w += 16 * COUNT) {
        const __m256i pair = _mm256_set1_epi32(*(const int32_t *)a);
#pragma GCC unroll 32
        for (int c = 0; c < COUNT; c++) {
            const __m256i weights = _mm256_loadu_si256((const __m256i *)(w + 16 * c));
            acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(pair, weights));
        }
    }
    for (int c = 0; c < COUNT; c++) _mm256_storeu_si256((__m256i *)(out + 8 * c), acc[c]);
}
"""
"""COUNT accumulators: 8 fit in the 16 registers, 24 do not."""


@cache
def extension() -> dict[str, list[Instruction]]:
    return functions(Path(_core.__file__))


def functions_of(kernel: Kernel) -> list[str]:
    """The kernel, and what it has for tiles whose rows lie apart; equal functions may be stored only once."""
    main = f"pyq_{kernel.name}"
    if kernel.operation == "gemm_requantize":  # its loops are in functions for so many rows
        return [name for name in extension() if name.startswith(("requantized_", "looked_up_"))]
    return [main, *(name for name in extension() if name.startswith(f"{main}_apart"))]


@pytest.mark.parametrize("kernel", SIMD, ids=lambda kernel: kernel.name)
def test_hot_loops_stay_in_registers(kernel: Kernel) -> None:
    for name in functions_of(kernel):
        code = extension()[name]
        loops = hot_loops(code)
        assert loops, f"{name}: no loop that multiplies and adds vectors was found"
        assert [spills(code, loop) for loop in loops] == [[]] * len(loops), name


def test_kernels_for_rows_that_lie_apart_are_looked_at() -> None:
    looked_at = {kernel.name for kernel in SIMD if len(functions_of(kernel)) > 1}
    assert {"avx2_pairs16_6x16", "avx2_quads8p2_4x16", "avx2_quads8p4_4x16"} <= looked_at


@pytest.mark.parametrize("flags", [["-fomit-frame-pointer"], ["-fno-omit-frame-pointer"]], ids=lambda flags: flags[0])
@pytest.mark.parametrize(("accumulators", "fit"), [(8, True), (24, False)])
def test_a_loop_that_spills_is_found(tmp_path: Path, accumulators: int, fit: bool, flags: list[str]) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang") or "cc"
    source, binary = tmp_path / "tile.c", tmp_path / "tile.o"
    source.write_text(ACCUMULATORS)
    subprocess.run([compiler, "-O3", *flags, f"-DCOUNT={accumulators}", "-c", source, "-o", binary], check=True)
    code = functions(binary)["tile"]
    [loop] = hot_loops(code)
    assert (not spills(code, loop)) == fit

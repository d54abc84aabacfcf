"""Build description of the extension ``pyq._core`` (cffi API mode, abi3); used by setup.py only."""

from __future__ import annotations

from pathlib import Path

import numpy
from cffi import FFI

SOURCES = [
    "csrc/registry.c",
    "csrc/gemm.c",
    "csrc/lower.c",
    "csrc/dynamic.c",
    "csrc/pack.c",
    "csrc/pack_bytes.c",
    "csrc/pack_plan.c",
    "csrc/elementwise.c",
    "csrc/normalize.c",
    "csrc/peak.c",
    "csrc/pool.c",
    "csrc/product.c",
    "csrc/threads.c",
    "csrc/depthwise.c",
    "csrc/transpose.c",
    "csrc/scalar/depthwise.c",
    "csrc/scalar/kernels.c",
    "csrc/x86/avx2_binary.c",
    "csrc/x86/avx2_depthwise.c",
    "csrc/x86/avx2_elementwise.c",
    "csrc/x86/avx2_gemm.c",
    "csrc/x86/avx2_narrow.c",
    "csrc/x86/avx2_pool.c",
    "csrc/x86/avx2_requantize.c",
    "csrc/x86/avx2_softmax.c",
    "csrc/x86/avx2_transpose.c",
    "csrc/x86/avx512_depthwise.c",
    "csrc/x86/avx512_gemm.c",
    "csrc/x86/avx512_lookup.c",
    "csrc/x86/avx512_narrow.c",
    "csrc/x86/avx512_pack.c",
    "csrc/x86/avx512_requantized.c",
    "csrc/x86/avx512_sums.c",
    "csrc/x86/avx512_window.c",
]
# No contraction: an FMA rounds once where the numerics ask for two roundings. No traps: nobody reads the exception
# flags, and comparisons may then be vectorised; values stay as they are. No -m flags: see csrc/isa.h.
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden", "-pthread"]
FLAGS += ["-Wall", "-Wextra"]

HEADER = Path(__file__).parents[1] / "csrc" / "pyq.h"
"""The contract in C. All that stands between its includes and its end is plain declarations, which cffi can read."""

ffi = FFI()
ffi.cdef(HEADER.read_text().partition("#include <stdint.h>")[2].rpartition("#endif")[0])
ffi.cdef("void *pyq_array_data(uintptr_t array);")
ffi.cdef("int32_t pyq_run_arrays(const pyq_call *, uintptr_t x, int64_t images, uintptr_t residual, uintptr_t out);")
ffi.cdef("int32_t pyq_run_dynamic_arrays(const pyq_dynamic *, uintptr_t x, int64_t, uintptr_t offset, uintptr_t out);")
ffi.set_source(
    "pyq._core",
    '#include "arrays.h"',
    sources=SOURCES,
    include_dirs=["csrc", numpy.get_include()],
    depends=[str(path) for path in sorted(Path("csrc").rglob("*.[hd]*"))],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x03090000")],
)

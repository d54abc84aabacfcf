"""Build description of the extension ``pyq._core`` (cffi API mode, abi3); used by setup.py only."""

from __future__ import annotations

import sys

from cffi import FFI

SOURCES = [
    "csrc/registry.c",
    "csrc/gemm.c",
    "csrc/pack.c",
    "csrc/elementwise.c",
    "csrc/threads.c",
    "csrc/scalar/kernels.c",
    "csrc/x86/avx2_gemm.c",
    "csrc/x86/avx2_requantize.c",
]
# No contraction: an FMA rounds once where the numerics ask for two roundings. No -m flags: see csrc/isa.h.
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra"]

DECLARATIONS = """
#define PYQ_OUT_INT32 ...
#define PYQ_OUT_FLOAT32 ...
#define PYQ_OUT_QUANTIZED ...
#define PYQ_MAX_MR ...
typedef struct {
    int64_t data, order;
    int32_t steps, layout, column, columns, row_offset, splits;
} pyq_panel;
typedef struct {
    const pyq_panel *panels;
    int64_t panel_count;
    const int32_t *offsets;
    const uint8_t *data;
} pyq_weights;
typedef struct {
    const uint8_t *bytes;
    const int16_t *words;
    int64_t images, height, width, stride_n, stride_h, stride_w;
} pyq_rows;
typedef struct {
    int32_t type, zero_point;
    const int32_t *bias;
    const float *multiplier, *offset;
    float low, high;
    const uint8_t *table;
} pyq_epilogue;
typedef struct {
    const char *name;
    int32_t operation, isa, layout, mr, nr, p;
    void (*gemm)(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const void *weights, int64_t steps);
    void (*epilogue)(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column, void *out,
                     int64_t stride);
} pyq_kernel;
typedef struct { float scale; int32_t zero_point, is_signed; } pyq_affine;

extern const pyq_kernel pyq_kernels[];
int32_t pyq_kernel_count(void);
int32_t pyq_isa_detected(void);
int32_t pyq_get_isa(void);
int32_t pyq_set_isa(int32_t isa);
void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, void *out,
              int64_t columns);
void pyq_apply_epilogue(const int32_t *acc, int64_t rows, int64_t columns, const pyq_epilogue *epilogue, void *out);
int64_t pyq_pack(const int16_t *w, int64_t quads, int64_t columns, int32_t amax, int32_t allow_quads8,
                 pyq_panel *panels, int32_t *order, uint8_t *data);
void pyq_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, const int32_t *zero_point,
                    uint8_t *data, int32_t *sums);
void pyq_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n);
int32_t pyq_quantize(const float *x, uint8_t *out, int64_t n, float scale, int32_t zero_point, float low, float high);
void pyq_dequantize(const uint8_t *q, int32_t is_signed, float *out, int64_t n, float scale, int32_t zero_point);
void pyq_binary(int32_t op, int32_t ndim, const int64_t *shape, const uint8_t *a, const int64_t *a_strides,
                const uint8_t *b, const int64_t *b_strides, const pyq_affine *qa, const pyq_affine *qb,
                const pyq_affine *qo, float low, float high, uint8_t *out);
int32_t pyq_get_num_threads(void);
void pyq_set_num_threads(int32_t n);
"""

ffi = FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "pyq._core",
    '#include "pyq.h"',
    sources=SOURCES,
    include_dirs=["csrc"],
    depends=["csrc/pyq.h", "csrc/isa.h", "csrc/requant.h", "csrc/kernels.def", "csrc/x86/avx2_lookup.h"],
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x03090000")] if sys.implementation.name == "cpython" else [],
)

/* AVX2 epilogue; avx2_epilogue.h has the instructions and why they are exact. */
#include "../isa.h"

#if PYQ_HAVE_AVX2
#include "avx2_epilogue.h"

ALWAYS_INLINE TARGET_AVX2 void store_sums(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                          const pyq_epilogue *e, const uint8_t *residual, uint8_t *out,
                                          int64_t stride) {
    const sum s = load_sum(e->sum);
    if (e->table)
        store_bytes(tile, rows, c, b, 0, &s, e->table, residual, out, stride);
    else
        store_bytes(tile, rows, c, b, 0, &s, NULL, residual, out, stride);
}

TARGET_AVX2 void pyq_avx2_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                     const uint8_t *residual, void *out, int64_t stride) {
    if (e->type == PYQ_OUT_INT32) {
        store_accumulators(tile, rows, e->bias ? e->bias + column : NULL, out, stride);
        return;
    }
    const columns c = load_columns(e, column);
    const bounds b = load_bounds(e);
    if (e->type == PYQ_OUT_FLOAT32)
        store_floats(tile, rows, &c, &b, e->offset ? e->offset + column : NULL, out, stride);
    else if (e->sum)
        store_sums(tile, rows, &c, &b, e, residual, out, stride);
    else if (e->table)
        store_bytes(tile, rows, &c, &b, 0, NULL, e->table, NULL, out, stride);
    else if (packing_clamps(e, &c))
        store_bytes(tile, rows, &c, &b, 1, NULL, NULL, NULL, out, stride);
    else
        store_bytes(tile, rows, &c, &b, 0, NULL, NULL, NULL, out, stride);
}

#endif

/* AVX2 epilogue: two rows of 16 columns at a time.
 *
 * vpaddd (bias), vcvtdq2ps, vmulps (and vaddps, float32 only: never fused, an FMA would round once instead of twice).
 * To bytes: vminps, vcvtps2dq (rounds half to even), vpackssdw, vpaddsw of minus the lower bound, vpackuswb, vpermd,
 * vpaddb of the lowest byte. Packing to unsigned is the lower clamp: what lies below the bound becomes 0, and a sum too
 * far below for the conversion comes out of it as INT_MIN. The upper clamp is in float, because one too far above would
 * too.
 * Exact: the same float32 operations in the same order as requant.h, whose bounds are integers, so that clamping
 * before rounding equals clamping after.
 * Peak: 29 instructions for 32 outputs; a table costs 35 more.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include "avx2_lookup.h"

/* What the epilogue needs of its 16 columns, in registers: a byte stored may alias anything in memory. */
typedef struct {
    __m256i bias[2], minus_low, lowest;
    __m256 multiplier[2], offset[2], low, high;
} columns;

ALWAYS_INLINE TARGET_AVX2 columns load_columns(const pyq_epilogue *e, int64_t column) {
    columns c = {.low = _mm256_set1_ps(e->low), .high = _mm256_set1_ps(e->high)};
    if (e->type == PYQ_OUT_QUANTIZED) {
        c.minus_low = _mm256_set1_epi16((int16_t)-e->low);
        c.lowest = _mm256_set1_epi8((char)((int32_t)e->low + e->zero_point));
    }
    UNROLL for (int half = 0; half < 2; half++, column += 8) {
        c.bias[half] = e->bias ? _mm256_loadu_si256((const __m256i *)(e->bias + column)) : _mm256_setzero_si256();
        c.multiplier[half] = _mm256_loadu_ps(e->multiplier + column);
        /* Adding -0 changes nothing, not even the sign of a zero. */
        c.offset[half] = e->offset ? _mm256_loadu_ps(e->offset + column) : _mm256_set1_ps(-0.0f);
    }
    return c;
}

ALWAYS_INLINE TARGET_AVX2 __m256 scaled(const int32_t *acc, const columns *c, const int half) {
    const __m256i sum = _mm256_add_epi32(_mm256_loadu_si256((const __m256i *)acc + half), c->bias[half]);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), c->multiplier[half]);
}

/* A row as words: columns 0-3, 8-11 in the lower half, 4-7, 12-15 in the upper one; counted from the lower bound. */
ALWAYS_INLINE TARGET_AVX2 __m256i words(const int32_t *row, const columns *c) {
    const __m256i q0 = _mm256_cvtps_epi32(_mm256_min_ps(c->high, scaled(row, c, 0)));
    const __m256i q1 = _mm256_cvtps_epi32(_mm256_min_ps(c->high, scaled(row, c, 1)));
    return _mm256_adds_epi16(_mm256_packs_epi32(q0, q1), c->minus_low);
}

/* Two rows as bytes, one in each half. */
ALWAYS_INLINE TARGET_AVX2 __m256i quantized(const int32_t *first, const int32_t *second, const columns *c) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packus_epi16(words(first, c), words(second, c));
    return _mm256_add_epi8(_mm256_permutevar8x32_epi32(bytes, order), c->lowest);
}

ALWAYS_INLINE TARGET_AVX2 void store_bytes(const int32_t *tile, int64_t rows, const columns *c, const uint8_t *table,
                                           uint8_t *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r += 2, tile += 2 * PYQ_NR, out += 2 * stride) {
        const int two = r + 1 < rows;
        __m256i y = quantized(tile, two ? tile + PYQ_NR : tile, c);
        if (table) y = lookup_32(table, y);
        _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(y));
        if (two) _mm_storeu_si128((__m128i *)(out + stride), _mm256_extracti128_si256(y, 1));
    }
}

/* maxps returns its second operand for equal values, which only matters for the sign of zero: requant.h's clamp
 * returns x itself when it equals a bound, hence the bounds come first here. */
ALWAYS_INLINE TARGET_AVX2 __m256 clamped(__m256 y, const columns *c) {
    return _mm256_min_ps(c->high, _mm256_max_ps(c->low, y));
}

ALWAYS_INLINE TARGET_AVX2 void store_floats(const int32_t *tile, int64_t rows, const columns *c, float *out,
                                            int64_t stride) {
    for (int64_t r = 0; r < rows; r++, tile += PYQ_NR)
        UNROLL for (int half = 0; half < 2; half++) {
            const __m256 y = _mm256_add_ps(scaled(tile, c, half), c->offset[half]);
            _mm256_storeu_ps(out + r * stride + 8 * half, clamped(y, c));
        }
}

ALWAYS_INLINE TARGET_AVX2 void store_accumulators(const int32_t *tile, int64_t rows, const int32_t *bias, int32_t *out,
                                                  int64_t stride) {
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256i b = bias ? _mm256_loadu_si256((const __m256i *)bias + half) : _mm256_setzero_si256();
        for (int64_t r = 0; r < rows; r++) {
            const __m256i acc = _mm256_loadu_si256((const __m256i *)(tile + r * PYQ_NR) + half);
            _mm256_storeu_si256((__m256i *)(out + r * stride) + half, _mm256_add_epi32(acc, b));
        }
    }
}

TARGET_AVX2 void pyq_avx2_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                     void *out, int64_t stride) {
    if (e->type == PYQ_OUT_INT32) {
        store_accumulators(tile, rows, e->bias ? e->bias + column : NULL, out, stride);
        return;
    }
    const columns c = load_columns(e, column);
    if (e->type == PYQ_OUT_FLOAT32)
        store_floats(tile, rows, &c, out, stride);
    else if (e->table)
        store_bytes(tile, rows, &c, e->table, out, stride);
    else
        store_bytes(tile, rows, &c, NULL, out, stride);
}

#endif

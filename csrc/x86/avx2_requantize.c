/* AVX2 epilogue: eight columns at a time.
 *
 * vpaddd (bias), vcvtdq2ps, vmulps (and vaddps, float32 only: never fused, an FMA would round once instead of twice),
 * vmaxps / vminps, vcvtps2dq (rounds half to even), vpackssdw, vpackuswb. The bounds are clamped in float, so the
 * conversion sees at most +-510; integers packed from the sum with the zero point always fit a byte.
 * Exact: the same float32 operations in the same order as requant.h.
 * Peak: about 10 instructions for 8 outputs; a table costs 35 more for 32.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include "avx2_lookup.h"

/* What the epilogue needs of its 16 columns, in registers: a byte stored may alias anything in memory. */
typedef struct {
    __m256i bias[2], zero_point;
    __m256 multiplier[2], offset[2], low, high;
} columns;

ALWAYS_INLINE TARGET_AVX2 columns load_columns(const pyq_epilogue *e, int64_t column) {
    columns c = {.zero_point = _mm256_set1_epi32(e->zero_point),
                 .low = _mm256_set1_ps(e->low),
                 .high = _mm256_set1_ps(e->high)};
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

/* maxps returns its second operand for equal values, which only matters for the sign of zero: requant.h's clamp
 * returns x itself when it equals a bound, hence the bounds come first here. */
ALWAYS_INLINE TARGET_AVX2 __m256 clamped(__m256 y, const columns *c) {
    return _mm256_min_ps(c->high, _mm256_max_ps(c->low, y));
}

ALWAYS_INLINE TARGET_AVX2 __m128i quantized(const int32_t *tile, const columns *c) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    __m256i q0 = _mm256_add_epi32(_mm256_cvtps_epi32(clamped(scaled(tile, c, 0), c)), c->zero_point);
    __m256i q1 = _mm256_add_epi32(_mm256_cvtps_epi32(clamped(scaled(tile, c, 1), c)), c->zero_point);
    /* Keep the low byte, so that int8 and uint8 pack alike; packs work in 128-bit halves, permute restores order. */
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(q0, byte), _mm256_and_si256(q1, byte));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

ALWAYS_INLINE TARGET_AVX2 void store_bytes(const int32_t *tile, int64_t rows, const columns *c, uint8_t *out,
                                           int64_t stride) {
    for (int64_t r = 0; r < rows; r++, tile += PYQ_NR)
        _mm_storeu_si128((__m128i *)(out + r * stride), quantized(tile, c));
}

ALWAYS_INLINE TARGET_AVX2 void store_looked_up(const int32_t *tile, int64_t rows, const columns *c,
                                               const uint8_t *table, uint8_t *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r += 2, tile += 2 * PYQ_NR) {
        const int two = r + 1 < rows;
        __m128i first = quantized(tile, c), second = two ? quantized(tile + PYQ_NR, c) : first;
        __m256i y = lookup_32(table, _mm256_set_m128i(second, first));
        _mm_storeu_si128((__m128i *)(out + r * stride), _mm256_castsi256_si128(y));
        if (two) _mm_storeu_si128((__m128i *)(out + (r + 1) * stride), _mm256_extracti128_si256(y, 1));
    }
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
        store_looked_up(tile, rows, &c, e->table, out, stride);
    else
        store_bytes(tile, rows, &c, out, stride);
}

#endif

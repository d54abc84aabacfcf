/* AVX2 epilogue: eight columns at a time.
 *
 * vpaddd (bias), vcvtdq2ps, vmulps (and vaddps, float32 only: never fused, an FMA would round once instead of twice),
 * vmaxps / vminps, vcvtps2dq (rounds half to even), vpackssdw, vpackuswb. The bounds are clamped in float, so the
 * conversion sees at most +-510; integers packed from the sum with the zero point always fit a byte.
 * Exact: the same float32 operations in the same order as requant.h.
 * Peak: about 10 instructions for 8 outputs; a table costs 64 more for 32.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include "avx2_lookup.h"

/* maxps returns its second operand for equal values, which only matters for the sign of zero: requant.h's clamp
 * returns x itself when it equals a bound, hence the bounds come first here. */
ALWAYS_INLINE TARGET_AVX2 __m256 scaled(const int32_t *acc, const pyq_epilogue *e, int64_t column) {
    __m256i sum = _mm256_loadu_si256((const __m256i *)acc);
    if (e->bias) sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(e->bias + column)));
    if (e->type == PYQ_OUT_INT32) return _mm256_castsi256_ps(sum);
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(e->multiplier + column));
    if (e->offset) y = _mm256_add_ps(y, _mm256_loadu_ps(e->offset + column));
    return _mm256_min_ps(_mm256_set1_ps(e->high), _mm256_max_ps(_mm256_set1_ps(e->low), y));
}

ALWAYS_INLINE TARGET_AVX2 __m128i quantized(const int32_t *tile, const pyq_epilogue *e, int64_t column) {
    const __m256i zero_point = _mm256_set1_epi32(e->zero_point), byte = _mm256_set1_epi32(0xff);
    __m256i q0 = _mm256_add_epi32(_mm256_cvtps_epi32(scaled(tile, e, column)), zero_point);
    __m256i q1 = _mm256_add_epi32(_mm256_cvtps_epi32(scaled(tile + 8, e, column + 8)), zero_point);
    /* Keep the low byte, so that int8 and uint8 pack alike; packs work in 128-bit halves, permute restores order. */
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(q0, byte), _mm256_and_si256(q1, byte));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

ALWAYS_INLINE TARGET_AVX2 void store_looked_up(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                               uint8_t *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r += 2, tile += 2 * PYQ_NR) {
        const int two = r + 1 < rows;
        __m128i first = quantized(tile, e, column), second = two ? quantized(tile + PYQ_NR, e, column) : first;
        __m256i y = lookup_32(e->table, _mm256_set_m128i(second, first));
        _mm_storeu_si128((__m128i *)(out + r * stride), _mm256_castsi256_si128(y));
        if (two) _mm_storeu_si128((__m128i *)(out + (r + 1) * stride), _mm256_extracti128_si256(y, 1));
    }
}

TARGET_AVX2 void pyq_avx2_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                     void *out, int64_t stride) {
    if (e->type == PYQ_OUT_QUANTIZED && e->table) {
        store_looked_up(tile, rows, e, column, out, stride);
        return;
    }
    for (int64_t r = 0; r < rows; r++, tile += PYQ_NR) {
        if (e->type == PYQ_OUT_QUANTIZED) {
            _mm_storeu_si128((__m128i *)((uint8_t *)out + r * stride), quantized(tile, e, column));
        } else {
            float *to = (float *)out + r * stride;
            _mm256_storeu_ps(to, scaled(tile, e, column));
            _mm256_storeu_ps(to + 8, scaled(tile + 8, e, column + 8));
        }
    }
}

#endif

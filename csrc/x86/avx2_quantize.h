/* Floats to bytes, 32 at a time: by a multiplication that gives the bits of a division.
 *
 * vmulps, vmaxps, vminps, vaddps, vpsrld, vpand: the sum with 1536.5 + zero point lies between 1024 and 2048, so that its
 * bits from the 13th on are the integer, rounded.
 *
 * Exact without the division of the numerics, which would be the bound (vdivps: 8 quotients in 5 to 6 cycles): with
 * r = float(1 / scale), float(x * r) and float(x / scale) differ by 3 roundings at most, which within the bounds (at
 * most 255) is less than 0.4 * 2^-13. The sum above is rounded to multiples of 2^-13. So both give the same integer
 * unless the 13 fraction bits of the sum are 0, which means close to a half. Then, and for NaN, whose bits are such
 * too, all 32 numbers are divided (vpand, vpminud find that). This takes that r is finite and not subnormal; for other
 * scales everything is divided.
 */
#ifndef PYQ_AVX2_QUANTIZE_H
#define PYQ_AVX2_QUANTIZE_H

#include <float.h>
#include <immintrin.h>

#include "../elementwise.h"
#include "../isa.h"

enum { FRACTION_BITS = 13 };

typedef struct {
    __m256 scale, reciprocal, low, high, bias;
    __m256i fraction; /* 0 when all has to be divided: then every fraction is 0 */
    __m256i zero_point;
} quantizer;

ALWAYS_INLINE TARGET_AVX2 quantizer load_quantizer(const pyq_quantizer *q) {
    const float reciprocal = 1.0f / q->scale;
    const int usable = reciprocal >= FLT_MIN && reciprocal <= FLT_MAX;
    return (quantizer){.scale = _mm256_set1_ps(q->scale),
                       .reciprocal = _mm256_set1_ps(reciprocal),
                       .low = _mm256_set1_ps(q->low),
                       .high = _mm256_set1_ps(q->high),
                       .bias = _mm256_set1_ps(1536.5f + (float)q->zero_point),
                       .fraction = _mm256_set1_epi32(usable ? (1 << FRACTION_BITS) - 1 : 0),
                       .zero_point = _mm256_set1_epi32(q->zero_point)};
}

/* The bounds come first: then NaN stays NaN. */
ALWAYS_INLINE TARGET_AVX2 __m256 clamped(__m256 x, const quantizer *q) {
    return _mm256_min_ps(q->high, _mm256_max_ps(q->low, x));
}

/* The low bytes of 32 integers. Packs work in halves of 128 bits. */
ALWAYS_INLINE TARGET_AVX2 __m256i low_bytes(__m256i y[4]) {
    UNROLL for (int i = 0; i < 4; i++) y[i] = _mm256_and_si256(y[i], _mm256_set1_epi32(0xff));
    const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(y[0], y[1]), _mm256_packus_epi32(y[2], y[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

TARGET_AVX2 __attribute__((noinline)) static __m256i divided_32(const __m256 x[4], const quantizer *q, int32_t *nan) {
    __m256i y[4];
    __m256 unordered = _mm256_setzero_ps();
    UNROLL for (int i = 0; i < 4; i++) {
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(x[i], x[i], _CMP_UNORD_Q));
        const __m256 quotient = clamped(_mm256_div_ps(x[i], q->scale), q);
        y[i] = _mm256_add_epi32(_mm256_cvtps_epi32(quotient), q->zero_point);
    }
    *nan |= _mm256_movemask_ps(unordered);
    return low_bytes(y);
}

ALWAYS_INLINE TARGET_AVX2 __m256i quantized_32(const __m256 x[4], const quantizer *q, int32_t *nan) {
    __m256i y[4], least = q->fraction;
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256 quotient = clamped(_mm256_mul_ps(x[i], q->reciprocal), q);
        const __m256i sum = _mm256_castps_si256(_mm256_add_ps(quotient, q->bias));
        least = _mm256_min_epu32(least, _mm256_and_si256(sum, q->fraction));
        y[i] = _mm256_srli_epi32(sum, FRACTION_BITS);
    }
    const __m256i close = _mm256_cmpeq_epi32(least, _mm256_setzero_si256());
    if (__builtin_expect(!_mm256_testz_si256(close, close), 0)) {
        const __m256 stored[4] = {x[0], x[1], x[2], x[3]}; /* here, and not before each comparison */
        return divided_32(stored, q, nan);
    }
    return low_bytes(y);
}

#endif

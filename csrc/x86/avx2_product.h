/* Products of quantized operands by one float multiplication: 32 at a time.
 *
 * Bytes become words minus their zero point (vpand or vpsrlw, vpsubw), of which vpmaddwd multiplies one of two, the
 * other being blended to 0: (a - za) * (b - zb), exactly. vcvtdq2ps, vmulps by a factor, vcvtps2dq; vpackssdw, vpaddsw,
 * vpacksswb, vpminsb, vpshufb, vpaddb saturate, apply bounds and zero point, and restore the order.
 *
 * The numerics round four times on their way to a product, this rounds once. Exact, because there are only 65536 pairs
 * of bytes: a factor is used only after all of them have been tried (20 us).
 *
 * Peak: 32 products by 39 instructions.
 */
#ifndef PYQ_AVX2_PRODUCT_H
#define PYQ_AVX2_PRODUCT_H

#include <immintrin.h>

#include "../elementwise.h"
#include "../isa.h"

typedef struct {
    __m256i a_flip, b_flip, a_zero, b_zero;
    __m256 factor;
    __m256i lower, highest, base; /* integers are found minus the lowest and 128 */
} product;

ALWAYS_INLINE TARGET_AVX2 product load_product(const pyq_arithmetic *p) {
    const int32_t low = (int32_t)p->out.low, high = (int32_t)p->out.high;
    return (product){.a_flip = _mm256_set1_epi8(p->a.is_signed ? -128 : 0),
                     .b_flip = _mm256_set1_epi8(p->b.is_signed ? -128 : 0),
                     .a_zero = _mm256_set1_epi16((int16_t)pyq_unsigned_zero(&p->a)),
                     .b_zero = _mm256_set1_epi16((int16_t)pyq_unsigned_zero(&p->b)),
                     .factor = _mm256_set1_ps(p->product_factor),
                     .lower = _mm256_set1_epi16((int16_t)(-low - 128)),
                     .highest = _mm256_set1_epi8((char)(high - low - 128)),
                     .base = _mm256_set1_epi8((char)(low + 128 + p->out.zero_point))};
}

ALWAYS_INLINE TARGET_AVX2 __m256i scaled_8(__m256i products, __m256 factor) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(products), factor));
}

/* The products of even words, then those of odd words, in each half of the register. */
ALWAYS_INLINE TARGET_AVX2 __m256i products_16(__m256i x, __m256i y, const product *p) {
    const __m256i none = _mm256_setzero_si256();
    const __m256i even = _mm256_madd_epi16(_mm256_blend_epi16(x, none, 0xaa), y);
    const __m256i odd = _mm256_madd_epi16(_mm256_blend_epi16(none, x, 0xaa), y);
    const __m256i words = _mm256_packs_epi32(scaled_8(even, p->factor), scaled_8(odd, p->factor));
    return _mm256_adds_epi16(words, p->lower);
}

ALWAYS_INLINE TARGET_AVX2 __m256i products_32(const uint8_t *a, const uint8_t *b, const product *p) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)a), p->a_flip);
    const __m256i y = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)b), p->b_flip);
    const __m256i byte = _mm256_set1_epi16(255);
    const __m256i x0 = _mm256_sub_epi16(_mm256_and_si256(x, byte), p->a_zero);
    const __m256i y0 = _mm256_sub_epi16(_mm256_and_si256(y, byte), p->b_zero);
    const __m256i x1 = _mm256_sub_epi16(_mm256_srli_epi16(x, 8), p->a_zero);
    const __m256i y1 = _mm256_sub_epi16(_mm256_srli_epi16(y, 8), p->b_zero);
    const __m256i bytes = _mm256_packs_epi16(products_16(x0, y0, p), products_16(x1, y1, p));
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
    return _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_min_epi8(bytes, p->highest), order), p->base);
}

#endif

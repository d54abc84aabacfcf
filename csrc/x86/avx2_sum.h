/* Sums and differences of quantized operands in fixed point: 32 at a time.
 *
 * The bytes of both operands become pairs of words (vpunpck bw, twice); vpmaddwd multiplies them by both factors, scale
 * / scale of the result: by what is above their low 8 bits, which fits a word since the sum has to fit 32 bits, and by
 * these; vpslld, vpaddd twice, vpsrad; vpackssdw and vpackuswb saturate, vpminub and vpaddb apply bounds and zero
 * point.
 *
 * Factors are exact after all 65536 pairs of bytes have been tried with them. Where none are found, because some sums
 * are too close to a half: factors and offset are off by half a unit each, so a sum by less than 256; the numerics are
 * off by 3 roundings of numbers that are at most the sum of the operands. A sum that is not further than that from a
 * half, which is where the fraction is small or nearly 1, is found as the numerics say it, with its 31 neighbours. The
 * offset moves all by that distance, so that only small fractions have to be looked for.
 *
 * Peak: 32 sums by 38 instructions, or 49 where fractions are looked at.
 */
#ifndef PYQ_AVX2_SUM_H
#define PYQ_AVX2_SUM_H

#include <float.h>
#include <immintrin.h>

#include "../elementwise.h"
#include "../isa.h"

static int32_t nearest(double x) { return (int32_t)(x < 0 ? x - 0.5 : x + 0.5); }

/* No product with a difference of bytes is subnormal or infinite, nor is a sum of two infinite. */
static int ordinary(float scale) { return scale >= FLT_MIN && scale <= FLT_MAX / 1024; }

/* Whether sums are possible in fixed point, of which there are then as many bits of fraction as fit; else 0. */
static int32_t sum_fraction_bits(const pyq_arithmetic *p) {
    const double reach = 255 * ((double)p->a.scale / p->out.scale + (double)p->b.scale / p->out.scale);
    int32_t bits = 22;
    while (bits > 0 && (reach + 258) * (1 << bits) >= 2147483648.0) bits--; /* minus p->out.low, and rounded */
    return bits < 16 || !ordinary(p->a.scale) || !ordinary(p->b.scale) ? 0 : bits;
}

/* The factors may be some units more or less, which the offset makes up for in the middle of the range. */
static pyq_fixed_sum sum_near(const pyq_arithmetic *p, int32_t bits, int32_t a_more, int32_t b_more) {
    const double one = 1 << bits, a = (double)p->a.scale / p->out.scale, b = (double)p->b.scale / p->out.scale;
    const double a_zero = pyq_unsigned_zero(&p->a), b_zero = pyq_unsigned_zero(&p->b);
    const double signed_b = p->op == PYQ_SUB ? -b : b;
    const double offset = one * (0.5 - a_zero * a - b_zero * signed_b - (double)p->out.low);
    return (pyq_fixed_sum){bits, nearest(a * one) + a_more, nearest(signed_b * one) + b_more,
                           nearest(offset - a_zero * a_more - b_zero * b_more), -1};
}

static pyq_fixed_sum with_distance(pyq_fixed_sum f, const pyq_arithmetic *p) {
    const double reach = 255 * ((double)p->a.scale / p->out.scale + (double)p->b.scale / p->out.scale);
    const int32_t distance = 256 + (int32_t)(3 * reach * (1 << f.fraction_bits) / (1 << 24)) + 2;
    f.offset += distance, f.close = 2 * distance;
    return f;
}

typedef struct {
    __m256i a_flip, b_flip;
    __m256i high, low, offset; /* pairs of factors, for a and b */
    __m256i fraction, close;
    __m128i fraction_bits;
    __m256i range, base;       /* high - low, low + zero point */
} fixed_sum;

ALWAYS_INLINE TARGET_AVX2 __m256i word_pair(int32_t a, int32_t b) {
    return _mm256_set1_epi32((int32_t)((uint32_t)a & 0xffff) | (int32_t)((uint32_t)b << 16));
}

ALWAYS_INLINE TARGET_AVX2 fixed_sum load_fixed_sum(const pyq_arithmetic *p) {
    const pyq_fixed_sum *f = &p->sum;
    const int32_t low = (int32_t)p->out.low, high = (int32_t)p->out.high;
    return (fixed_sum){.a_flip = _mm256_set1_epi8(p->a.is_signed ? -128 : 0),
                       .b_flip = _mm256_set1_epi8(p->b.is_signed ? -128 : 0),
                       .high = word_pair(f->a_factor >> 8, f->b_factor >> 8),
                       .low = word_pair(f->a_factor & 255, f->b_factor & 255),
                       .offset = _mm256_set1_epi32(f->offset),
                       .fraction = _mm256_set1_epi32((1 << f->fraction_bits) - 1),
                       .close = _mm256_set1_epi32(f->close),
                       .fraction_bits = _mm_cvtsi32_si128(f->fraction_bits),
                       .range = _mm256_set1_epi8((char)(high - low)),
                       .base = _mm256_set1_epi8((char)(low + p->out.zero_point))};
}

/* least: the least fractions, where they are looked at. */
ALWAYS_INLINE TARGET_AVX2 __m256i sums_32(const uint8_t *a, const uint8_t *b, const fixed_sum *f, __m256i *least) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)a), f->a_flip);
    const __m256i y = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)b), f->b_flip);
    const __m256i pairs[2] = {_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y)}, zero = _mm256_setzero_si256();
    __m256i z[4];
    *least = f->fraction;
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256i two = pairs[i / 2];
        const __m256i words = i % 2 ? _mm256_unpackhi_epi8(two, zero) : _mm256_unpacklo_epi8(two, zero);
        const __m256i high = _mm256_slli_epi32(_mm256_madd_epi16(words, f->high), 8);
        const __m256i sum = _mm256_add_epi32(high, _mm256_add_epi32(_mm256_madd_epi16(words, f->low), f->offset));
        *least = _mm256_min_epu32(*least, _mm256_and_si256(sum, f->fraction));
        z[i] = _mm256_sra_epi32(sum, f->fraction_bits);
    }
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(z[0], z[1]), _mm256_packs_epi32(z[2], z[3]));
    return _mm256_add_epi8(_mm256_min_epu8(bytes, f->range), f->base);
}

#endif

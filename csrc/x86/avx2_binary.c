/* Arithmetic on quantized operands with AVX2: 32 elements at a time.
 *
 * As the numerics say it: byte to number by vpmovzxbd, vpxor (the byte becomes the last bits of the float 2^23 + byte;
 * int8 has its top bit flipped, which adds 128), vsubps (exact), vmulps; the operation; number to byte as in
 * avx2_quantize.h.
 *
 * Sums and differences in fixed point: the bytes of both operands become pairs of words (vpunpck bw, twice); vpmaddwd
 * multiplies them by both factors, scale / scale of the result: by what is above their low 8 bits, which fits a word
 * since the sum has to fit 32 bits, and by these; vpslld, vpaddd twice, vpsrad; vpackssdw and vpackuswb saturate, vpminub
 * and vpaddb apply bounds and zero point. Exact, since factors and offset are off by half a unit each, so a sum by less
 * than 256; the numerics are off by 3 roundings of numbers that are at most the sum of the operands. A sum that is not
 * further than that from a half, which is where the fraction is small or nearly 1, is found as the numerics say it, with
 * its 31 neighbours. The offset moves all by that distance, so that only small fractions have to be looked for.
 *
 * Peak: 32 sums by 49 instructions, 32 products by 80, as many quotients by the same and 4 divisions.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <float.h>
#include <string.h>

#include "avx2_product.h"
#include "avx2_quantize.h"

typedef struct {
    __m256 scale, zero;
    __m256i bits;
} dequantizer;

ALWAYS_INLINE TARGET_AVX2 dequantizer load_dequantizer(const pyq_affine *p) {
    const int32_t flip = p->is_signed ? 128 : 0;
    const float base = 8388608.0f; /* 2^23: the last bit of its mantissa counts 1 */
    return (dequantizer){.scale = _mm256_set1_ps(p->scale),
                         .zero = _mm256_set1_ps(base + (float)(p->zero_point + flip)),
                         .bits = _mm256_xor_si256(_mm256_castps_si256(_mm256_set1_ps(base)), _mm256_set1_epi32(flip))};
}

ALWAYS_INLINE TARGET_AVX2 __m256 real_8(const uint8_t *q, const dequantizer *d) {
    const __m256i byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)q));
    const __m256 number = _mm256_castsi256_ps(_mm256_xor_si256(byte, d->bits));
    return _mm256_mul_ps(_mm256_sub_ps(number, d->zero), d->scale);
}

typedef struct {
    dequantizer a, b;
    quantizer out;
} arithmetic;

ALWAYS_INLINE TARGET_AVX2 arithmetic load_arithmetic(const pyq_binary_lines *l) {
    return (arithmetic){load_dequantizer(&l->a), load_dequantizer(&l->b), load_quantizer(&l->out)};
}

ALWAYS_INLINE TARGET_AVX2 __m256i binary_32(const uint8_t *a, const uint8_t *b, const arithmetic *p, const int op) {
    __m256 z[4];
    int32_t nan = 0; /* not looked at: 0 / 0 has been refused before */
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256 x = real_8(a + 8 * i, &p->a), y = real_8(b + 8 * i, &p->b);
        z[i] = op == PYQ_ADD   ? _mm256_add_ps(x, y)
               : op == PYQ_SUB ? _mm256_sub_ps(x, y)
               : op == PYQ_MUL ? _mm256_mul_ps(x, y)
                               : _mm256_div_ps(x, y);
    }
    return quantized_32(z, &p->out, &nan);
}

/* Sets itself up, since it is seldom needed. */
TARGET_AVX2 __attribute__((noinline)) static __m256i close_sums(const uint8_t *a, const uint8_t *b,
                                                                const pyq_binary_lines *l) {
    const arithmetic p = load_arithmetic(l);
    return l->op == PYQ_ADD ? binary_32(a, b, &p, PYQ_ADD) : binary_32(a, b, &p, PYQ_SUB);
}

static int32_t nearest(double x) { return (int32_t)(x < 0 ? x - 0.5 : x + 0.5); }

/* No product with a difference of bytes is subnormal or infinite, nor is a sum of two infinite. */
static int ordinary(float scale) { return scale >= FLT_MIN && scale <= FLT_MAX / 1024; }

pyq_fixed_sum pyq_avx2_fixed_sum(const pyq_binary_lines *l) {
    const double a = (double)l->a.scale / l->out.scale, b = (double)l->b.scale / l->out.scale;
    const double reach = 255 * (a + b), bound = reach + 258; /* of the sum; of the sum minus l->out.low, and rounded */
    int32_t bits = 22;
    while (bits > 0 && bound * (1 << bits) >= 2147483648.0) bits--;
    if (bits < 16 || (l->op != PYQ_ADD && l->op != PYQ_SUB) || !ordinary(l->a.scale) || !ordinary(l->b.scale))
        return (pyq_fixed_sum){0};
    const double one = 1 << bits, signed_b = l->op == PYQ_SUB ? -b : b;
    const int32_t distance = 256 + (int32_t)(3 * reach * one / (1 << 24)) + 2;
    const double offset = 0.5 - pyq_unsigned_zero(&l->a) * a - pyq_unsigned_zero(&l->b) * signed_b - (double)l->out.low;
    return (pyq_fixed_sum){bits, nearest(a * one), nearest(signed_b * one), nearest(offset * one) + distance,
                           2 * distance};
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

ALWAYS_INLINE TARGET_AVX2 fixed_sum load_fixed_sum(const pyq_binary_lines *l) {
    const pyq_fixed_sum *f = &l->fixed;
    const int32_t low = (int32_t)l->out.low, high = (int32_t)l->out.high;
    return (fixed_sum){.a_flip = _mm256_set1_epi8(l->a.is_signed ? -128 : 0),
                       .b_flip = _mm256_set1_epi8(l->b.is_signed ? -128 : 0),
                       .high = word_pair(f->a_factor >> 8, f->b_factor >> 8),
                       .low = word_pair(f->a_factor & 255, f->b_factor & 255),
                       .offset = _mm256_set1_epi32(f->offset),
                       .fraction = _mm256_set1_epi32((1 << f->fraction_bits) - 1),
                       .close = _mm256_set1_epi32(f->close),
                       .fraction_bits = _mm_cvtsi32_si128(f->fraction_bits),
                       .range = _mm256_set1_epi8((char)(high - low)),
                       .base = _mm256_set1_epi8((char)(low + l->out.zero_point))};
}

ALWAYS_INLINE TARGET_AVX2 __m256i sums_32(const uint8_t *a, const uint8_t *b, const fixed_sum *f,
                                          const pyq_binary_lines *l) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)a), f->a_flip);
    const __m256i y = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)b), f->b_flip);
    const __m256i pairs[2] = {_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y)}, zero = _mm256_setzero_si256();
    __m256i z[4], least = f->fraction;
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256i two = pairs[i / 2];
        const __m256i words = i % 2 ? _mm256_unpackhi_epi8(two, zero) : _mm256_unpacklo_epi8(two, zero);
        const __m256i high = _mm256_slli_epi32(_mm256_madd_epi16(words, f->high), 8);
        const __m256i sum = _mm256_add_epi32(high, _mm256_add_epi32(_mm256_madd_epi16(words, f->low), f->offset));
        least = _mm256_min_epu32(least, _mm256_and_si256(sum, f->fraction));
        z[i] = _mm256_sra_epi32(sum, f->fraction_bits);
    }
    const __m256i far = _mm256_cmpgt_epi32(least, f->close);
    if (__builtin_expect(_mm256_movemask_epi8(far) != -1, 0)) return close_sums(a, b, l);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(z[0], z[1]), _mm256_packs_epi32(z[2], z[3]));
    return _mm256_add_epi8(_mm256_min_epu8(bytes, f->range), f->base);
}

TARGET_AVX2 int32_t pyq_avx2_product_is_exact(const pyq_binary_lines *l) {
    const arithmetic chain = load_arithmetic(l);
    const product p = load_product(l);
    uint8_t a[32], b[256];
    for (int i = 0; i < 256; i++) b[i] = (uint8_t)i;
    for (int i = 0; i < 256; i++) {
        memset(a, i, sizeof a);
        __m256i same = _mm256_set1_epi8(-1);
        for (int k = 0; k < 256; k += 32) {
            const __m256i expected = binary_32(a, b + k, &chain, PYQ_MUL);
            same = _mm256_and_si256(same, _mm256_cmpeq_epi8(products_32(a, b + k, &p), expected));
        }
        if (_mm256_movemask_epi8(same) != -1) return 0;
    }
    return 1;
}

typedef enum { CHAIN, FIXED_SUM, PRODUCT } way;

typedef struct {
    const pyq_binary_lines *lines;
    arithmetic chain;
    fixed_sum sum;
    product product;
} ways;

ALWAYS_INLINE TARGET_AVX2 __m256i results_32(const uint8_t *a, const uint8_t *b, const ways *w, const int op,
                                             const way way) {
    return way == FIXED_SUM ? sums_32(a, b, &w->sum, w->lines)
           : way == PRODUCT ? products_32(a, b, &w->product)
                            : binary_32(a, b, &w->chain, op);
}

/* An operand that stays the same along a line is read again and again from 32 copies of it. */
ALWAYS_INLINE TARGET_AVX2 void lines(const pyq_binary_lines *l, const uint8_t *a, const uint8_t *b, uint8_t *out,
                                     const int op, const way way) {
    const ways w = {l, load_arithmetic(l), load_fixed_sum(l), load_product(l)};
    const int64_t a_step = l->a_stride, b_step = l->b_stride, n = l->n, count = l->lines;
    const int64_t a_line = l->a_line, b_line = l->b_line, out_line = l->out_line;
    for (int64_t k = 0; k < count; k++, a += a_line, b += b_line, out += out_line) {
        uint8_t a_32[32] = {0}, b_32[32] = {0}, bytes[32];
        const uint8_t *x = a_step ? a : memset(a_32, *a, 32), *y = b_step ? b : memset(b_32, *b, 32);
        int64_t i = 0;
        for (; i + 32 <= n; i += 32, x += 32 * a_step, y += 32 * b_step)
            _mm256_storeu_si256((__m256i *)(out + i), results_32(x, y, &w, op, way));
        if (i == n) continue;
        const size_t rest = (size_t)(n - i);
        if (a_step) x = memcpy(a_32, x, rest);
        if (b_step) y = memcpy(b_32, y, rest);
        _mm256_storeu_si256((__m256i *)bytes, results_32(x, y, &w, op, way));
        memcpy(out + i, bytes, rest);
    }
}

TARGET_AVX2 void pyq_avx2_binary_lines(const pyq_binary_lines *l, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    if (l->fixed.fraction_bits > 0)
        lines(l, a, b, out, l->op, FIXED_SUM);
    else if (l->product_factor > 0)
        lines(l, a, b, out, PYQ_MUL, PRODUCT);
    else
        switch (l->op) {
        case PYQ_ADD: lines(l, a, b, out, PYQ_ADD, CHAIN); break;
        case PYQ_SUB: lines(l, a, b, out, PYQ_SUB, CHAIN); break;
        case PYQ_MUL: lines(l, a, b, out, PYQ_MUL, CHAIN); break;
        default: lines(l, a, b, out, PYQ_DIV, CHAIN);
        }
}

#endif

/* Quantize, and arithmetic on quantized operands, with AVX2: 32 elements at a time.
 *
 * Byte to number: vpmovzxbd, vpxor (the byte becomes the last bits of the float 2^23 + byte; int8 has its top bit
 * flipped, which adds 128), vsubps (exact), vmulps. Number to byte: vmulps, vmaxps, vminps, vaddps, vpsrld, vpand: the
 * sum with 1536.5 + zero point lies between 1024 and 2048, so that its bits from the 13th on are the integer, rounded.
 *
 * Exact without the division of the numerics, which would be the bound (vdivps: 8 quotients in 5 to 6 cycles): with
 * r = float(1 / scale), float(x * r) and float(x / scale) differ by 3 roundings at most, which within the bounds (at
 * most 255) is less than 0.4 * 2^-13. The sum above is rounded to multiples of 2^-13. So both give the same integer
 * unless the 13 fraction bits of the sum are 0, which means close to a half. Then, and for NaN, whose bits are such
 * too, all 32 numbers are divided (vpand, vpminud find that). This takes that r is finite and not subnormal; for other
 * scales everything is divided.
 *
 * Sums and differences in fixed point: the bytes of both operands become pairs of words (vpunpck bw, twice); vpmaddwd
 * multiplies them by both factors, scale / scale of the result: by what is above their low 8 bits, which fits a word
 * since the sum has to fit 32 bits, and by these; vpslld, vpaddd
 * twice, vpsrad; vpackssdw and vpackuswb saturate. Exact as above: factors and offset are off by half a unit each, so a
 * sum by less than 256; the numerics are off by 3 roundings of numbers that are at most the sum of the operands. A sum
 * that is not further than that from a half, which is where the fraction is small or nearly 1, is found in float32 with
 * its 31 neighbours. The offset moves all by that distance, so that only small ones have to be looked for.
 *
 * Peak: 8 bytes quantized by 9 instructions, products of two operands by 19, and 4 more for each 32; 32 sums by 49.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "../elementwise.h"

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
    if (__builtin_expect(!_mm256_testz_si256(close, close), 0)) return divided_32(x, q, nan);
    return low_bytes(y);
}

ALWAYS_INLINE TARGET_AVX2 __m256i quantize_32(const float *x, const quantizer *q, int32_t *nan) {
    __m256 reals[4];
    UNROLL for (int i = 0; i < 4; i++) reals[i] = _mm256_loadu_ps(x + 8 * i);
    return quantized_32(reals, q, nan);
}

TARGET_AVX2 int32_t pyq_avx2_quantize(const float *x, uint8_t *out, int64_t n, const pyq_quantizer *to) {
    const quantizer q = load_quantizer(to);
    int32_t nan = 0;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) _mm256_storeu_si256((__m256i *)(out + i), quantize_32(x + i, &q, &nan));
    if (i < n) {
        float rest[32] = {0};
        uint8_t bytes[32];
        memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
        _mm256_storeu_si256((__m256i *)bytes, quantize_32(rest, &q, &nan));
        memcpy(out + i, bytes, (size_t)(n - i));
    }
    return nan;
}

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

typedef struct {
    __m256i high, low, offset; /* pairs of factors, for a and b */
    __m256i fraction, close;
    __m128i fraction_bits;
    __m256i a_flip, b_flip, range, base;
} fixed_sum;

static int32_t nearest(double x) { return (int32_t)(x < 0 ? x - 0.5 : x + 0.5); }

/* No product with a difference of bytes is subnormal or infinite, nor is a sum of two infinite. */
static int ordinary(float scale) { return scale >= FLT_MIN && scale <= FLT_MAX / 1024; }

pyq_fixed_sum pyq_avx2_fixed_sum(const pyq_binary_line *l) {
    const double a = (double)l->a.scale / l->out.scale, b = (double)l->b.scale / l->out.scale;
    const double reach = 255 * (a + b), bound = reach + 258; /* of the sum; of the sum minus l->out.low, and rounded */
    int32_t bits = 22;
    while (bits > 0 && bound * (1 << bits) >= 2147483648.0) bits--;
    if (bits < 16 || (l->op != PYQ_ADD && l->op != PYQ_SUB) || !ordinary(l->a.scale) || !ordinary(l->b.scale))
        return (pyq_fixed_sum){0};
    const double one = 1 << bits, signed_b = l->op == PYQ_SUB ? -b : b;
    const int32_t a_zero = l->a.zero_point + (l->a.is_signed ? 128 : 0);
    const int32_t b_zero = l->b.zero_point + (l->b.is_signed ? 128 : 0);
    const int32_t distance = 256 + (int32_t)(3 * reach * one / (1 << 24)) + 2;
    const double offset = 0.5 - a_zero * a - b_zero * signed_b - (double)l->out.low;
    return (pyq_fixed_sum){bits, nearest(a * one), nearest(signed_b * one), nearest(offset * one) + distance,
                           2 * distance};
}

ALWAYS_INLINE TARGET_AVX2 __m256i word_pair(int32_t a, int32_t b) {
    return _mm256_set1_epi32((int32_t)((uint32_t)a & 0xffff) | (int32_t)((uint32_t)b << 16));
}

ALWAYS_INLINE TARGET_AVX2 fixed_sum load_fixed_sum(const pyq_binary_line *l) {
    const pyq_fixed_sum *f = &l->fixed;
    const int32_t low = (int32_t)l->out.low, high = (int32_t)l->out.high;
    return (fixed_sum){.high = word_pair(f->a_factor >> 8, f->b_factor >> 8),
                       .low = word_pair(f->a_factor & 255, f->b_factor & 255),
                       .offset = _mm256_set1_epi32(f->offset),
                       .fraction = _mm256_set1_epi32((1 << f->fraction_bits) - 1),
                       .close = _mm256_set1_epi32(f->close),
                       .fraction_bits = _mm_cvtsi32_si128(f->fraction_bits),
                       .a_flip = _mm256_set1_epi8(l->a.is_signed ? -128 : 0),
                       .b_flip = _mm256_set1_epi8(l->b.is_signed ? -128 : 0),
                       .range = _mm256_set1_epi8((char)(high - low)),
                       .base = _mm256_set1_epi8((char)(low + l->out.zero_point))};
}

TARGET_AVX2 __attribute__((noinline)) static __m256i close_sums(const uint8_t *a, const uint8_t *b, const arithmetic *p,
                                                                const int op) {
    return op == PYQ_ADD ? binary_32(a, b, p, PYQ_ADD) : binary_32(a, b, p, PYQ_SUB);
}

ALWAYS_INLINE TARGET_AVX2 __m256i sum_32(const uint8_t *a, const uint8_t *b, const fixed_sum *f, const arithmetic *p,
                                         const int op) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)a), f->a_flip);
    const __m256i y = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)b), f->b_flip);
    const __m256i pairs[2] = {_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y)}, zero = _mm256_setzero_si256();
    __m256i z[4], least = f->fraction;
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256i words = i % 2 ? _mm256_unpackhi_epi8(pairs[i / 2], zero) : _mm256_unpacklo_epi8(pairs[i / 2], zero);
        const __m256i high = _mm256_slli_epi32(_mm256_madd_epi16(words, f->high), 8);
        const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(words, f->low), f->offset);
        const __m256i sum = _mm256_add_epi32(high, low);
        least = _mm256_min_epu32(least, _mm256_and_si256(sum, f->fraction));
        z[i] = _mm256_sra_epi32(sum, f->fraction_bits);
    }
    const __m256i far = _mm256_cmpgt_epi32(least, f->close);
    if (__builtin_expect(_mm256_movemask_epi8(far) != -1, 0)) return close_sums(a, b, p, op);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(z[0], z[1]), _mm256_packs_epi32(z[2], z[3]));
    return _mm256_add_epi8(_mm256_min_epu8(bytes, f->range), f->base);
}

ALWAYS_INLINE TARGET_AVX2 __m256i one_32(const uint8_t *a, const uint8_t *b, const fixed_sum *f, const arithmetic *p,
                                         const int op, const int fixed) {
    return fixed ? sum_32(a, b, f, p, op) : binary_32(a, b, p, op);
}

/* An operand that stays the same is read again and again from 32 copies of it. */
ALWAYS_INLINE TARGET_AVX2 void line(const pyq_binary_line *l, const uint8_t *a, const uint8_t *b, uint8_t *out,
                                    const int op, const int fixed) {
    const fixed_sum f = load_fixed_sum(l);
    const arithmetic p = {load_dequantizer(&l->a), load_dequantizer(&l->b), load_quantizer(&l->out)};
    const int64_t a_step = l->a_stride, b_step = l->b_stride;
    uint8_t a_32[32] = {0}, b_32[32] = {0}, bytes[32];
    if (!a_step) a = memset(a_32, *a, 32);
    if (!b_step) b = memset(b_32, *b, 32);
    int64_t i = 0;
    for (; i + 32 <= l->n; i += 32)
        _mm256_storeu_si256((__m256i *)(out + i), one_32(a + i * a_step, b + i * b_step, &f, &p, op, fixed));
    if (i < l->n) {
        const size_t rest = (size_t)(l->n - i);
        if (a_step) a = memcpy(a_32, a + i, rest);
        if (b_step) b = memcpy(b_32, b + i, rest);
        _mm256_storeu_si256((__m256i *)bytes, one_32(a, b, &f, &p, op, fixed));
        memcpy(out + i, bytes, rest);
    }
}

TARGET_AVX2 void pyq_avx2_binary_line(const pyq_binary_line *l, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    const int fixed = l->fixed.fraction_bits > 0;
    switch (l->op) {
    case PYQ_ADD: fixed ? line(l, a, b, out, PYQ_ADD, 1) : line(l, a, b, out, PYQ_ADD, 0); break;
    case PYQ_SUB: fixed ? line(l, a, b, out, PYQ_SUB, 1) : line(l, a, b, out, PYQ_SUB, 0); break;
    case PYQ_MUL: line(l, a, b, out, PYQ_MUL, 0); break;
    default: line(l, a, b, out, PYQ_DIV, 0);
    }
}

#endif

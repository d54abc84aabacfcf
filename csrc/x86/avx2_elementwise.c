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
 * Peak: 8 bytes quantized by 9 instructions, sums of two operands by 19, and 4 more for each 32.
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

/* An operand that stays the same is read again and again from 32 copies of it. */
ALWAYS_INLINE TARGET_AVX2 void line(const pyq_binary_line *l, const uint8_t *a, const uint8_t *b, uint8_t *out,
                                    const int op) {
    const arithmetic p = {load_dequantizer(&l->a), load_dequantizer(&l->b), load_quantizer(&l->out)};
    const int64_t a_step = l->a_stride, b_step = l->b_stride;
    uint8_t a_32[32] = {0}, b_32[32] = {0}, bytes[32];
    if (!a_step) a = memset(a_32, *a, 32);
    if (!b_step) b = memset(b_32, *b, 32);
    int64_t i = 0;
    for (; i + 32 <= l->n; i += 32)
        _mm256_storeu_si256((__m256i *)(out + i), binary_32(a + i * a_step, b + i * b_step, &p, op));
    if (i < l->n) {
        const size_t rest = (size_t)(l->n - i);
        if (a_step) a = memcpy(a_32, a + i, rest);
        if (b_step) b = memcpy(b_32, b + i, rest);
        _mm256_storeu_si256((__m256i *)bytes, binary_32(a, b, &p, op));
        memcpy(out + i, bytes, rest);
    }
}

TARGET_AVX2 void pyq_avx2_binary_line(const pyq_binary_line *l, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    switch (l->op) {
    case PYQ_ADD: line(l, a, b, out, PYQ_ADD); break;
    case PYQ_SUB: line(l, a, b, out, PYQ_SUB); break;
    case PYQ_MUL: line(l, a, b, out, PYQ_MUL); break;
    default: line(l, a, b, out, PYQ_DIV);
    }
}

#endif

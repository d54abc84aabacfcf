/* Arithmetic on quantized operands with AVX2: 32 elements at a time.
 *
 * As the numerics say it: byte to number by vpmovzxbd, vpxor (the byte becomes the last bits of the float 2^23 + byte;
 * int8 has its top bit flipped, which adds 128), vsubps (exact), vmulps; the operation; number to byte as in
 * avx2_quantize.h.
 *
 * Sums, differences and products have shorter ways (avx2_sum.h, avx2_product.h): by factors that are known to be exact,
 * since all 65536 pairs of bytes have been tried with them.
 *
 * Peak: 32 results by 80 instructions, quotients by 4 divisions more.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <string.h>

#include "avx2_product.h"
#include "avx2_quantize.h"
#include "avx2_sum.h"

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
} chain;

ALWAYS_INLINE TARGET_AVX2 chain load_chain(const pyq_arithmetic *p) {
    return (chain){load_dequantizer(&p->a), load_dequantizer(&p->b), load_quantizer(&p->out)};
}

ALWAYS_INLINE TARGET_AVX2 __m256i binary_32(const uint8_t *a, const uint8_t *b, const chain *c, const int op) {
    __m256 z[4];
    int32_t nan = 0; /* not looked at: 0 / 0 has been refused before */
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256 x = real_8(a + 8 * i, &c->a), y = real_8(b + 8 * i, &c->b);
        z[i] = op == PYQ_ADD   ? _mm256_add_ps(x, y)
               : op == PYQ_SUB ? _mm256_sub_ps(x, y)
               : op == PYQ_MUL ? _mm256_mul_ps(x, y)
                               : _mm256_div_ps(x, y);
    }
    return quantized_32(z, &c->out, &nan);
}

/* Sets itself up, since it is seldom needed. */
TARGET_AVX2 __attribute__((noinline)) static __m256i close_sums(const uint8_t *a, const uint8_t *b,
                                                                const pyq_arithmetic *p) {
    const chain c = load_chain(p);
    return p->op == PYQ_ADD ? binary_32(a, b, &c, PYQ_ADD) : binary_32(a, b, &c, PYQ_SUB);
}

ALWAYS_INLINE TARGET_AVX2 __m256i checked_sums_32(const uint8_t *a, const uint8_t *b, const fixed_sum *f,
                                                  const pyq_arithmetic *p) {
    __m256i least;
    const __m256i sums = sums_32(a, b, f, &least), far = _mm256_cmpgt_epi32(least, f->close);
    return __builtin_expect(_mm256_movemask_epi8(far) == -1, 1) ? sums : close_sums(a, b, p);
}

typedef enum { CHAIN, CHECKED_SUM, EXACT_SUM, PRODUCT } way;

typedef struct {
    const pyq_arithmetic *arithmetic;
    chain chain;
    fixed_sum sum;
    product product;
} ways;

ALWAYS_INLINE TARGET_AVX2 ways load_ways(const pyq_arithmetic *p) {
    return (ways){p, load_chain(p), load_fixed_sum(p), load_product(p)};
}

ALWAYS_INLINE TARGET_AVX2 __m256i results_32(const uint8_t *a, const uint8_t *b, const ways *w, const int op,
                                             const way way) {
    __m256i fractions; /* which do not matter */
    return way == CHECKED_SUM ? checked_sums_32(a, b, &w->sum, w->arithmetic)
           : way == EXACT_SUM ? sums_32(a, b, &w->sum, &fractions)
           : way == PRODUCT   ? products_32(a, b, &w->product)
                              : binary_32(a, b, &w->chain, op);
}

/* Whether a way gives all results of two bytes. */
ALWAYS_INLINE TARGET_AVX2 int all_agree(const pyq_arithmetic *p, const int op, const way way) {
    const ways w = load_ways(p);
    uint8_t a[32], b[256];
    for (int i = 0; i < 256; i++) b[i] = (uint8_t)i;
    for (int i = 0; i < 256; i++) {
        memset(a, i, sizeof a);
        __m256i same = _mm256_set1_epi8(-1);
        for (int k = 0; k < 256; k += 32) {
            const __m256i expected = results_32(a, b + k, &w, op, CHAIN);
            same = _mm256_and_si256(same, _mm256_cmpeq_epi8(results_32(a, b + k, &w, op, way), expected));
        }
        if (_mm256_movemask_epi8(same) != -1) return 0;
    }
    return 1;
}

TARGET_AVX2 static int is_exact(const pyq_arithmetic *p) {
    return p->op == PYQ_ADD   ? all_agree(p, PYQ_ADD, EXACT_SUM)
           : p->op == PYQ_SUB ? all_agree(p, PYQ_SUB, EXACT_SUM)
                              : all_agree(p, PYQ_MUL, PRODUCT);
}

static void find_sum(pyq_arithmetic *p) {
    static const int32_t more[] = {0, 1, -1};
    const int32_t bits = sum_fraction_bits(p);
    for (int i = 0; bits > 0 && i < 9; i++) {
        p->sum = sum_near(p, bits, more[i / 3], more[i % 3]);
        if (is_exact(p)) return;
    }
    p->sum = bits > 0 ? with_distance(sum_near(p, bits, 0, 0), p) : (pyq_fixed_sum){0};
}

static void find_product(pyq_arithmetic *p) {
    static const int32_t more[] = {0, 1, -1};
    const float middle = (float)((double)p->a.scale * p->b.scale / p->out.scale);
    for (int i = 0; i < 3; i++) {
        uint32_t bits;
        memcpy(&bits, &middle, sizeof bits);
        bits += (uint32_t)more[i]; /* the float beside it */
        memcpy(&p->product_factor, &bits, sizeof bits);
        if (is_exact(p)) return;
    }
    p->product_factor = 0;
}

void pyq_avx2_prepare_binary(pyq_arithmetic *p) {
    if (p->op == PYQ_ADD || p->op == PYQ_SUB) find_sum(p);
    if (p->op == PYQ_MUL) find_product(p);
}

/* An operand that stays the same along a line is read again and again from 32 copies of it. */
ALWAYS_INLINE TARGET_AVX2 void lines(const pyq_binary_lines *l, const uint8_t *a, const uint8_t *b, uint8_t *out,
                                     const int op, const way way) {
    const ways w = load_ways(l->arithmetic);
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
    const pyq_arithmetic *p = l->arithmetic;
    if (p->sum.fraction_bits > 0)
        p->sum.close < 0 ? lines(l, a, b, out, p->op, EXACT_SUM) : lines(l, a, b, out, p->op, CHECKED_SUM);
    else if (p->product_factor > 0)
        lines(l, a, b, out, PYQ_MUL, PRODUCT);
    else
        switch (p->op) {
        case PYQ_ADD: lines(l, a, b, out, PYQ_ADD, CHAIN); break;
        case PYQ_SUB: lines(l, a, b, out, PYQ_SUB, CHAIN); break;
        case PYQ_MUL: lines(l, a, b, out, PYQ_MUL, CHAIN); break;
        default: lines(l, a, b, out, PYQ_DIV, CHAIN);
        }
}

#endif

/* Softmax of a row of float32 with AVX2: the operations of normalize.c, in its order.
 *
 * The largest element: vmaxps into four registers. Exponentials: 26 instructions for 8 of them, nearly all of which wait
 * for the one before, so four registers are taken side by side; their sum in two registers, which are the 16 lanes.
 * Quotients: vdivps, the bound of that pass.
 *
 * What a row lacks of 32 elements counts as -inf, of which the exponential is 0: it adds nothing.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "../normalize.h"

enum { VECTORS = 4, STEP = 8 * VECTORS };

#define EACH UNROLL for (int i = 0; i < VECTORS; i++)

/* The STEP elements of a row from `start` on. */
ALWAYS_INLINE TARGET_AVX2 void load(const float *x, int64_t n, int64_t start, __m256 v[VECTORS]) {
    float rest[STEP];
    if (n - start < STEP) {
        for (int i = 0; i < STEP; i++) rest[i] = -INFINITY;
        x = memcpy(rest, x + start, (size_t)(n - start) * sizeof *x);
        start = 0;
    }
    EACH v[i] = _mm256_loadu_ps(x + start + 8 * i);
}

ALWAYS_INLINE TARGET_AVX2 void store(const __m256 v[VECTORS], int64_t n, int64_t start, float *out) {
    float rest[STEP];
    float *to = n - start < STEP ? rest : out + start;
    EACH _mm256_storeu_ps(to + 8 * i, v[i]);
    if (to == rest) memcpy(out + start, rest, (size_t)(n - start) * sizeof *out);
}

ALWAYS_INLINE TARGET_AVX2 float largest(const float *x, int64_t n) {
    __m256 most[VECTORS], v[VECTORS];
    EACH most[i] = _mm256_set1_ps(x[0]);
    for (int64_t start = 0; start < n; start += STEP) {
        load(x, n, start, v);
        EACH most[i] = _mm256_max_ps(v[i], most[i]);
    }
    const __m256 all = _mm256_max_ps(_mm256_max_ps(most[0], most[1]), _mm256_max_ps(most[2], most[3]));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

ALWAYS_INLINE TARGET_AVX2 __m256 times(__m256 x, float y) { return _mm256_mul_ps(x, _mm256_set1_ps(y)); }

/* The empty statement keeps compilers from computing one polynomial after the other. */
ALWAYS_INLINE TARGET_AVX2 __m256 horner(__m256 q, __m256 r, float next) {
    __m256 sum = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(next));
    __asm__("" : "+x"(sum));
    return sum;
}

/* e^t: `exponential` in normalize.c. */
ALWAYS_INLINE TARGET_AVX2 void exponentials(__m256 t[VECTORS]) {
    const __m256 magic = _mm256_set1_ps(PYQ_EXP_MAGIC);
    __m256 shifted[VECTORS], n[VECTORS], r[VECTORS], q[VECTORS];
    EACH t[i] = _mm256_max_ps(_mm256_set1_ps(PYQ_EXP_LOWEST), t[i]); /* the second where it is NaN */
    EACH shifted[i] = _mm256_add_ps(times(t[i], PYQ_LOG2_E), magic);
    EACH n[i] = _mm256_sub_ps(shifted[i], magic);
    EACH r[i] = _mm256_sub_ps(t[i], times(n[i], PYQ_LN2_HIGH));
    EACH r[i] = _mm256_sub_ps(r[i], times(n[i], PYQ_LN2_LOW));
    EACH q[i] = horner(_mm256_set1_ps(PYQ_EXP_Q4), r[i], PYQ_EXP_Q3);
    EACH q[i] = horner(q[i], r[i], PYQ_EXP_Q2);
    EACH q[i] = horner(q[i], r[i], PYQ_EXP_Q1);
    EACH q[i] = horner(q[i], r[i], PYQ_EXP_Q0);
    EACH q[i] = _mm256_add_ps(_mm256_mul_ps(q[i], _mm256_mul_ps(r[i], r[i])), r[i]);
    EACH q[i] = _mm256_add_ps(q[i], _mm256_set1_ps(1));
    EACH {
        const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(shifted[i]), _mm256_set1_epi32(127));
        t[i] = _mm256_mul_ps(q[i], _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    }
}

/* Of lanes 0 to 7 and 8 to 15. */
ALWAYS_INLINE TARGET_AVX2 float halved(__m256 low, __m256 high) {
    const __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* out = e^(x - top); returns the sum. */
ALWAYS_INLINE TARGET_AVX2 float exponential_block(const float *x, int64_t n, float top, float *out) {
    __m256 low = _mm256_setzero_ps(), high = low, v[VECTORS];
    for (int64_t start = 0; start < n; start += STEP) {
        load(x, n, start, v);
        EACH v[i] = _mm256_sub_ps(v[i], _mm256_set1_ps(top));
        exponentials(v);
        UNROLL for (int i = 0; i < VECTORS; i += 2) {
            low = _mm256_add_ps(low, v[i]);
            high = _mm256_add_ps(high, v[i + 1]);
        }
        store(v, n, start, out);
    }
    return halved(low, high);
}

TARGET_AVX2 void pyq_avx2_softmax(const float *x, float *out, int64_t n) {
    const float top = largest(x, n);
    float total = 0;
    for (int64_t start = 0; start < n; start += PYQ_SUM_BLOCK) {
        const int64_t rest = n - start, size = rest < PYQ_SUM_BLOCK ? rest : PYQ_SUM_BLOCK;
        total += exponential_block(x + start, size, top, out + start);
    }
    const __m256 divisor = _mm256_set1_ps(total);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_div_ps(_mm256_loadu_ps(out + i), divisor));
    for (; i < n; i++) out[i] /= total;
}

#endif

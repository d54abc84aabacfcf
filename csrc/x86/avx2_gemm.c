/* AVX2 microkernels: PYQ_NR = 16 columns in two accumulators of eight int32 lanes per row.
 *
 * pairs16    a = vpbroadcastd(two int16 activations); acc += vpmaddwd(a, w), twice for a quad
 *            Exact: [0, 255] * [-255, 255]; a pair sums to at most 2 * 255 * 255 in 32 bits.
 *            Per row and quad (64 products) 2 broadcasts, 4 multiplies, 4 additions: with two multiplies and four
 *            vector operations a cycle 32 MAC/cycle; additions take multiply slots, 26 is what is reached.
 * quads8p2   s = vpmaddubsw(q0, w0) + vpmaddubsw(q1, w1) in 16 bits; acc += vpmaddwd(s, 1)
 *            Exact: the pack proved for every 16-bit lane that amax * (sum of its weights of one sign) <= 32767, so
 *            neither vpmaddubsw nor vpaddw can saturate or wrap.
 *            Per row and group (128 products) 6 multiplies at 2 a cycle: 42.7 MAC/cycle.
 * taps16     vpmovzxbw(punpcklbw(tap0, tap1)) gives (tap0, tap1) of a channel in one 32-bit lane; vpmaddwd with the
 *            two weights. Exact as pairs16. 8 vector operations for 32 products: 16 MAC/cycle.
 *
 * Additions of int32 lanes wrap modulo 2^32, as the contract asks. `mr` is a constant in every caller, so the loops
 * over rows unroll and the accumulators live in registers (tile heights stop where they would spill).
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <string.h>

/* vpbroadcastd from memory: costs a load port, no shuffle. */
ALWAYS_INLINE TARGET_AVX2 __m256i broadcast_quad(const uint8_t *address) {
    int32_t quad;
    memcpy(&quad, address, sizeof quad);
    return _mm256_set1_epi32(quad);
}

ALWAYS_INLINE TARGET_AVX2 __m256i load(const void *address) { return _mm256_loadu_si256((const __m256i *)address); }

ALWAYS_INLINE TARGET_AVX2 void store_tile(int32_t *tile, __m256i (*acc)[2], const int mr) {
    UNROLL for (int r = 0; r < mr; r++) {
        _mm256_storeu_si256((__m256i *)(tile + r * PYQ_NR), acc[r][0]);
        _mm256_storeu_si256((__m256i *)(tile + r * PYQ_NR + 8), acc[r][1]);
    }
}

/* acc0 += pair * w0; acc1 += pair * w1. In assembly, because compilers that schedule the intrinsics keep more products
 * alive than the four registers beside twelve accumulators can hold, and spill: 64 instead of 79 GMAC/s. */
ALWAYS_INLINE TARGET_AVX2 void multiply_add_pair(__m256i *acc0, __m256i *acc1, const uint8_t *pair, __m256i w0,
                                                 __m256i w1) {
    __m256i a, product;
    __asm__("vpbroadcastd %4, %2\n\t"
            "vpmaddwd %5, %2, %3\n\t"
            "vpmaddwd %6, %2, %2\n\t"
            "vpaddd %3, %0, %0\n\t"
            "vpaddd %2, %1, %1"
            : "+x"(*acc0), "+x"(*acc1), "=&x"(a), "=&x"(product)
            : "m"(*(const int32_t *)pair), "x"(w0), "x"(w1));
}

ALWAYS_INLINE TARGET_AVX2 void pairs16(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets,
                                       const int16_t *w, int64_t steps, const int mr) {
    __m256i acc[6][2];
    const uint8_t *row[6];
    UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r], acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = 2 * (int64_t)offsets[s];
        __m256i w0 = load(w), w1 = load(w + 16);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset, w0, w1);
        w0 = load(w + 32), w1 = load(w + 48);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset + 4, w0, w1);
    }
    store_tile(tile, acc, mr);
}

ALWAYS_INLINE TARGET_AVX2 void quads8p2(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets,
                                        const int8_t *w, int64_t steps, const int mr) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[4][2];
    const uint8_t *row[4];
    UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r], acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s += 2, w += 8 * PYQ_NR) {
        const int64_t offset0 = offsets[s], offset1 = offsets[s + 1];
        const __m256i w00 = load(w), w01 = load(w + 32), w10 = load(w + 64), w11 = load(w + 96);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m256i q0 = broadcast_quad(row[r] + offset0), q1 = broadcast_quad(row[r] + offset1);
            const __m256i s0 = _mm256_add_epi16(_mm256_maddubs_epi16(q0, w00), _mm256_maddubs_epi16(q1, w10));
            const __m256i s1 = _mm256_add_epi16(_mm256_maddubs_epi16(q0, w01), _mm256_maddubs_epi16(q1, w11));
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(s0, ones));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(s1, ones));
        }
    }
    store_tile(tile, acc, mr);
}

ALWAYS_INLINE TARGET_AVX2 void taps16(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets,
                                      const int16_t *w, int64_t steps, const int mr) {
    __m256i acc[4][2];
    const uint8_t *row[4];
    UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r], acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s += 2, w += 2 * PYQ_NR) {
        const int64_t offset0 = offsets[s], offset1 = offsets[s + 1];
        const __m256i w0 = load(w), w1 = load(w + 16);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m128i tap0 = _mm_loadu_si128((const __m128i *)(row[r] + offset0));
            const __m128i tap1 = _mm_loadu_si128((const __m128i *)(row[r] + offset1));
            const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(tap0, tap1));
            const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(tap0, tap1));
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(low, w0));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(high, w1));
        }
    }
    store_tile(tile, acc, mr);
}

#define DEFINE(layout, mr, weight)                                                                                   \
    TARGET_AVX2 void pyq_avx2_##layout##_##mr##x16(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets, \
                                                   const void *w, int64_t steps) {                                   \
        layout(tile, rows, offsets, (const weight *)w, steps, mr);                                                   \
    }
DEFINE(pairs16, 1, int16_t)
DEFINE(pairs16, 2, int16_t)
DEFINE(pairs16, 3, int16_t)
DEFINE(pairs16, 4, int16_t)
DEFINE(pairs16, 6, int16_t)
DEFINE(quads8p2, 1, int8_t)
DEFINE(quads8p2, 2, int8_t)
DEFINE(quads8p2, 3, int8_t)
DEFINE(quads8p2, 4, int8_t)
DEFINE(taps16, 1, int16_t)
DEFINE(taps16, 2, int16_t)
DEFINE(taps16, 4, int16_t)

#endif

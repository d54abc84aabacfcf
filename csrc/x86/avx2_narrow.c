/* AVX2 microkernels for the last panel of a matrix where it has at most eight columns: one accumulator of eight int32
 * lanes per row. They read the first half of each step of a panel as avx2_gemm.c has it, and write the first eight
 * columns of the tile.
 *
 * Instructions and exactness are those of avx2_gemm.c, one half of them. A broadcast serves one multiply instead of two:
 * per row and quad (32 products) pairs8w has 2 loads, 2 multiplies and 2 additions, quads8p2 4 loads and multiplies for
 * two quads. Loads, two a cycle, are no bound yet, so a column costs what it does in a full panel; a full panel's kernel
 * would compute eight columns for nothing. Six accumulators leave compilers enough registers: no assembly.
 */
#include "../isa.h"
#include "../pyq.h"
#include "gemm_kernel.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <string.h>

ALWAYS_INLINE TARGET_AVX2 __m256i broadcast(const uint8_t *address) {
    int32_t four;
    memcpy(&four, address, sizeof four);
    return _mm256_set1_epi32(four);
}

ALWAYS_INLINE TARGET_AVX2 __m256i load(const void *address) { return _mm256_loadu_si256((const __m256i *)address); }

ALWAYS_INLINE TARGET_AVX2 __m256i load_widened(const int8_t *w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
}

ALWAYS_INLINE TARGET_AVX2 void multiply_add(__m256i *acc, __m256i a, __m256i w) {
    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(a, w));
}

ALWAYS_INLINE TARGET_AVX2 void pairs8w(__m256i *acc, const uint8_t *const *row, const int32_t *offsets, const int8_t *w,
                                       int64_t steps, const int mr) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = 2 * (int64_t)offsets[s];
        const __m256i w0 = load_widened(w), w1 = load_widened(w + 2 * PYQ_NR);
        UNROLL for (int r = 0; r < mr; r++) {
            multiply_add(&acc[r], broadcast(row[r] + offset), w0);
            multiply_add(&acc[r], broadcast(row[r] + offset + 4), w1);
        }
    }
}

ALWAYS_INLINE TARGET_AVX2 void quads32(__m256i *acc, const uint8_t *const *row, const int32_t *offsets,
                                       const int8_t *w, int64_t steps, const int mr) {
    const __m256i even = _mm256_set1_epi16(255);
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = offsets[s];
        const __m256i w0 = _mm256_srai_epi16(_mm256_slli_epi16(load(w), 8), 8), w1 = _mm256_srai_epi16(load(w), 8);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m256i quad = broadcast(row[r] + offset);
            multiply_add(&acc[r], _mm256_and_si256(quad, even), w0);
            multiply_add(&acc[r], _mm256_srli_epi16(quad, 8), w1);
        }
    }
}

ALWAYS_INLINE TARGET_AVX2 void quads(__m256i *acc, const uint8_t *const *row, const int32_t *offsets, const int8_t *w,
                                     int64_t steps, const int mr, const int group) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t s = 0; s < steps; s += group, w += group * 4 * PYQ_NR)
        UNROLL for (int r = 0; r < mr; r++) {
            __m256i sum = _mm256_maddubs_epi16(broadcast(row[r] + offsets[s]), load(w));
            UNROLL for (int i = 1; i < group; i++) {
                const __m256i quad = broadcast(row[r] + offsets[s + i]);
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(quad, load(w + i * 4 * PYQ_NR)));
            }
            multiply_add(&acc[r], sum, ones);
        }
}

#define DEFINE(layout, mr, loop, ...)                                                                    \
    TARGET_AVX2 void pyq_avx2_##layout##_##mr##x8(PYQ_GEMM_PARAMETERS) {                                 \
        const int64_t stride = how / PYQ_STRIDE;                                                         \
        __m256i acc[mr];                                                                                 \
        const uint8_t *row[mr];                                                                          \
        UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];                                            \
        UNROLL for (int r = 0; r < mr; r++)                                                              \
            acc[r] = how & PYQ_ADD_TO_TILE ? load(tile + r * stride) : _mm256_setzero_si256();           \
        loop(acc, row, offsets, (const int8_t *)w, steps, mr __VA_ARGS__);                               \
        UNROLL for (int r = 0; r < mr; r++) _mm256_storeu_si256((__m256i *)(tile + r * stride), acc[r]); \
    }
DEFINE(pairs8w, 4, pairs8w)
DEFINE(pairs8w, 6, pairs8w)
DEFINE(quads32, 4, quads32)
DEFINE(quads32, 6, quads32)
DEFINE(quads8, 4, quads, , 1)
DEFINE(quads8, 6, quads, , 1)
DEFINE(quads8p2, 4, quads, , 2)
DEFINE(quads8p2, 6, quads, , 2)
DEFINE(quads8p4, 4, quads, , 4)
DEFINE(quads8p4, 6, quads, , 4)

#endif

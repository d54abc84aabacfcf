/* AVX-512 VNNI microkernels: PYQ_NR = 16 columns are one accumulator of sixteen int32 lanes per row.
 *
 * quads32    acc += vpdpbusd(vpbroadcastd(a quad), w): four products of unsigned and signed bytes, added in 32 bits.
 *            Exact as it is (the form that does not saturate), so nothing has to be proved about the weights: those that
 *            are packed for this CPU are all quads32. The other layouts of quads are the same bytes, in weights that were
 *            packed elsewhere.
 *            Per row and quad (64 products) 1 load and 1 multiply. Zen 4, one such multiply a cycle: 64 MAC/cycle, of
 *            which 63 are reached; Intel's servers, two: 128.
 *
 * A sum depends on the one before it for 4 (Zen) to 5 cycles (Intel), so few rows take several steps at once, in
 * accumulators of their own.
 */
#include "../isa.h"
#include "../pyq.h"
#include "gemm_kernel.h"

#if PYQ_HAVE_AVX512VNNI
#include <immintrin.h>
#include <string.h>

enum { CHAINS = 4, AHEAD = 2048 /* bytes of weights */ };

ALWAYS_INLINE TARGET_AVX512VNNI __m512i broadcast(const uint8_t *address) {
    int32_t quad;
    memcpy(&quad, address, sizeof quad);
    return _mm512_set1_epi32(quad);
}

ALWAYS_INLINE TARGET_AVX512VNNI void quads(__m512i *acc, const uint8_t *const *row, const int32_t *offsets,
                                           const int8_t *w, int64_t steps, int64_t how, const int mr) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = offsets[s];
        __m512i weights = _mm512_loadu_si512(w);
        __asm__("" : "+v"(weights)); /* else it is an operand in memory for every row, and loads are the bottleneck */
        /* Rows take so long that too few steps are under way to keep memory busy. One row is faster without. */
        if (mr > 1 && how & PYQ_FETCH_AHEAD) _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
        UNROLL for (int r = 0; r < mr; r++) acc[r] = _mm512_dpbusd_epi32(acc[r], broadcast(row[r] + offset), weights);
    }
}

/* `together` steps at a time, then those that are left. */
ALWAYS_INLINE TARGET_AVX512VNNI void quads_together(__m512i *acc, const uint8_t *const *row, const int32_t *offsets,
                                                    const int8_t *w, int64_t steps, int64_t how, const int mr,
                                                    const int together) {
    __m512i chain[CHAINS][PYQ_MAX_MR];
    UNROLL for (int i = 1; i < together; i++) UNROLL for (int r = 0; r < mr; r++) chain[i][r] = _mm512_setzero_si512();
    UNROLL for (int r = 0; r < mr; r++) chain[0][r] = acc[r];
    for (; steps >= together; steps -= together, offsets += together, w += together * 4 * PYQ_NR)
        UNROLL for (int i = 0; i < together; i++) quads(chain[i], row, offsets + i, w + i * 4 * PYQ_NR, 1, how, mr);
    UNROLL for (int r = 0; r < mr; r++) {
        acc[r] = chain[0][r];
        UNROLL for (int i = 1; i < together; i++) acc[r] = _mm512_add_epi32(acc[r], chain[i][r]);
    }
    quads(acc, row, offsets, w, steps, how, mr);
}

ALWAYS_INLINE TARGET_AVX512VNNI void end(int32_t *tile, const __m512i *acc, const int mr, int64_t stride) {
    if (!__builtin_constant_p(stride)) __asm__("" : "+r"(stride)); /* else addresses are made before the loop */
    UNROLL for (int r = 0; r < mr; r++, tile += stride) _mm512_storeu_si512(tile, acc[r]);
}

#define DEFINE(layout, mr, together)                                                                         \
    ALWAYS_INLINE TARGET_AVX512VNNI void layout##_##mr(PYQ_GEMM_PARAMETERS, int64_t stride) {                \
        __m512i acc[mr];                                                                                     \
        const uint8_t *row[mr];                                                                              \
        UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];                                                \
        UNROLL for (int r = 0; r < mr; r++)                                                                  \
            acc[r] = how & PYQ_ADD_TO_TILE ? _mm512_loadu_si512(tile + r * stride) : _mm512_setzero_si512(); \
        quads_together(acc, row, offsets, (const int8_t *)w, steps, how, mr, together);                      \
        end(tile, acc, mr, stride);                                                                          \
    }                                                                                                        \
    PYQ_GEMM_KERNEL(TARGET_AVX512VNNI, pyq_avx512vnni_##layout##_##mr##x16, layout##_##mr)
DEFINE(quads32, 1, 4)
DEFINE(quads32, 2, 4)
DEFINE(quads32, 3, 2)
DEFINE(quads32, 4, 1)
DEFINE(quads32, 5, 1)
DEFINE(quads32, 6, 1)
DEFINE(quads32, 7, 1)
DEFINE(quads32, 8, 1)
DEFINE(quads8, 1, 4)
DEFINE(quads8, 4, 1)
DEFINE(quads8, 8, 1)
DEFINE(quads8p2, 1, 4)
DEFINE(quads8p2, 4, 1)
DEFINE(quads8p2, 8, 1)
DEFINE(quads8p4, 1, 4)
DEFINE(quads8p4, 4, 1)
DEFINE(quads8p4, 8, 1)

#endif

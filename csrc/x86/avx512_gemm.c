/* AVX-512 VNNI microkernels: PYQ_NR = 16 columns are one accumulator of sixteen int32 lanes per row.
 *
 * quads32    acc += vpdpbusd(vpbroadcastd(a quad), w): four products of unsigned and signed bytes, added in 32 bits.
 *            Exact as it is (the form that does not saturate), so nothing has to be proved about the weights: those that
 *            are packed for this CPU are all quads32. The other layouts of quads are the same bytes, in weights that were
 *            packed elsewhere.
 *            Per row and quad (64 products) 1 load and 1 multiply; of two panels 1 load and 2 multiplies. Zen 4, one such
 *            multiply a cycle: 64 MAC/cycle, of which 63 are reached; Intel's servers, two: 128.
 *
 * Two panels of four rows are as many sums as one of eight rows, but 14 instructions for 8 multiplies instead of 17, and
 * half as many rows to fetch addresses of. Alone on a core that is 1 to 15 % faster, the fewer steps the more; where
 * another thread shares the core, and with it decoders and buffers, 8 % with many steps and 50 to 100 % with few.
 *
 * A sum depends on the one before it for 4 (Zen) to 5 cycles (Intel), so few rows take several steps at once, in
 * accumulators of their own.
 */
#include "../isa.h"
#include "../pyq.h"
#include "gemm_kernel.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx512_quads.h"

enum { CHAINS = 4 };

/* `together` steps at a time, then those that are left. */
ALWAYS_INLINE TARGET_AVX512VNNI void quads_together(__m512i *acc, const uint8_t *const *row, const int32_t *offsets,
                                                    const int8_t *w, int64_t apart, int64_t steps, int64_t how,
                                                    const int mr, const int panels, const int together) {
    __m512i chain[CHAINS][2 * PYQ_MAX_MR];
    const int sums = panels * mr;
    UNROLL for (int i = 1; i < together; i++) UNROLL for (int a = 0; a < sums; a++) chain[i][a] = _mm512_setzero_si512();
    UNROLL for (int a = 0; a < sums; a++) chain[0][a] = acc[a];
    for (; steps >= together; steps -= together, offsets += together, w += together * 4 * PYQ_NR)
        UNROLL for (int i = 0; i < together; i++)
            quads(chain[i], row, offsets + i, w + i * 4 * PYQ_NR, apart, 1, how, mr, panels);
    UNROLL for (int a = 0; a < sums; a++) {
        acc[a] = chain[0][a];
        UNROLL for (int i = 1; i < together; i++) acc[a] = _mm512_add_epi32(acc[a], chain[i][a]);
    }
    quads(acc, row, offsets, w, apart, steps, how, mr, panels);
}

/* One row whose offsets need not be read, which would be an instruction more beside the two for 64 bytes of weights: the
 * fewer there are, the more lines are on their way from memory at once. Returns how many steps are done. */
ALWAYS_INLINE TARGET_AVX512VNNI int64_t quads_on(__m512i *acc, const uint8_t *row, const int8_t *w, int64_t steps,
                                                 const int panels) {
    __m512i chain[CHAINS][2];
    UNROLL for (int i = 0; i < CHAINS; i++)
        UNROLL for (int p = 0; p < panels; p++) chain[i][p] = i ? _mm512_setzero_si512() : acc[p];
    int64_t s = 0;
    for (; s + CHAINS <= steps; s += CHAINS)
        UNROLL for (int i = 0; i < CHAINS; i++) {
            const __m512i quad = broadcast(row + (s + i) * 4);
            UNROLL for (int p = 0; p < panels; p++) {
                const __m512i weights = _mm512_loadu_si512(w + (s + i + p * steps) * 4 * PYQ_NR);
                chain[i][p] = _mm512_dpbusd_epi32(chain[i][p], quad, weights);
                __asm__("" : "+v"(chain[i][p])); /* else the compiler copies sums to and fro */
            }
        }
    UNROLL for (int p = 0; p < panels; p++) {
        acc[p] = chain[0][p];
        UNROLL for (int i = 1; i < CHAINS; i++) acc[p] = _mm512_add_epi32(acc[p], chain[i][p]);
    }
    return s;
}

/* From the tile of one panel to that of the next. */
ALWAYS_INLINE int64_t to_next_panel(int64_t stride) {
    return stride == PYQ_NR ? PYQ_TILE_ROWS * PYQ_NR : PYQ_NR;
}

ALWAYS_INLINE TARGET_AVX512VNNI void end(int32_t *tile, const __m512i *acc, const int mr, const int panels,
                                         int64_t stride) {
    const int64_t next = to_next_panel(stride);
    if (!__builtin_constant_p(stride)) __asm__("" : "+r"(stride)); /* else addresses are made before the loop */
    UNROLL for (int r = 0; r < mr; r++, tile += stride)
        UNROLL for (int p = 0; p < panels; p++) _mm512_storeu_si512(tile + p * next, acc[p * mr + r]);
}

#define DEFINE(layout, mr, panels, nr, together)                                                               \
    ALWAYS_INLINE TARGET_AVX512VNNI void layout##_##mr##x##nr(PYQ_GEMM_PARAMETERS, int64_t stride) {           \
        __m512i acc[panels * mr];                                                                              \
        const uint8_t *row[mr];                                                                                \
        UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];                                                  \
        UNROLL for (int a = 0; a < panels * mr; a++) {                                                         \
            const int32_t *from = tile + a % mr * stride + a / mr * to_next_panel(stride);                     \
            acc[a] = how & PYQ_ADD_TO_TILE ? _mm512_loadu_si512(from) : _mm512_setzero_si512();                \
        }                                                                                                      \
        const int8_t *quad = w;                                                                                \
        const int64_t apart = steps * 4 * PYQ_NR;                                                              \
        if (mr == 1 && how & PYQ_READS_ON) {                                                                   \
            const int64_t done = quads_on(acc, row[0] + offsets[0], quad, steps, panels);                      \
            offsets += done, quad += done * 4 * PYQ_NR, steps -= done;                                         \
        }                                                                                                      \
        quads_together(acc, row, offsets, quad, apart, steps, how, mr, panels, together);                      \
        end(tile, acc, mr, panels, stride);                                                                    \
    }                                                                                                          \
    PYQ_GEMM_KERNEL(TARGET_AVX512VNNI, pyq_avx512vnni_##layout##_##mr##x##nr, layout##_##mr##x##nr)
DEFINE(quads32, 1, 1, 16, 4)
DEFINE(quads32, 2, 1, 16, 4)
DEFINE(quads32, 3, 1, 16, 2)
DEFINE(quads32, 4, 1, 16, 1)
DEFINE(quads32, 5, 1, 16, 1)
DEFINE(quads32, 6, 1, 16, 1)
DEFINE(quads32, 7, 1, 16, 1)
DEFINE(quads32, 8, 1, 16, 1)
DEFINE(quads32, 1, 2, 32, 4)
DEFINE(quads32, 2, 2, 32, 2)
DEFINE(quads32, 3, 2, 32, 1)
DEFINE(quads32, 4, 2, 32, 1)
DEFINE(quads32, 8, 2, 32, 1)
DEFINE(quads8, 1, 1, 16, 4)
DEFINE(quads8, 4, 1, 16, 1)
DEFINE(quads8, 8, 1, 16, 1)
DEFINE(quads8p2, 1, 1, 16, 4)
DEFINE(quads8p2, 4, 1, 16, 1)
DEFINE(quads8p2, 8, 1, 16, 1)
DEFINE(quads8p4, 1, 1, 16, 4)
DEFINE(quads8p4, 4, 1, 16, 1)
DEFINE(quads8p4, 8, 1, 16, 1)

#endif

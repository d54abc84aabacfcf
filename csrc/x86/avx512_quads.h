/* The loop of the AVX-512 VNNI kernels, for those that keep their sums and those that requantize them at once;
 * avx512_gemm.c has the instructions and why they are exact. */
#ifndef PYQ_AVX512_QUADS_H
#define PYQ_AVX512_QUADS_H

#include <immintrin.h>
#include <string.h>

#include "../isa.h"
#include "../pyq.h"

enum { AHEAD = 2048 /* bytes of weights */ };

ALWAYS_INLINE TARGET_AVX512VNNI __m512i broadcast(const uint8_t *address) {
    int32_t quad;
    memcpy(&quad, address, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* acc[p * mr + r]: row r of the tile, panel p of those that follow each other, `apart` bytes from one to the next. */
ALWAYS_INLINE TARGET_AVX512VNNI void quads(__m512i *acc, const uint8_t *const *row, const int32_t *offsets,
                                           const int8_t *w, int64_t apart, int64_t steps, int64_t how, const int mr,
                                           const int panels) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = offsets[s];
        __m512i weights[2];
        UNROLL for (int p = 0; p < panels; p++) {
            weights[p] = _mm512_loadu_si512(w + p * apart);
            __asm__("" : "+v"(weights[p])); /* else it is an operand in memory for every row: loads are the bottleneck */
            /* Rows take so long that too few steps are under way to keep memory busy. One row is faster without. */
            if (mr > 1 && how & PYQ_FETCH_AHEAD) _mm_prefetch((const char *)w + p * apart + AHEAD, _MM_HINT_T0);
        }
        UNROLL for (int r = 0; r < mr; r++) {
            const __m512i quad = broadcast(row[r] + offset);
            UNROLL for (int p = 0; p < panels; p++)
                acc[p * mr + r] = _mm512_dpbusd_epi32(acc[p * mr + r], quad, weights[p]);
        }
    }
}

/* The products of `mr` rows and one panel or two; acc as above. */
ALWAYS_INLINE TARGET_AVX512VNNI void multiply(__m512i *acc, const pyq_panels *p, const uint8_t *const *rows, int64_t how,
                                              const int mr, const int panels) {
    const uint8_t *row[2 * PYQ_MAX_MR];
    UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];
    UNROLL for (int a = 0; a < panels * mr; a++) acc[a] = _mm512_setzero_si512();
    quads(acc, row, p->offsets, p->weights, p->steps * 4 * PYQ_NR, p->steps, how, mr, panels);
}

#endif

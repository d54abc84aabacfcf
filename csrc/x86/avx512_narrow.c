/* AVX-512 VNNI microkernels for the last panel of a matrix where it has at most eight columns: one accumulator of eight
 * int32 lanes per row. They read the first half of each step of a panel as avx512_gemm.c has it, and write the first
 * eight columns of the tile.
 *
 * quads32    acc += vpdpbusd(vpbroadcastd(a quad), w), as there, in registers of 256 bits.
 *            Per row and quad (32 products) 1 load and 1 multiply; Zen 4 has two of each a cycle: 64 MAC/cycle, so that a
 *            column costs what it does in a full panel. Exact as there.
 */
#include "../isa.h"
#include "../pyq.h"
#include "gemm_kernel.h"

#if PYQ_HAVE_AVX512VNNI
#include <immintrin.h>
#include <string.h>

ALWAYS_INLINE TARGET_AVX512VNNI __m256i broadcast(const uint8_t *address) {
    int32_t quad;
    memcpy(&quad, address, sizeof quad);
    return _mm256_set1_epi32(quad);
}

ALWAYS_INLINE TARGET_AVX512VNNI __m256i load(const void *address) {
    return _mm256_loadu_si256((const __m256i *)address);
}

#define DEFINE(mr)                                                                                       \
    TARGET_AVX512VNNI void pyq_avx512vnni_quads32_##mr##x8(PYQ_GEMM_PARAMETERS) {                        \
        const int64_t stride = how / PYQ_STRIDE;                                                         \
        __m256i acc[mr];                                                                                 \
        const uint8_t *row[mr];                                                                          \
        const int8_t *quads = w;                                                                         \
        UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];                                            \
        UNROLL for (int r = 0; r < mr; r++)                                                              \
            acc[r] = how & PYQ_ADD_TO_TILE ? load(tile + r * stride) : _mm256_setzero_si256();           \
        for (int64_t s = 0; s < steps; s++, quads += 4 * PYQ_NR) {                                       \
            const __m256i weights = load(quads);                                                         \
            UNROLL for (int r = 0; r < mr; r++)                                                          \
                acc[r] = _mm256_dpbusd_epi32(acc[r], broadcast(row[r] + offsets[s]), weights);           \
        }                                                                                                \
        UNROLL for (int r = 0; r < mr; r++) _mm256_storeu_si256((__m256i *)(tile + r * stride), acc[r]); \
    }
DEFINE(4)
DEFINE(8)

#endif

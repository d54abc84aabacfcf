/* From sums of 16 columns in registers to bytes, for the AVX-512 kernels that need no tile: the operations of
 * avx2_epilogue.h, in its order. Two vectors of sums, here called parts, are packed together.
 */
#ifndef PYQ_AVX512_EPILOGUE_H
#define PYQ_AVX512_EPILOGUE_H

#include <immintrin.h>

#include "../isa.h"
#include "../pyq.h"

enum { PARTS = 2 };

typedef struct {
    __m512i bias[PARTS], minus_low, lowest;
    __m512 multiplier[PARTS], high;
} constants;

/* acc[p * mr + r] is part p of r. Both parts of r, then of r + 1, if there is one. */
ALWAYS_INLINE TARGET_AVX512VNNI __m512i requantize(const __m512i *acc, const constants *c, const int r, const int mr,
                                                   const int clamped) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); /* packs: in lanes */
    __m512i words[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const int row = r + i < mr ? r + i : r;
        __m512i integers[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) {
            const __m512i sum = _mm512_add_epi32(acc[p * mr + row], c->bias[p]);
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), c->multiplier[p]);
            if (!clamped) y = _mm512_min_ps(c->high, y);
            integers[p] = _mm512_cvtps_epi32(y);
        }
        words[i] = _mm512_adds_epi16(_mm512_packs_epi32(integers[0], integers[1]), c->minus_low);
    }
    return _mm512_add_epi8(_mm512_permutexvar_epi32(order, _mm512_packus_epi16(words[0], words[1])), c->lowest);
}

#endif

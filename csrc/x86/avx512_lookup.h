/* Tables of 256 bytes by AVX512-VBMI: what the rest of the library calls.
 *
 * vpermt2b looks 64 bytes up in 128 entries by their low seven bits: twice, and the eighth chooses (vpmovb2m,
 * vpblendmb). With the table in four registers these are 4 instructions for 64 bytes, where AVX2 takes 70.
 */
#ifndef PYQ_AVX512_LOOKUP_H
#define PYQ_AVX512_LOOKUP_H

#include "../isa.h"
#include "../pyq.h"

/* n is a multiple of 64. */
void pyq_avx512vbmi_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n);

/* A pyq_epilogue_fn, for those with a table: that takes 3 to 4 cycles for 32 outputs, with AVX2 21. */
void pyq_avx512vbmi_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                               const uint8_t *residual, void *out, int64_t stride);

#if PYQ_HAVE_AVX512VNNI
#include <immintrin.h>

typedef struct {
    __m512i part[4];
} wide_table;

ALWAYS_INLINE TARGET_AVX512VNNI wide_table load_table(const uint8_t *table) {
    wide_table t;
    UNROLL for (int i = 0; i < 4; i++) t.part[i] = _mm512_loadu_si512(table + 64 * i);
    return t;
}

ALWAYS_INLINE TARGET_AVX512VBMI __m512i lookup_64(const wide_table *t, __m512i x) {
    const __m512i low = _mm512_permutex2var_epi8(t->part[0], x, t->part[1]);
    const __m512i high = _mm512_permutex2var_epi8(t->part[2], x, t->part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
}

#endif
#endif

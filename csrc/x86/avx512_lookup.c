/* Tables of 256 bytes with AVX512-VBMI: avx512_lookup.h has the instructions. The epilogue up to its bytes is that of
 * avx2_epilogue.h; four rows of them are looked up at once.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX512VNNI
#include <immintrin.h>

#include "avx2_epilogue.h"
#include "avx512_lookup.h"

TARGET_AVX512VBMI void pyq_avx512vbmi_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    const wide_table t = load_table(table);
    for (int64_t i = 0; i < n; i += 64) _mm512_storeu_si512(out + i, lookup_64(&t, _mm512_loadu_si512(x + i)));
}

ALWAYS_INLINE TARGET_AVX512VBMI void store_looked_up(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                                     const sum *s, const wide_table *t, const uint8_t *residual,
                                                     uint8_t *out, int64_t stride) {
    __m256i bytes[TOGETHER / 2];
    quantize(tile, rows, c, b, 0, s, residual, stride, bytes);
    const __m512i y = lookup_64(t, _mm512_inserti64x4(_mm512_castsi256_si512(bytes[0]), bytes[1], 1));
    _mm_storeu_si128((__m128i *)out, _mm512_castsi512_si128(y));
    if (rows > 1) _mm_storeu_si128((__m128i *)(out + stride), _mm512_extracti32x4_epi32(y, 1));
    if (rows > 2) _mm_storeu_si128((__m128i *)(out + 2 * stride), _mm512_extracti32x4_epi32(y, 2));
    if (rows > 3) _mm_storeu_si128((__m128i *)(out + 3 * stride), _mm512_extracti32x4_epi32(y, 3));
}

TARGET_AVX512VBMI void pyq_avx512vbmi_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                                 const uint8_t *residual, void *out, int64_t stride) {
    const columns c = load_columns(e, column);
    const bounds b = load_bounds(e);
    const wide_table t = load_table(e->table);
    const sum s = e->sum ? load_sum(e->sum) : (sum){0};
    uint8_t *to = out;
    for (; rows > 0; rows -= TOGETHER, tile += TOGETHER * PYQ_NR, to += TOGETHER * stride)
        if (e->sum) {
            store_looked_up(tile, rows, &c, &b, &s, &t, residual, to, stride);
            residual += TOGETHER * stride;
        } else if (rows >= TOGETHER) {
            store_looked_up(tile, TOGETHER, &c, &b, NULL, &t, NULL, to, stride);
        } else {
            store_looked_up(tile, rows, &c, &b, NULL, &t, NULL, to, stride);
        }
}

#endif

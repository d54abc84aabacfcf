/* Bytes to panels of QUADS32, for matrices that are used once.
 *
 * Four rows of 16 bytes: vpunpcklbw and vpunpckhbw make pairs, vpunpcklwd and vpunpckhwd quads of a column. vpdpbusd with
 * ones adds them to the column sums. Nothing is rounded; what vpdpbusd adds is 32 bits wide.
 * Peak: a dozen instructions for 64 bytes, faster than a core reads memory.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX512VNNI
#include <immintrin.h>

/* The first `columns` columns of row `row` of b[k][pitch]; zeros where there is none. `flip`: makes uint8 int8. */
ALWAYS_INLINE TARGET_AVX512VNNI __m128i load_row(const uint8_t *b, int64_t row, int64_t k, int64_t pitch,
                                                 __mmask16 columns, __m128i flip) {
    if (row >= k) return _mm_setzero_si128();
    return _mm_maskz_mov_epi8(columns, _mm_xor_si128(_mm_maskz_loadu_epi8(columns, b + row * pitch), flip));
}

TARGET_AVX512VNNI void pyq_avx512vnni_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns,
                                                 uint8_t *data, int32_t *sums) {
    const __m128i flip = _mm_set1_epi8(is_signed ? 0 : -128);
    for (int64_t column = 0; column < columns; column += PYQ_NR) {
        const int64_t left = columns - column;
        const __mmask16 mask = left < PYQ_NR ? (__mmask16)((1u << left) - 1) : 0xffff;
        __m128i sum[4] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
        for (int64_t row = 0; row < k; row += 4, data += 4 * PYQ_NR) {
            __m128i r[4], pairs[4], quads[4];
            UNROLL for (int i = 0; i < 4; i++) r[i] = load_row(b + column, row + i, k, columns, mask, flip);
            UNROLL for (int i = 0; i < 4; i += 2) {
                pairs[i] = _mm_unpacklo_epi8(r[i], r[i + 1]);
                pairs[i + 1] = _mm_unpackhi_epi8(r[i], r[i + 1]);
            }
            UNROLL for (int i = 0; i < 2; i++) {
                quads[2 * i] = _mm_unpacklo_epi16(pairs[i], pairs[2 + i]);
                quads[2 * i + 1] = _mm_unpackhi_epi16(pairs[i], pairs[2 + i]);
            }
            UNROLL for (int i = 0; i < 4; i++) {
                _mm_storeu_si128((__m128i *)data + i, quads[i]);
                sum[i] = _mm_dpbusd_epi32(sum[i], _mm_set1_epi8(1), quads[i]); /* to load all 64 would wait for stores */
            }
        }
        UNROLL for (int i = 0; i < 4; i++)
            _mm_mask_storeu_epi32(sums + column + 4 * i, (__mmask8)(mask >> 4 * i & 15), sum[i]);
    }
}

#endif

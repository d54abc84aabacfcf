/* Packing without a proof: for matrices that are used once, where the search would cost more than it could save. */
#include "isa.h"
#include "pyq.h"

#include <string.h>

/* One panel of bytes b[k][columns], folded on the way; rows behind the last are zero. sums: int32, modulo 2^32. */
ALWAYS_INLINE void fold_panel(const uint8_t *restrict b, int64_t k, int64_t columns, int32_t flip,
                              const int16_t *restrict zero, int16_t *restrict out, int32_t *restrict sums,
                              const int64_t width) {
    for (int64_t row = 0; row < k; row += 2, out += 2 * PYQ_NR, b += 2 * columns)
        for (int64_t c = 0; c < width; c++) {
            const int16_t first = (int16_t)((b[c] ^ flip) - zero[c]);
            const int16_t second = row + 1 < k ? (int16_t)((b[columns + c] ^ flip) - zero[c]) : 0;
            out[2 * c] = first, out[2 * c + 1] = second;
            sums[c] += first + second;
        }
}

#if PYQ_HAVE_AVX2
#include <immintrin.h>

/* 16 bytes, folded, as int16. */
ALWAYS_INLINE TARGET_AVX2 __m256i fold_row(const uint8_t *b, __m128i flip, __m256i zero) {
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_xor_si128(_mm_loadu_si128((const __m128i *)b), flip)), zero);
}

/* Two rows of a full panel: vpunpck makes pairs of a column, which vpmaddwd with ones adds for the column sums. 20
 * instructions for 32 bytes. */
ALWAYS_INLINE TARGET_AVX2 void fold_pair(__m256i first, __m256i second, int16_t *out, __m256i *sums) {
    const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
    const __m256i pairs[2] = {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
    UNROLL for (int half = 0; half < 2; half++) {
        _mm256_storeu_si256((__m256i *)out + half, pairs[half]);
        sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs[half], _mm256_set1_epi16(1)));
    }
}

TARGET_AVX2 static void fold_full_panel_avx2(const uint8_t *b, int64_t k, int64_t columns, int32_t flip,
                                             const int16_t *zero, int16_t *out, int32_t *sums) {
    const __m128i flips = _mm_set1_epi8((char)flip);
    const __m256i zeros = _mm256_loadu_si256((const __m256i *)zero);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t row = 0; row < k; row += 2, out += 2 * PYQ_NR, b += 2 * columns) {
        const __m256i second = row + 1 < k ? fold_row(b + columns, flips, zeros) : _mm256_setzero_si256();
        fold_pair(fold_row(b, flips, zeros), second, out, sum);
    }
    _mm256_storeu_si256((__m256i *)sums, sum[0]);
    _mm256_storeu_si256((__m256i *)sums + 1, sum[1]);
}
#define FOLD_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define fold_full_panel_avx2(...) (void)0
#define FOLD_AVX2 0
#endif

static void pack_pairs16(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, const int32_t *zero_point,
                         uint8_t *data, int32_t *sums) {
    const int64_t size = (k + 3) / 4 * 4 * PYQ_NR;
    const int32_t flip = is_signed ? 128 : 0; /* (byte ^ 128) - 128 is the int8 */
    int16_t *out = (int16_t *)data;
    memset(sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t column = 0; column < columns; column += PYQ_NR, out += size) {
        const int64_t width = columns - column < PYQ_NR ? columns - column : PYQ_NR;
        int16_t zero[PYQ_NR];
        for (int64_t c = 0; c < width; c++) zero[c] = (int16_t)(zero_point[column + c] + flip);
        if (width < PYQ_NR || k % 4) memset(out, 0, (size_t)size * sizeof *out);
        if (width == PYQ_NR && FOLD_AVX2)
            fold_full_panel_avx2(b + column, k, columns, flip, zero, out, sums + column);
        else
            fold_panel(b + column, k, columns, flip, zero, out, sums + column, width);
    }
}


/* Whether the folded weights are sure to fit int8: those with the zero point in the middle of their type. */
static int fold_to_bytes(int32_t is_signed, int64_t columns, const int32_t *zero_point) {
    for (int64_t c = 0; c < columns; c++)
        if (zero_point[c] != (is_signed ? 0 : 128)) return 0;
    return 1;
}

#if PYQ_HAVE_AVX512VNNI
void pyq_avx512vnni_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, uint8_t *data,
                               int32_t *sums);
#else
#define pyq_avx512vnni_pack_bytes(...) (void)0
#endif

/* Pack b[k][columns], uint8 or int8 with a zero point for each column, as panels of one layout that follow each other: at
 * most 128 * ceil(k / 4) bytes for each 16 columns. No search for exact 16-bit sums: for weights that are used once, this
 * costs less than it could save. `sums` receives the column sums. Returns the layout. */
int32_t pyq_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, const int32_t *zero_point,
                       uint8_t *data, int32_t *sums) {
    if (pyq_get_isa() >= PYQ_ISA_AVX512VNNI && fold_to_bytes(is_signed, columns, zero_point)) {
        pyq_avx512vnni_pack_bytes(b, is_signed, k, columns, data, sums);
        return PYQ_QUADS32;
    }
    pack_pairs16(b, is_signed, k, columns, zero_point, data, sums);
    return PYQ_PAIRS16;
}

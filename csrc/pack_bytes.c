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
TARGET_AVX2 static void fold_full_panel_avx2(const uint8_t *b, int64_t k, int64_t columns, int32_t flip,
                                             const int16_t *zero, int16_t *out, int32_t *sums) {
    fold_panel(b, k / 2 * 2, columns, flip, zero, out, sums, PYQ_NR);
    if (k % 2) fold_panel(b + (k - 1) * columns, 1, columns, flip, zero, out + (k - 1) * PYQ_NR, sums, PYQ_NR);
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

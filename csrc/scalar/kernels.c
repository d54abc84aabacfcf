/* Portable kernels: plain C loops for any CPU, and the row that every other kernel is compared with.
 *
 * Instructions: whatever the compiler finds; the 16-wide inner loops are easy to vectorise.
 * Exact: every product fits in int32 (|255 * 255|), sums are unsigned and wrap modulo 2^32.
 * Peak: about 6 GMAC/s with SSE2 on a 3 GHz core.
 */
#include "../isa.h"
#include "../pyq.h"
#include "../requant.h"

/* Element i of a quad lies in half i >> 1, position i & 1 of a PAIRS16 step. */
ALWAYS_INLINE void pairs16(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const int16_t *w,
                           int64_t steps, const int mr) {
    for (int i = 0; i < mr * PYQ_NR; i++) tile[i] = 0;
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR)
        for (int r = 0; r < mr; r++) {
            const int16_t *a = (const int16_t *)rows[r] + offsets[s], *second = w + 2 * PYQ_NR;
            for (int c = 0; c < PYQ_NR; c++)
                tile[r * PYQ_NR + c] += (uint32_t)(a[0] * w[2 * c] + a[1] * w[2 * c + 1] + a[2] * second[2 * c] +
                                                   a[3] * second[2 * c + 1]);
        }
}

ALWAYS_INLINE void quads8(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const int8_t *w,
                          int64_t steps, const int mr) {
    for (int i = 0; i < mr * PYQ_NR; i++) tile[i] = 0;
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR)
        for (int r = 0; r < mr; r++) {
            const uint8_t *a = rows[r] + offsets[s];
            for (int c = 0; c < PYQ_NR; c++)
                tile[r * PYQ_NR + c] += (uint32_t)(a[0] * w[4 * c] + a[1] * w[4 * c + 1] + a[2] * w[4 * c + 2] +
                                                   a[3] * w[4 * c + 3]);
        }
}

ALWAYS_INLINE void taps16(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const int16_t *w,
                          int64_t steps, const int mr) {
    for (int i = 0; i < mr * PYQ_NR; i++) tile[i] = 0;
    for (int64_t s = 0; s < steps; s += 2, w += 2 * PYQ_NR)
        for (int r = 0; r < mr; r++) {
            const uint8_t *a = rows[r] + offsets[s], *b = rows[r] + offsets[s + 1];
            for (int c = 0; c < PYQ_NR; c++) tile[r * PYQ_NR + c] += (uint32_t)(a[c] * w[2 * c] + b[c] * w[2 * c + 1]);
        }
}

#define DEFINE(layout, mr, weight)                                                                              \
    void pyq_scalar_##layout##_##mr##x16(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets,     \
                                         const void *w, int64_t steps) {                                        \
        layout((uint32_t *)tile, rows, offsets, (const weight *)w, steps, mr);                                  \
    }
DEFINE(pairs16, 1, int16_t)
DEFINE(pairs16, 4, int16_t)
DEFINE(quads8, 1, int8_t)
DEFINE(quads8, 4, int8_t)
DEFINE(taps16, 1, int16_t)

void pyq_scalar_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column, void *out,
                           int64_t stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < PYQ_NR; c++) requantize_one(tile[r * PYQ_NR + c], e, column + c, out, r * stride + c);
}

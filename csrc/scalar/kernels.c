/* Portable kernels: plain C loops for any CPU, and the row that every other kernel is compared with.
 *
 * Instructions: whatever the compiler finds; the 16-wide inner loops are easy to vectorise.
 * Exact: every product fits in int32 (|255 * 255|), sums are unsigned and wrap modulo 2^32.
 * Peak: about 6 GMAC/s with SSE2 on a 3 GHz core.
 */
#include "../isa.h"
#include "../pyq.h"
#include "../requant.h"

#include <string.h>

/* Element i of a quad lies in half i >> 1, position i & 1 of a step. */
#define PAIRS(name, weight)                                                                                      \
    ALWAYS_INLINE void name(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const weight *w, \
                            int64_t steps, const int mr, int64_t stride) {                                       \
        for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR)                                                     \
            for (int r = 0; r < mr; r++) {                                                                       \
                const int16_t *a = (const int16_t *)rows[r] + offsets[s];                                        \
                const weight *second = w + 2 * PYQ_NR;                                                           \
                for (int c = 0; c < PYQ_NR; c++)                                                                 \
                    tile[r * stride + c] += (uint32_t)(a[0] * w[2 * c] + a[1] * w[2 * c + 1] +                   \
                                                       a[2] * second[2 * c] + a[3] * second[2 * c + 1]);         \
            }                                                                                                    \
    }
PAIRS(pairs16, int16_t)
PAIRS(pairs8w, int8_t)

ALWAYS_INLINE void quads(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const int8_t *w,
                         int64_t steps, const int mr, int64_t stride) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR)
        for (int r = 0; r < mr; r++) {
            const uint8_t *a = rows[r] + offsets[s];
            for (int c = 0; c < PYQ_NR; c++)
                tile[r * stride + c] += (uint32_t)(a[0] * w[4 * c] + a[1] * w[4 * c + 1] + a[2] * w[4 * c + 2] +
                                                   a[3] * w[4 * c + 3]);
        }
}

ALWAYS_INLINE void taps16(uint32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const int16_t *w,
                          int64_t steps, const int mr, int64_t stride) {
    for (int64_t s = 0; s < steps; s += 2, w += 2 * PYQ_NR)
        for (int r = 0; r < mr; r++) {
            const uint8_t *a = rows[r] + offsets[s], *b = rows[r] + offsets[s + 1];
            for (int c = 0; c < PYQ_NR; c++) tile[r * stride + c] += (uint32_t)(a[c] * w[2 * c] + b[c] * w[2 * c + 1]);
        }
}

/* `loop` is what computes a layout: without 16-bit sums, those of quads differ only in what was proved about them. */
#define DEFINE(layout, mr, loop, weight)                                                                    \
    void pyq_scalar_##layout##_##mr##x16(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets, \
                                         const void *w, int64_t steps, int64_t how) {                       \
        const int64_t stride = how / PYQ_STRIDE;                                                            \
        for (int r = 0; r < mr && !(how & PYQ_ADD_TO_TILE); r++)                                            \
            memset(tile + r * stride, 0, PYQ_NR * sizeof *tile);                                            \
        loop((uint32_t *)tile, rows, offsets, (const weight *)w, steps, mr, stride);                        \
    }
DEFINE(pairs16, 1, pairs16, int16_t)
DEFINE(pairs16, 4, pairs16, int16_t)
DEFINE(pairs8w, 1, pairs8w, int8_t)
DEFINE(pairs8w, 4, pairs8w, int8_t)
DEFINE(quads32, 1, quads, int8_t)
DEFINE(quads32, 4, quads, int8_t)
DEFINE(quads8, 1, quads, int8_t)
DEFINE(quads8, 4, quads, int8_t)
DEFINE(quads8p2, 1, quads, int8_t)
DEFINE(quads8p2, 4, quads, int8_t)
DEFINE(quads8p4, 1, quads, int8_t)
DEFINE(quads8p4, 4, quads, int8_t)
DEFINE(taps16, 1, taps16, int16_t)

void pyq_scalar_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                           const uint8_t *residual, void *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < PYQ_NR; c++)
            requantize_one(tile[r * PYQ_NR + c], e, column + c, residual, out, r * stride + c);
}

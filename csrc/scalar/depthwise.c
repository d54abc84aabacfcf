/* Portable depthwise kernels: plain loops over 16 channels, and what every other one is compared with.
 *
 * Instructions: whatever the compiler finds. Exact: every product fits in int32 (|255 * 255|), sums are unsigned and
 * wrap modulo 2^32. Peak: about 2 GMAC/s with SSE2 on a 3 GHz core.
 */
#include "../isa.h"
#include "../pyq.h"
#include "../requant.h"

/* sums += a * w[0] + b * w[1], for each channel. */
ALWAYS_INLINE void add_pair(uint32_t *sums, const uint8_t *a, const uint8_t *b, const int16_t *w) {
    for (int c = 0; c < PYQ_NR; c++) sums[c] += (uint32_t)(a[c] * w[2 * c] + b[c] * w[2 * c + 1]);
}

/* One output pixel of channels from c on; w is the panel. The last line of the kernel is taken in even pairs. */
ALWAYS_INLINE void window_sums(uint32_t *sums, const uint8_t *const *pixels, int64_t c, const int16_t *w,
                                const int kernel) {
    for (int i = 0; i < PYQ_NR; i++) sums[i] = 0;
    for (int r = 0; r + 1 < kernel; r += 2)
        for (int k = 0; k < kernel; k++, w += 2 * PYQ_NR)
            add_pair(sums, pixels[r * PYQ_PITCH + k] + c, pixels[(r + 1) * PYQ_PITCH + k] + c, w);
    const uint8_t *const *last = pixels + (kernel - 1) * PYQ_PITCH;
    for (int k = 0; k < kernel; k += 2, w += 2 * PYQ_NR) {
        const int second = k + 1 < kernel ? k + 1 : k; /* its weight is 0 */
        add_pair(sums, last[k] + c, last[second] + c, w);
    }
}

ALWAYS_INLINE void window_pixel(const pyq_taps *t, const uint8_t *const *pixels, int64_t pixel, void *out,
                                const int kernel) {
    const int pairs = kernel / 2 * kernel + 2 * ((kernel + 1) / 2);
    const int16_t *w = t->weights;
    for (int64_t column = 0; column < t->channels; column += PYQ_NR, w += pairs * 2 * PYQ_NR) {
        const int64_t c = column + PYQ_NR > t->channels ? t->channels - PYQ_NR : column;
        uint32_t sums[PYQ_NR];
        window_sums(sums, pixels, c, w, kernel);
        for (int i = 0; i < PYQ_NR; i++)
            requantize_one((int32_t)sums[i], t->epilogue, c + i, NULL, out, pixel * t->apart + c + i);
    }
}

ALWAYS_INLINE void window(const pyq_taps *t, const uint8_t *const *pixels, int64_t count, void *out, const int kernel) {
    for (int64_t i = 0; i < count; i++) window_pixel(t, pixels + i * t->stride, i, out, kernel);
}

void pyq_scalar_window3_1x16(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, void *out) {
    window(t, pixels, tiles, out, 3);
}
void pyq_scalar_window5_1x16(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, void *out) {
    window(t, pixels, tiles, out, 5);
}
void pyq_scalar_window7_1x16(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, void *out) {
    window(t, pixels, tiles, out, 7);
}

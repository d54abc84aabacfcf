/* Depthwise kernels: up to four neighbouring pixels by 16 channels, in two accumulators each, finished at once. What
 * AVX2 and AVX-512 VNNI share: the latter multiplies and adds in one instruction (`fused`).
 *
 * Two taps of a channel meet in one 32-bit lane: vpunpcklbw / vpunpckhbw interleave the bytes of two input pixels,
 * vpshufb widens (vpmovzxbw, which crosses the halves of a register, takes two shuffles), vpmaddwd multiplies by the
 * two weights and adds, vpaddd accumulates; vpdpwssd does both. What is interleaved once serves every output pixel that
 * it lies under: taps of two lines in one column are paired, and those of the kernel's last line along the line, in
 * pairs that begin at even columns; an odd output pixel (stride 1) takes them with its weights shifted by one, (0, w0),
 * (w1, w2).
 *
 * Exact: [0, 255] * [-255, 255]; a pair sums to at most 2 * 255 * 255 in 32 bits. int32 lanes wrap modulo 2^32, those of
 * vpdpwssd too.
 * Per pixel of four and 16 channels of a 3x3 kernel at stride 1 (144 products): 9 instructions to interleave, 10
 * multiplies, 10 additions (none, if fused), and 15 of the epilogue: 13 MAC/cycle at four vector operations a cycle,
 * fused 17; 5x5: 18 and 26 MAC/cycle; 7x7: 21 and 31.
 */
#ifndef PYQ_AVX2_WINDOW_H
#define PYQ_AVX2_WINDOW_H

#include "../isa.h"
#include "../pyq.h"

#include "avx2_epilogue.h"

typedef struct {
    __m256i low, high; /* channels 0 to 7 and 8 to 15 */
} pair;

/* 16 bytes in both halves of a register: a load, no shuffle. */
ALWAYS_INLINE TARGET_AVX2 __m256i load_twice(const uint8_t *address) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)address));
}

ALWAYS_INLINE TARGET_AVX2 pair interleave(const uint8_t *first, const uint8_t *second) {
    const __m256i widen = _mm256_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1, 8, -1, 9, -1, 10, -1,
                                           11, -1, 12, -1, 13, -1, 14, -1, 15, -1);
    const __m256i a = load_twice(first), b = load_twice(second);
    return (pair){_mm256_shuffle_epi8(_mm256_unpacklo_epi8(a, b), widen),
                  _mm256_shuffle_epi8(_mm256_unpackhi_epi8(a, b), widen)};
}

/* acc += a * w. In assembly, because compilers load weights that are used again into registers that are not there; with
 * AVX-512 most of them are. */
ALWAYS_INLINE TARGET_AVX2 void multiply_add(__m256i *acc, __m256i a, const int16_t *w, const int fused) {
    const __m256i weights = _mm256_loadu_si256((const __m256i *)w);
    __m256i product;
    if (fused)
        __asm__("vpdpwssd %2, %1, %0" : "+v"(*acc) : "v"(a), "vm"(weights));
    else
        __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
                : "+x"(*acc), "=&x"(product)
                : "x"(a), "m"(*(const __m256i *)w));
}

/* first: there is nothing to add to yet. */
ALWAYS_INLINE TARGET_AVX2 void multiply_add_pair(__m256i *acc, pair a, const int16_t *w, const int first,
                                                 const int fused) {
    if (first) {
        acc[0] = _mm256_madd_epi16(a.low, _mm256_loadu_si256((const __m256i *)w));
        acc[1] = _mm256_madd_epi16(a.high, _mm256_loadu_si256((const __m256i *)(w + PYQ_NR)));
        return;
    }
    multiply_add(&acc[0], a.low, w, fused);
    multiply_add(&acc[1], a.high, w + PYQ_NR, fused);
}

/* The sums of one panel; `w` are its weights, `c` its first channel. */
ALWAYS_INLINE TARGET_AVX2 void window_sums(__m256i (*acc)[2], const uint8_t *const *pixels, int64_t c, const int16_t *w,
                                           const int kernel, const int stride, const int mr, const int fused) {
    const int width = (mr - 1) * stride + kernel, halves = (kernel + 1) / 2;
    UNROLL for (int r = 0; r + 1 < kernel; r += 2)
        UNROLL for (int i = 0; i < width; i++) {
            const pair a = interleave(pixels[r * PYQ_PITCH + i] + c, pixels[(r + 1) * PYQ_PITCH + i] + c);
            UNROLL for (int p = 0; p < mr; p++) {
                const int k = i - p * stride;
                if (k >= 0 && k < kernel)
                    multiply_add_pair(acc[p], a, w + (r / 2 * kernel + k) * 2 * PYQ_NR, r + k == 0, fused);
            }
        }
    const uint8_t *const *last = pixels + (kernel - 1) * PYQ_PITCH;
    w += kernel / 2 * kernel * 2 * PYQ_NR;
    UNROLL for (int i = 0; i < width; i += 2) {
        const int second = i + 1 < width ? i + 1 : i; /* its weight is 0 */
        const pair a = interleave(last[i] + c, last[second] + c);
        UNROLL for (int p = 0; p < mr; p++) {
            const int first = p * stride, k = i / 2 - first / 2;
            if (k >= 0 && k < halves) multiply_add_pair(acc[p], a, w + (first % 2 * halves + k) * 2 * PYQ_NR, 0, fused);
        }
    }
}

ALWAYS_INLINE TARGET_AVX2 void finish(const int32_t *tile, int64_t rows, const pyq_epilogue *e, const bounds *b,
                                      const int32_t type, int64_t column, void *out, int64_t stride) {
    if (type == PYQ_OUT_INT32) {
        store_accumulators(tile, rows, e->bias ? e->bias + column : NULL, out, stride);
        return;
    }
    const columns c = load_columns(e, column);
    if (type == PYQ_OUT_FLOAT32)
        store_floats(tile, rows, &c, b, e->offset ? e->offset + column : NULL, out, stride);
    else
        store_bytes(tile, rows, &c, b, 0, NULL, NULL, NULL, out, stride);
}

ALWAYS_INLINE TARGET_AVX2 void window(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, uint8_t *out,
                                      const int kernel, const int stride, const int mr, const int fused,
                                      const int32_t type) {
    bounds b = load_bounds(t->epilogue);
    const int element_size = type == PYQ_OUT_QUANTIZED ? 1 : 4, pairs = kernel / 2 * kernel + (kernel + 1) / 2 * 2;
    const int64_t channels = t->channels, apart = t->apart;
    for (; tiles > 0; tiles--, pixels += mr * t->stride, out += mr * apart * element_size) {
        const int16_t *w = t->weights;
        for (int64_t column = 0; column < channels; column += PYQ_NR, w += pairs * 2 * PYQ_NR) {
            const int64_t c = column + PYQ_NR > channels ? channels - PYQ_NR : column;
            __m256i acc[PYQ_WINDOW][2];
            window_sums(acc, pixels, c, w, kernel, stride, mr, fused);
            b.lowest = _mm256_set1_epi8((char)t->lowest); /* no register is left for it */
            finish((const int32_t *)acc, mr, t->epilogue, &b, type, c, out + c * element_size, apart);
        }
    }
}

/* A loop for each type of output: without branches in it, a processor looks ahead further. */
ALWAYS_INLINE TARGET_AVX2 void window_of_type(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles,
                                              void *out, const int kernel, const int stride, const int mr,
                                              const int fused) {
    if (t->epilogue->type == PYQ_OUT_QUANTIZED)
        window(t, pixels, tiles, out, kernel, stride, mr, fused, PYQ_OUT_QUANTIZED);
    else if (t->epilogue->type == PYQ_OUT_FLOAT32)
        window(t, pixels, tiles, out, kernel, stride, mr, fused, PYQ_OUT_FLOAT32);
    else
        window(t, pixels, tiles, out, kernel, stride, mr, fused, PYQ_OUT_INT32);
}

/* The tiles that there are, for both: T(name, kernel, stride, mr). */
#define EVERY_TILE(T)          \
    T(window3_1x16, 3, 1, 1)   \
    T(window3s1_2x16, 3, 1, 2) \
    T(window3s1_3x16, 3, 1, 3) \
    T(window3s1_4x16, 3, 1, 4) \
    T(window3s2_2x16, 3, 2, 2) \
    T(window3s2_3x16, 3, 2, 3) \
    T(window3s2_4x16, 3, 2, 4) \
    T(window5_1x16, 5, 1, 1)   \
    T(window5s1_2x16, 5, 1, 2) \
    T(window5s1_3x16, 5, 1, 3) \
    T(window5s1_4x16, 5, 1, 4) \
    T(window5s2_2x16, 5, 2, 2) \
    T(window5s2_3x16, 5, 2, 3) \
    T(window5s2_4x16, 5, 2, 4) \
    T(window7_1x16, 7, 1, 1)   \
    T(window7s1_2x16, 7, 1, 2) \
    T(window7s1_3x16, 7, 1, 3) \
    T(window7s1_4x16, 7, 1, 4) \
    T(window7s2_2x16, 7, 2, 2) \
    T(window7s2_3x16, 7, 2, 3) \
    T(window7s2_4x16, 7, 2, 4)

#endif

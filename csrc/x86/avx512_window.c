/* AVX-512 depthwise kernels for weights that are bytes: up to four neighbouring pixels by 16 channels, in one accumulator
 * each.
 *
 * Four taps of a channel meet in one 32-bit lane: vmovdqu and vinserti32x4 put 16 bytes of four input pixels beside each
 * other, vpermb (AVX512-VBMI) makes quads of them, vpdpbusd multiplies by the four weights and adds. What has met once
 * serves every output pixel that it lies under: taps of four lines in one column (of three, and a weight of 0), and those
 * of the fifth line of a 5x5 kernel along the line, in quads that begin at every fourth column, with the weights shifted.
 *
 * Exact: vpdpbusd adds four products of unsigned and signed bytes in 32 bits, modulo 2^32.
 * Per pixel of four and 16 channels of a 3x3 kernel at stride 1 (144 products): 6 instructions to make quads, 3
 * multiplies and 9 of the epilogue, where avx2_window.h takes 9, 10 and 15 of half the width.
 */
#include "../isa.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx2_window.h"
#include "avx512_epilogue.h"

enum { QUAD = 4 * PYQ_NR };

static const uint8_t QUADS[64] __attribute__((aligned(64))) = {
    0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51, 4,  20, 36, 52, 5,  21, 37, 53,
    6,  22, 38, 54, 7,  23, 39, 55, 8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59,
    12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};

/* Channels c, c + 1, ... of `count` pixels, `step` addresses apart; 0 where there is none. */
ALWAYS_INLINE TARGET_AVX512VBMI __m512i meet(const uint8_t *const *pixels, const int step, int64_t c, const int count) {
    __m512i x = _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *)(pixels[0] + c)));
    if (count > 1) x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(pixels[step] + c)), 1);
    if (count > 2) x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(pixels[2 * step] + c)), 2);
    if (count > 3) x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(pixels[3 * step] + c)), 3);
    return _mm512_permutexvar_epi8(_mm512_load_si512(QUADS), x);
}

ALWAYS_INLINE TARGET_AVX512VBMI __m512i multiply_add_quad(__m512i acc, __m512i x, const int8_t *w) {
    return _mm512_dpbusd_epi32(acc, x, _mm512_loadu_si512(w));
}

/* The sums of one panel; `w` are its weights, `c` its first channel. */
ALWAYS_INLINE TARGET_AVX512VBMI void quad_sums(__m512i *acc, const uint8_t *const *pixels, int64_t c, const int8_t *w,
                                               const int kernel, const int stride, const int mr) {
    const int width = (mr - 1) * stride + kernel;
    UNROLL for (int p = 0; p < mr; p++) acc[p] = _mm512_setzero_si512();
    UNROLL for (int line = 0; line + 1 < kernel; line += 4, w += kernel * QUAD)
        UNROLL for (int i = 0; i < width; i++) {
            const __m512i x = meet(pixels + line * PYQ_PITCH + i, PYQ_PITCH, c, kernel - line < 4 ? kernel - line : 4);
            UNROLL for (int p = 0; p < mr; p++) {
                const int k = i - p * stride;
                if (k >= 0 && k < kernel) acc[p] = multiply_add_quad(acc[p], x, w + k * QUAD);
            }
        }
    if (kernel % 4 != 1) return;
    UNROLL for (int i = 0; i < width; i += 4) {
        const __m512i x = meet(pixels + (kernel - 1) * PYQ_PITCH + i, 1, c, width - i < 4 ? width - i : 4);
        UNROLL for (int p = 0; p < mr; p++) {
            const int first = p * stride, k = i / 4 - first / 4;
            if (k >= 0 && k < 2) acc[p] = multiply_add_quad(acc[p], x, w + (first % 4 * 2 + k) * QUAD);
        }
    }
}

/* mr rows of bytes; acc has an even number of them. */
ALWAYS_INLINE TARGET_AVX512VBMI void store_quantized(const __m512i *acc, constants *s, const pyq_epilogue *e, int64_t c,
                                                     uint8_t *out, int64_t apart, const int mr) {
    const int half = (mr + 1) / 2;
    s->bias[0] = s->bias[1] = e->bias ? _mm512_loadu_si512(e->bias + c) : _mm512_setzero_si512();
    s->multiplier[0] = s->multiplier[1] = _mm512_loadu_ps(e->multiplier + c);
    const __m512i y = requantize(acc, s, 0, half, 0);
    UNROLL for (int r = 0; r < half; r++) {
        const __m256i rows = r ? _mm512_extracti64x4_epi64(y, 1) : _mm512_castsi512_si256(y);
        _mm_storeu_si128((__m128i *)(out + r * apart), _mm256_castsi256_si128(rows));
        if (half + r < mr) _mm_storeu_si128((__m128i *)(out + (half + r) * apart), _mm256_extracti128_si256(rows, 1));
    }
}

ALWAYS_INLINE TARGET_AVX512VBMI void quad_window(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles,
                                                 uint8_t *out, const int kernel, const int stride, const int mr,
                                                 const int32_t type) {
    const pyq_epilogue *e = t->epilogue;
    const bounds b = load_bounds(e);
    constants s = {.high = _mm512_set1_ps(e->high), .minus_low = _mm512_set1_epi16((int16_t)-e->low)};
    s.lowest = _mm512_set1_epi8((char)t->lowest);
    const int quads = (kernel + 2) / 4 * kernel + (kernel % 4 == 1 ? 8 : 0);
    const int element_size = type == PYQ_OUT_QUANTIZED ? 1 : 4;
    const int64_t channels = t->channels, apart = t->apart;
    for (; tiles > 0; tiles--, pixels += mr * t->stride, out += mr * apart * element_size) {
        const int8_t *w = t->quads;
        for (int64_t column = 0; column < channels; column += PYQ_NR, w += quads * QUAD) {
            const int64_t c = column + PYQ_NR > channels ? channels - PYQ_NR : column;
            __m512i acc[PYQ_WINDOW];
            quad_sums(acc, pixels, c, w, kernel, stride, mr);
            if (mr % 2) acc[mr] = acc[mr - 1];
            if (type == PYQ_OUT_QUANTIZED)
                store_quantized(acc, &s, e, c, out + c, apart, mr);
            else
                finish((const int32_t *)acc, mr, e, &b, type, c, out + c * element_size, apart);
        }
    }
}

#define DEFINE(name, kernel, stride, mr)                                                                       \
    TARGET_AVX512VBMI void pyq_avx512vnni_quads_##name(const pyq_taps *t, const uint8_t *const *pixels,        \
                                                       int64_t tiles, void *out) {                             \
        if (t->epilogue->type == PYQ_OUT_QUANTIZED)                                                            \
            quad_window(t, pixels, tiles, out, kernel, stride, mr, PYQ_OUT_QUANTIZED);                         \
        else if (t->epilogue->type == PYQ_OUT_FLOAT32)                                                         \
            quad_window(t, pixels, tiles, out, kernel, stride, mr, PYQ_OUT_FLOAT32);                           \
        else                                                                                                   \
            quad_window(t, pixels, tiles, out, kernel, stride, mr, PYQ_OUT_INT32);                             \
    }
EVERY_TILE(DEFINE)

#endif

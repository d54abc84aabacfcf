/* Maximum, average and sum over windows: up to 128 channels at a time, so that the loops cost little.
 *
 * Maximum: vpmaxub or vpmaxsb with memory, one instruction for 32 elements. Sum: the words of two channels, and their
 * high bytes by vpsrlw, are added up with vpaddw; 256 times the high bytes taken from the words leaves the sum of the
 * low bytes, all modulo 2^16. 3 instructions for 32 elements, 4 for int8, whose bytes vpxor moves to 0 .. 255. A sum of
 * 257 bytes still fits 16 bits, and is then added to one of 32 bits.
 *
 * Average: sums minus zero points, of up to 128 elements, fit 16 bits with their sign. Of every four channels one is
 * widened by vpmaddwd or vpsrad, converted, multiplied by what the caller has proved to give the integers of the
 * numerics (pyq/pool_windows.py), and rounded by vcvtps2dq; where there is no such number, scale, count and scale are
 * applied one after the other, which takes two divisions, or one where the count is a power of two: to divide the first
 * scale by that beforehand is exact. vpackssdw, vpaddsw, vpackuswb saturate, vpshufb restores the order: 30 instructions for
 * 32 averages.
 *
 * A window of 3 x 3 is 9 loads and 9 (maximum) or 57 (average) instructions for 32 channels.
 */
#include "../isa.h"
#include "../pool.h"

#if PYQ_HAVE_AVX2
#include <float.h>
#include <immintrin.h>
#include <string.h>

enum { MAX_VECTORS = 4 };

ALWAYS_INLINE TARGET_AVX2 void max_blocks(const pyq_window *w, int64_t channel, const int is_signed, uint8_t *out,
                                          const int vectors) {
    __m256i most[MAX_VECTORS];
    UNROLL for (int i = 0; i < vectors; i++) most[i] = _mm256_set1_epi8(is_signed ? -128 : 0);
    for (int64_t r = 0; r < w->row_count; r++) {
        const uint8_t *x = w->first + w->rows[r] + channel;
        for (int64_t c = 0; c < w->columns; c++, x += w->step)
            UNROLL for (int i = 0; i < vectors; i++) {
                const __m256i bytes = _mm256_loadu_si256((const __m256i *)x + i);
                most[i] = is_signed ? _mm256_max_epi8(most[i], bytes) : _mm256_max_epu8(most[i], bytes);
            }
    }
    UNROLL for (int i = 0; i < vectors; i++) _mm256_storeu_si256((__m256i *)out + i, most[i]);
}

/* 16-bit sums of 32 channels, by the place of their byte in a word. */
typedef struct {
    __m256i low, high;
} sums_32;

/* Adds pixels, which are `step` apart, to sums whose `low` are those of the whole words. */
ALWAYS_INLINE TARGET_AVX2 void add_pixels(const uint8_t *x, int64_t pixels, int64_t step, const int is_signed,
                                          sums_32 *s, const int vectors) {
    const __m256i top = _mm256_set1_epi8(-128);
    for (; pixels > 0; pixels--, x += step)
        UNROLL for (int i = 0; i < vectors; i++) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)x + i);
            if (is_signed) bytes = _mm256_xor_si256(bytes, top);
            s[i].low = _mm256_add_epi16(s[i].low, bytes);
            s[i].high = _mm256_add_epi16(s[i].high, _mm256_srli_epi16(bytes, 8));
        }
}

ALWAYS_INLINE TARGET_AVX2 void clear(sums_32 *s, const int vectors) {
    UNROLL for (int i = 0; i < vectors; i++) s[i].low = s[i].high = _mm256_setzero_si256();
}

ALWAYS_INLINE TARGET_AVX2 __m256i low_sums(const sums_32 *s) {
    return _mm256_sub_epi16(s->low, _mm256_slli_epi16(s->high, 8));
}

/* How the sums of a window become bytes. */
typedef struct {
    __m256i zero;               /* zero point times elements */
    __m256 factor, count, step; /* the sums are multiplied by the first, and divided by the others where need be */
    __m256 low, high;           /* bounds of the integers, minus their zero point */
    __m256i raise, range, base; /* -low, high - low, and low + zero point */
} averager;

ALWAYS_INLINE TARGET_AVX2 __m256i rounded(__m256i sum, const averager *a, const int divisions) {
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), a->factor);
    if (divisions == 2) y = _mm256_div_ps(y, a->count);
    if (divisions) y = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(y, a->step), a->low), a->high);
    return _mm256_cvtps_epi32(y);
}

ALWAYS_INLINE TARGET_AVX2 __m256i averages(const sums_32 *s, const averager *a, const int divisions) {
    const __m256i low = _mm256_sub_epi16(low_sums(s), a->zero), high = _mm256_sub_epi16(s->high, a->zero);
    const __m256i even = _mm256_set1_epi32(1); /* multiplies the first word of two by 1, the second by 0 */
    const __m256i y0 = rounded(_mm256_madd_epi16(low, even), a, divisions);
    const __m256i y1 = rounded(_mm256_madd_epi16(high, even), a, divisions);
    const __m256i y2 = rounded(_mm256_srai_epi32(low, 16), a, divisions);
    const __m256i y3 = rounded(_mm256_srai_epi32(high, 16), a, divisions);
    const __m256i y01 = _mm256_adds_epi16(_mm256_packs_epi32(y0, y1), a->raise);
    const __m256i y23 = _mm256_adds_epi16(_mm256_packs_epi32(y2, y3), a->raise);
    const __m256i bytes = _mm256_min_epu8(_mm256_packus_epi16(y01, y23), a->range);
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_add_epi8(_mm256_shuffle_epi8(bytes, order), a->base);
}

ALWAYS_INLINE TARGET_AVX2 void average_blocks(const pyq_window *w, int64_t channel, const averager *a,
                                              const int is_signed, const int divisions, uint8_t *out,
                                              const int vectors) {
    sums_32 s[MAX_VECTORS];
    clear(s, vectors);
    for (int64_t r = 0; r < w->row_count; r++)
        add_pixels(w->first + w->rows[r] + channel, w->columns, w->step, is_signed, s, vectors);
    UNROLL for (int i = 0; i < vectors; i++)
        _mm256_storeu_si256((__m256i *)out + i, averages(&s[i], a, divisions));
}

/* What a pixel's channels are reduced by: maximum when there is no averager. */
typedef struct {
    const averager *averager;
    int is_signed, divisions;
} reduction;

ALWAYS_INLINE TARGET_AVX2 void blocks(const pyq_window *w, int64_t channel, const reduction f, uint8_t *out,
                                      const int vectors) {
    if (f.averager)
        average_blocks(w, channel, f.averager, f.is_signed, f.divisions, out, vectors);
    else
        max_blocks(w, channel, f.is_signed, out, vectors);
}

/* The last block overlaps the one before; fewer channels than a block are read with what lies behind them. */
ALWAYS_INLINE TARGET_AVX2 void pixel(const pyq_window *w, int64_t channels, const reduction f, uint8_t *out) {
    int64_t i = 0;
    for (; i + 128 <= channels; i += 128) blocks(w, i, f, out + i, 4);
    for (; i + 64 <= channels; i += 64) blocks(w, i, f, out + i, 2);
    for (; i + 32 <= channels; i += 32) blocks(w, i, f, out + i, 1);
    if (i == channels) return;
    if (i > 0) {
        blocks(w, channels - 32, f, out + channels - 32, 1);
        return;
    }
    uint8_t whole[32];
    blocks(w, 0, f, whole, 1);
    memcpy(out, whole, (size_t)channels);
}

ALWAYS_INLINE int direct(const pyq_pool *p, const pyq_window *w) {
    return p->channels >= PYQ_POOL_BLOCK || pyq_readable(p, w, p->channels);
}

ALWAYS_INLINE TARGET_AVX2 void max_row(const pyq_pool_job *j, int64_t row, uint8_t *out, const int is_signed) {
    const pyq_pool p = *j->pool; /* a byte stored may alias it */
    pyq_window w = pyq_row_window(&p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p.columns; column++, out += p.channels) {
        pyq_choose_column(&w, image, &p, column);
        if (direct(&p, &w))
            pixel(&w, p.channels, (reduction){.is_signed = is_signed}, out);
        else
            pyq_max_pixel(&p, &w, out);
    }
}

TARGET_AVX2 void pyq_avx2_max_row(const pyq_pool_job *j, int64_t row, uint8_t *out) {
    j->pool->is_signed ? max_row(j, row, out, 1) : max_row(j, row, out, 0);
}

/* Returns the number of divisions that remain. */
ALWAYS_INLINE TARGET_AVX2 int choose_factor(averager *a, float scale, float count, float multiplier) {
    const int32_t n = (int32_t)count, normal = scale / count >= FLT_MIN && scale <= FLT_MAX / (255 * PYQ_POOL_SMALL);
    const int divisible = (n & (n - 1)) == 0 && normal; /* no product is subnormal or infinite */
    a->factor = _mm256_set1_ps(multiplier > 0 ? multiplier : divisible ? scale / count : scale);
    return multiplier > 0 ? 0 : divisible ? 1 : 2;
}

ALWAYS_INLINE TARGET_AVX2 void average_row(const pyq_pool_job *j, int64_t row, uint8_t *out, const int is_signed) {
    const pyq_pool p = *j->pool;
    const float *counts = p.counts + row % p.rows * p.columns;
    const float *multipliers = j->multipliers + row % p.rows * p.columns;
    const int32_t low = (int32_t)j->to.low, zero_point = j->from->zero_point + (is_signed ? 128 : 0);
    averager a = {.step = _mm256_set1_ps(j->to.scale),
                  .low = _mm256_set1_ps(j->to.low),
                  .high = _mm256_set1_ps(j->to.high),
                  .raise = _mm256_set1_epi16((int16_t)-low),
                  .range = _mm256_set1_epi8((char)((int32_t)j->to.high - low)),
                  .base = _mm256_set1_epi8((char)(low + j->to.zero_point))};
    pyq_window w = pyq_row_window(&p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p.columns; column++, out += p.channels) {
        pyq_choose_column(&w, image, &p, column);
        const int64_t elements = w.row_count * w.columns;
        if (elements > PYQ_POOL_SMALL || !direct(&p, &w)) {
            pyq_average_pixel(j, &w, counts[column], out);
            continue;
        }
        a.zero = _mm256_set1_epi16((int16_t)(zero_point * elements));
        a.count = _mm256_set1_ps(counts[column]);
        switch (choose_factor(&a, j->from->scale, counts[column], multipliers[column])) {
        case 0: pixel(&w, p.channels, (reduction){&a, is_signed, 0}, out); break;
        case 1: pixel(&w, p.channels, (reduction){&a, is_signed, 1}, out); break;
        default: pixel(&w, p.channels, (reduction){&a, is_signed, 2}, out);
        }
    }
}

TARGET_AVX2 void pyq_avx2_average_row(const pyq_pool_job *j, int64_t row, uint8_t *out) {
    j->pool->is_signed ? average_row(j, row, out, 1) : average_row(j, row, out, 0);
}

/* Adds 16-bit sums to those in memory. */
ALWAYS_INLINE TARGET_AVX2 void flush(const sums_32 *s, int32_t *sums) {
    const __m256i low = low_sums(s);
    const __m256i pairs[2] = {_mm256_unpacklo_epi16(low, s->high), _mm256_unpackhi_epi16(low, s->high)};
    UNROLL for (int i = 0; i < 4; i++) { /* channels 0 .. 7 are in the first half of the first */
        const __m256i two = pairs[i % 2];
        const __m128i words = i / 2 ? _mm256_extracti128_si256(two, 1) : _mm256_castsi256_si128(two);
        __m256i *total = (__m256i *)sums + i;
        _mm256_storeu_si256(total, _mm256_add_epi32(_mm256_loadu_si256(total), _mm256_cvtepu16_epi32(words)));
    }
}

ALWAYS_INLINE TARGET_AVX2 void sum_blocks(const pyq_window *w, const int is_signed, int64_t channel, int32_t *sums,
                                          const int vectors) {
    sums_32 s[MAX_VECTORS];
    int64_t room = PYQ_POOL_PENDING;
    clear(s, vectors);
    for (int64_t r = 0; r < w->row_count; r++) {
        const uint8_t *x = w->first + w->rows[r] + channel;
        for (int64_t rest = w->columns; rest > 0;) {
            const int64_t pixels = rest < room ? rest : room;
            add_pixels(x, pixels, w->step, is_signed, s, vectors);
            x += pixels * w->step, rest -= pixels, room -= pixels;
            if (room) continue;
            UNROLL for (int i = 0; i < vectors; i++) flush(&s[i], sums + channel + 32 * i);
            clear(s, vectors);
            room = PYQ_POOL_PENDING;
        }
    }
    UNROLL for (int i = 0; i < vectors; i++) flush(&s[i], sums + channel + 32 * i);
}

ALWAYS_INLINE TARGET_AVX2 void window_sum(const pyq_window *w, const int is_signed, int64_t channels, int32_t *sums) {
    const int64_t whole = (channels + 31) / 32 * 32;
    int64_t i = 0;
    memset(sums, 0, (size_t)whole * sizeof *sums);
    for (; i + 128 <= whole; i += 128) sum_blocks(w, is_signed, i, sums, 4);
    for (; i + 64 <= whole; i += 64) sum_blocks(w, is_signed, i, sums, 2);
    for (; i < whole; i += 32) sum_blocks(w, is_signed, i, sums, 1);
}

TARGET_AVX2 void pyq_avx2_window_sum(const pyq_window *w, uint8_t flip, int64_t channels, int32_t *sums) {
    flip ? window_sum(w, 1, channels, sums) : window_sum(w, 0, channels, sums);
}

#endif

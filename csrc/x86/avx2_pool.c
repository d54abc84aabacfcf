/* Maximum, average and sum over windows: up to 128 channels at a time, so that the loops cost little.
 *
 * Maximum: vpmaxub or vpmaxsb with memory, one instruction for 32 elements. Sums, 3 or 4 of them, and averages, 18 for
 * 32, are described in avx2_average.h; a sum of more than 257 bytes is added up in 32 bits. Windows that overlap along
 * a row share the sums of their columns (avx2_columns.h).
 *
 * A window of 3 x 3 is 9 loads and 9 (maximum) or 45 (average) instructions for 32 channels, and 37 where columns are
 * shared.
 */
#include "../isa.h"
#include "../pool.h"

#if PYQ_HAVE_AVX2
#include <string.h>

#include "avx2_columns.h"

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

/* Adds pixels, which are `step` apart. */
ALWAYS_INLINE TARGET_AVX2 void add_pixels(const uint8_t *x, int64_t pixels, int64_t step, const int is_signed,
                                          sums_32 *s, const int vectors) {
    for (; pixels > 0; pixels--, x += step)
        UNROLL for (int i = 0; i < vectors; i++) add_32(&s[i], x + 32 * i, is_signed);
}

ALWAYS_INLINE TARGET_AVX2 void clear(sums_32 *s, const int vectors) {
    UNROLL for (int i = 0; i < vectors; i++) s[i].low = s[i].high = _mm256_setzero_si256();
}

ALWAYS_INLINE TARGET_AVX2 void average_blocks(const pyq_window *w, int64_t channel, const averager *a,
                                              const int is_signed, const averager_way way, uint8_t *out,
                                              const int vectors) {
    sums_32 s[MAX_VECTORS];
    clear(s, vectors);
    for (int64_t r = 0; r < w->row_count; r++)
        add_pixels(w->first + w->rows[r] + channel, w->columns, w->step, is_signed, s, vectors);
    UNROLL for (int i = 0; i < vectors; i++)
        _mm256_storeu_si256((__m256i *)out + i, averages(&s[i], a, way));
}

/* What a pixel's channels are reduced by: maximum when there is no averager. */
typedef struct {
    const averager *averager;
    int is_signed;
    averager_way way;
} reduction;

ALWAYS_INLINE TARGET_AVX2 void blocks(const pyq_window *w, int64_t channel, const reduction f, uint8_t *out,
                                      const int vectors) {
    if (f.averager)
        average_blocks(w, channel, f.averager, f.is_signed, f.way, out, vectors);
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

/* The windows from `column` on that have as many elements and the same count, evenly spaced. */
static window_run find_run(const pyq_pool *p, const float *counts, int64_t column) {
    const int64_t *firsts = p->firsts, *taps = p->taps;
    window_run run = {1, column + 1 < p->columns ? firsts[column + 1] - firsts[column] : 0};
    for (int64_t c = column + 1; c < p->columns; c++, run.count++)
        if (taps[c] != taps[column] || counts[c] != counts[column] || firsts[c] - firsts[c - 1] != run.stride) break;
    return run;
}

/* first: of a run of windows, which have at most PYQ_POOL_SMALL elements. */
ALWAYS_INLINE TARGET_AVX2 void average_windows(const pyq_pool_job *j, const pyq_window *first, window_run run,
                                               float count, const averager *a, const int is_signed,
                                               const averager_way way, uint8_t *out) {
    const pyq_pool p = *j->pool; /* a byte stored may alias it */
    pyq_window w = *first;
    if (overlapping(&p, &w, run)) {
        average_run(&w, p.channels, run, a, is_signed, out);
        return;
    }
    for (int64_t i = 0; i < run.count; i++, w.first += run.stride, out += p.channels)
        if (direct(&p, &w))
            pixel(&w, p.channels, (reduction){a, is_signed, way}, out);
        else
            pyq_average_pixel(j, &w, count, out);
}

ALWAYS_INLINE TARGET_AVX2 void average_row(const pyq_pool_job *j, int64_t row, uint8_t *out, const int is_signed) {
    const pyq_pool *p = j->pool;
    const float *counts = p->counts + row % p->rows * p->columns;
    const pyq_fixed_mean *fixed = j->fixed + row % p->rows * p->columns;
    pyq_window w = pyq_row_window(p, row);
    const uint8_t *image = w.first;
    window_run run;
    for (int64_t column = 0; column < p->columns; column += run.count, out += run.count * p->channels) {
        const float count = counts[column];
        pyq_choose_column(&w, image, p, column);
        run = find_run(p, counts, column);
        if (w.row_count * w.columns > PYQ_POOL_SMALL) {
            run.count = 1;
            pyq_average_pixel(j, &w, count, out);
            continue;
        }
        const averager a = load_averager(j, w.row_count * w.columns, count, &fixed[column]);
        switch (a.way) {
        case LINE: average_windows(j, &w, run, count, &a, is_signed, LINE, out); break;
        case HALVES: average_windows(j, &w, run, count, &a, is_signed, HALVES, out); break;
        default: average_windows(j, &w, run, count, &a, is_signed, DIVIDED, out);
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

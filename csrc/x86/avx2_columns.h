/* Averages of windows that overlap along a row: what a column of pixels sums to is found once for all of them.
 *
 * The sums of the columns, 16 bits each, of a few KB of the row go to memory that stays in the L1 cache, as the pairs
 * of avx2_average.h; each window then adds up its own. For 3 x 3 windows at stride 1 and 32 averages: 3 loads, 7
 * instructions and 2 stores for a column, 6 loads and 4 additions for a window, and 18 of the averages.
 *
 * With stride 1, where all channels fit, neither columns nor windows have to be told apart: element i of a row of
 * windows is the sum of what is found at i, i + channels, i + 2 * channels, so that there are few remainders.
 */
#ifndef PYQ_AVX2_COLUMNS_H
#define PYQ_AVX2_COLUMNS_H

#include "avx2_average.h"

enum {
    COLUMN_SUMS = 8192,   /* 16 KB */
    BLOCK_CHANNELS = 256, /* so that 32 columns fit */
    MOST_COLUMNS = 16,    /* of a window */
};

/* The sums of element i lie i bytes behind the beginning: two elements make a word of each. */
typedef struct {
    _Alignas(64) uint8_t low[COLUMN_SUMS];
    _Alignas(64) uint8_t high[COLUMN_SUMS];
} column_sums;

/* Windows side by side that have as many elements: `count` of them, `stride` elements apart. */
typedef struct {
    int64_t count, stride;
} window_run;

/* Lines of n elements, pitches apart. */
typedef struct {
    int64_t count, n, from_pitch, to_pitch;
} lines;

/* The last 32 of n are taken again where n is no multiple. */
ALWAYS_INLINE int64_t block_start(int64_t i, int64_t n) { return i + 32 <= n ? i : n - 32; }

ALWAYS_INLINE TARGET_AVX2 __m256i load_32(const uint8_t *x) { return _mm256_loadu_si256((const __m256i *)x); }
ALWAYS_INLINE TARGET_AVX2 void store_32(uint8_t *x, __m256i y) { _mm256_storeu_si256((__m256i *)x, y); }

ALWAYS_INLINE TARGET_AVX2 void sum_line(const uint8_t *x, const int64_t *rows, const int64_t row_count, int64_t n,
                                        const int is_signed, uint8_t *low, uint8_t *high) {
    for (int64_t i = 0; i < n; i += 32) {
        const int64_t at = block_start(i, n);
        sums_32 s = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t r = 0; r < row_count; r++) add_32(&s, x + rows[r] + at, is_signed);
        store_32(low + at, s.low), store_32(high + at, s.high);
    }
}

/* `next`: from a column to the one beside it. */
ALWAYS_INLINE TARGET_AVX2 void average_line(const uint8_t *low, const uint8_t *high, int64_t next,
                                            const int64_t columns, int64_t n, const averager *a, const averager_way way,
                                            uint8_t *out) {
    const averager own = *a; /* a byte stored may alias it */
    for (int64_t i = 0; i < n; i += 32) {
        const int64_t at = block_start(i, n);
        sums_32 s = {load_32(low + at), load_32(high + at)};
        for (int64_t c = 1, j = at + next; c < columns; c++, j += next) {
            s.low = _mm256_add_epi16(s.low, load_32(low + j));
            s.high = _mm256_add_epi16(s.high, load_32(high + j));
        }
        store_32(out + at, averages(&s, &own, way));
    }
}

/* Out of line, since their loops need all registers. The most common size has loops that unroll. */
TARGET_AVX2 __attribute__((noinline)) static void sum_lines(const uint8_t *x, const pyq_window *w, lines g,
                                                            int is_signed, column_sums *to) {
    const int64_t count = w->row_count;
    uint8_t *low = to->low, *high = to->high;
    for (int64_t i = 0; i < g.count; i++, x += g.from_pitch, low += g.to_pitch, high += g.to_pitch)
        if (count == 3)
            is_signed ? sum_line(x, w->rows, 3, g.n, 1, low, high) : sum_line(x, w->rows, 3, g.n, 0, low, high);
        else
            is_signed ? sum_line(x, w->rows, count, g.n, 1, low, high) : sum_line(x, w->rows, count, g.n, 0, low, high);
}

TARGET_AVX2 __attribute__((noinline)) static void average_lines(const column_sums *from, int64_t next, int64_t columns,
                                                                lines g, const averager *a, uint8_t *out) {
    const uint8_t *low = from->low, *high = from->high;
    for (int64_t i = 0; i < g.count; i++, low += g.from_pitch, high += g.from_pitch, out += g.to_pitch)
        if (a->way == DIVIDED)
            average_line(low, high, next, columns, g.n, a, DIVIDED, out);
        else if (a->way == HALVES)
            average_line(low, high, next, columns, g.n, a, HALVES, out);
        else if (columns == 3)
            average_line(low, high, next, 3, g.n, a, LINE, out);
        else
            average_line(low, high, next, columns, g.n, a, LINE, out);
}

/* The size of equal pieces of at most `most` that make up n; the last may overlap the one before. */
ALWAYS_INLINE int64_t piece(int64_t n, int64_t most) {
    const int64_t pieces = (n + most - 1) / most;
    return (n + pieces - 1) / pieces;
}

ALWAYS_INLINE int64_t piece_start(int64_t i, int64_t size, int64_t n) { return i + size <= n ? i : n - size; }

ALWAYS_INLINE int overlapping(const pyq_pool *p, const pyq_window *w, window_run run) {
    const int64_t channels = p->channels;
    if (run.count == 1 || run.stride == 0) return 0;
    if (w->step != channels || run.stride >= w->columns * channels) return 0;
    if (channels % 2 || w->columns > MOST_COLUMNS) return 0;
    return channels >= 32 || (run.stride == channels && run.count * channels >= 32);
}

/* w: the first window of the run. */
static void average_run(const pyq_window *w, int64_t channels, window_run run, const averager *a, int is_signed,
                        uint8_t *out) {
    const int64_t blocks = (piece(channels, BLOCK_CHANNELS) + 31) / 32 * 32, n = blocks < channels ? blocks : channels;
    const int64_t stride = run.stride / channels; /* in columns */
    const int64_t count = piece(run.count, (COLUMN_SUMS / n - w->columns) / stride + 1);
    const int64_t columns = (count - 1) * stride + w->columns;
    const int whole = n == channels;
    const lines in = whole ? (lines){1, columns * n, 0, 0} : (lines){columns, n, channels, n};
    const lines through = whole && stride == 1 ? (lines){1, count * n, 0, 0} : (lines){count, n, stride * n, channels};
    column_sums sums;
    for (int64_t c = 0; c < run.count; c += count)
        for (int64_t i = 0; i < channels; i += n) {
            const int64_t first = piece_start(c, count, run.count), channel = piece_start(i, n, channels);
            sum_lines(w->first + first * run.stride + channel, w, in, is_signed, &sums);
            average_lines(&sums, n, w->columns, through, a, out + first * channels + channel);
        }
}

#endif

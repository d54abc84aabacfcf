/* What the portable and the SIMD version of the pools share (pool.c). */
#ifndef PYQ_POOL_H
#define PYQ_POOL_H

#include "elementwise.h"
#include "pyq.h"

enum {
    PYQ_POOL_BLOCK = 32,    /* channels that are reduced together */
    PYQ_POOL_PENDING = 257, /* bytes whose sum is sure to fit 16 bits */
    PYQ_POOL_SMALL = 128,   /* differences of two bytes whose sum is sure to fit 16 bits, with its sign */
};

/* The elements of one window: `rows` bytes behind `first`, each with `columns` pixels that are `step` bytes apart. */
typedef struct {
    const uint8_t *first;
    const int64_t *rows;
    int64_t row_count, columns, step;
} pyq_window;

typedef struct {
    const pyq_pool *pool;
    const pyq_affine *from; /* the rest is for averages only */
    pyq_quantizer to;
    const pyq_fixed_mean *fixed;
    uint8_t *out;
    int64_t rows_per_task;
} pyq_pool_job;

/* The window of the first column of a row of the output. */
static inline pyq_window pyq_row_window(const pyq_pool *p, int64_t row) {
    const int64_t r = row % p->rows, start = p->starts[r];
    return (pyq_window){.first = p->x + row / p->rows * p->image_size,
                        .rows = p->offsets + start,
                        .row_count = p->starts[r + 1] - start,
                        .step = p->step};
}

static inline void pyq_choose_column(pyq_window *w, const uint8_t *image, const pyq_pool *p, int64_t column) {
    w->first = image + p->firsts[column];
    w->columns = p->taps[column];
}

/* Whether the channels can be read in whole blocks without leaving the images. */
static inline int pyq_readable(const pyq_pool *p, const pyq_window *w, int64_t channels) {
    const uint8_t *last = w->first + w->rows[w->row_count - 1] + (w->columns - 1) * w->step;
    const int64_t whole = (channels + PYQ_POOL_BLOCK - 1) / PYQ_POOL_BLOCK * PYQ_POOL_BLOCK;
    return last + whole <= p->x + p->images * p->image_size;
}

/* pool.c: one pixel of the output */
void pyq_max_pixel(const pyq_pool *p, const pyq_window *w, uint8_t *out);
void pyq_average_pixel(const pyq_pool_job *j, const pyq_window *w, float count, uint8_t *out);

/* x86/avx2_pool.c: a row of the output; sums of readable channels, with room for whole blocks */
void pyq_avx2_max_row(const pyq_pool_job *j, int64_t row, uint8_t *out);
void pyq_avx2_average_row(const pyq_pool_job *j, int64_t row, uint8_t *out);
void pyq_avx2_window_sum(const pyq_window *w, uint8_t flip, int64_t channels, int32_t *sums);

#endif

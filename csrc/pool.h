/* What the portable and the SIMD version of the pools share (pool.c). */
#ifndef PYQ_POOL_H
#define PYQ_POOL_H

#include "pyq.h"

enum {
    PYQ_POOL_BLOCK = 32,    /* channels that are reduced together */
    PYQ_POOL_PENDING = 256, /* bytes whose sum is sure to fit 16 bits */
};

/* The elements of one window: `rows` bytes behind `first`, each with `columns` pixels that are `step` bytes apart. */
typedef struct {
    const uint8_t *first;
    const int64_t *rows;
    int64_t row_count, columns, step;
} pyq_window;

/* x86/avx2_pool.c: reads whole blocks; sums has room for whole blocks */
void pyq_avx2_window_max(const pyq_window *w, uint8_t flip, int64_t channels, uint8_t *out);
void pyq_avx2_window_sum(const pyq_window *w, uint8_t flip, int64_t channels, int32_t *sums);

#endif

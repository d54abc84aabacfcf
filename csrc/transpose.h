/* What the portable and the SIMD version of the transpose share (transpose.c). */
#ifndef PYQ_TRANSPOSE_H
#define PYQ_TRANSPOSE_H

#include <stdint.h>

/* Part of a matrix: row r, column c is at x[r * x_stride + c] and goes to out[c * out_stride + r]; strides in elements.
 * A row may be read, and a column written, up to the end of the part or of what follows it in the same row. */
typedef struct {
    const uint8_t *x;
    uint8_t *out;
    int64_t rows, columns, x_stride, out_stride;
} pyq_part;

/* x86/avx2_transpose.c */
void pyq_avx2_transpose_bytes(const pyq_part *p);
void pyq_avx2_transpose_words(const pyq_part *p);

/* Rows and columns from the given ones on, one element at a time. */
void pyq_transpose_bytes(const pyq_part *p, int64_t first_row, int64_t first_column);
void pyq_transpose_words(const pyq_part *p, int64_t first_row, int64_t first_column);

#endif

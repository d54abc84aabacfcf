/* What the portable and the SIMD version of the element-wise operations share (elementwise.c). */
#ifndef PYQ_ELEMENTWISE_H
#define PYQ_ELEMENTWISE_H

#include "pyq.h"

enum { PYQ_ADD, PYQ_SUB, PYQ_MUL, PYQ_DIV };

/* Arithmetic on lines of n elements: an operand with stride 0 is the same along a line, else its stride is 1; a line of
 * it begins a_line, or b_line, bytes behind the one before, those of the result out_line. */
typedef struct {
    int64_t lines, a_line, b_line, out_line;
    int64_t n, a_stride, b_stride;
    const pyq_arithmetic *arithmetic;
} pyq_binary_lines;

/* Of the byte as a number from 0 to 255. */
static inline int32_t pyq_unsigned_zero(const pyq_affine *p) { return p->zero_point + (p->is_signed ? 128 : 0); }

/* x86/avx2_elementwise.c */
int32_t pyq_avx2_quantize(const float *x, uint8_t *out, int64_t n, const pyq_quantizer *to);

/* x86/avx2_binary.c */
void pyq_avx2_prepare_binary(pyq_arithmetic *p);
void pyq_avx2_binary_lines(const pyq_binary_lines *l, const uint8_t *a, const uint8_t *b, uint8_t *out);

#endif

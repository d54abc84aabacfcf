/* What the portable and the SIMD version of the element-wise operations share (elementwise.c). */
#ifndef PYQ_ELEMENTWISE_H
#define PYQ_ELEMENTWISE_H

#include "pyq.h"

enum { PYQ_ADD, PYQ_SUB, PYQ_MUL, PYQ_DIV };

/* y = rne(clamp(x / scale, low, high)) + zero_point; low and high have the zero point subtracted. */
typedef struct {
    float scale, low, high;
    int32_t zero_point;
} pyq_quantizer;

/* How a sum or a difference is found in fixed point (x86/avx2_binary.c), of bytes without sign:
 *     (a * a_factor + b * b_factor + offset) >> fraction_bits,  unless its fraction is at most `close`. */
typedef struct {
    int32_t fraction_bits; /* 0: not so */
    int32_t a_factor, b_factor, offset, close;
} pyq_fixed_sum;

/* Arithmetic on lines of n elements: an operand with stride 0 is the same along a line, else its stride is 1; a line of
 * it begins a_line, or b_line, bytes behind the one before, those of the result out_line. */
typedef struct {
    int64_t lines, a_line, b_line, out_line;
    int64_t n, a_stride, b_stride;
    int32_t op;
    pyq_affine a, b;
    pyq_quantizer out;
    pyq_fixed_sum fixed;
    float product_factor; /* what products of differences are multiplied by (x86/avx2_product.h); 0: not so */
} pyq_binary_lines;

/* Of the byte as a number from 0 to 255. */
static inline int32_t pyq_unsigned_zero(const pyq_affine *p) { return p->zero_point + (p->is_signed ? 128 : 0); }

/* x86/avx2_elementwise.c */
int32_t pyq_avx2_quantize(const float *x, uint8_t *out, int64_t n, const pyq_quantizer *to);

/* x86/avx2_binary.c */
pyq_fixed_sum pyq_avx2_fixed_sum(const pyq_binary_lines *l);
int32_t pyq_avx2_product_is_exact(const pyq_binary_lines *l);
void pyq_avx2_binary_lines(const pyq_binary_lines *l, const uint8_t *a, const uint8_t *b, uint8_t *out);

#endif

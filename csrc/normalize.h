/* What the portable and the SIMD version of softmax share (normalize.c). */
#ifndef PYQ_NORMALIZE_H
#define PYQ_NORMALIZE_H

#include <stdint.h>

enum {
    PYQ_SUM_LANES = 16,   /* element i is added to lane i % 16 */
    PYQ_SUM_BLOCK = 1024, /* of so many elements; then the lanes are halved, and added to the total */
};

/* Of e^t: t = n ln 2 + r, e^r = 1 + r + r^2 q(r). */
#define PYQ_EXP_LOWEST (-88.0f)
#define PYQ_EXP_MAGIC 12582912.0f /* 1.5 * 2^23: n is then in the last bits */
#define PYQ_LOG2_E 1.44269504f
#define PYQ_LN2_HIGH 0.693359375f
#define PYQ_LN2_LOW (-2.12194440e-4f)
#define PYQ_EXP_Q4 1.3814321e-3f
#define PYQ_EXP_Q3 8.3688516e-3f
#define PYQ_EXP_Q2 4.1668400e-2f
#define PYQ_EXP_Q1 1.6666520e-1f
#define PYQ_EXP_Q0 4.9999994e-1f

/* x86/avx2_softmax.c */
void pyq_avx2_softmax(const float *x, float *out, int64_t n);

#endif

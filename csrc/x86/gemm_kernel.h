/* A GEMM microkernel from its body, for those that may write to an output in place. */
#ifndef PYQ_GEMM_KERNEL_H
#define PYQ_GEMM_KERNEL_H

#include "../pyq.h"

/* As pyq_gemm_fn has them. */
#define PYQ_GEMM_PARAMETERS \
    int32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const void *w, int64_t steps, int64_t how

/* `body`, an inline function of these and of the stride, is compiled twice: for rows that follow each other, whose
 * addresses need no instructions, and, out of line, for others. In one function these would make the compiler spill: a
 * product of four steps took 6 % longer. */
#define PYQ_GEMM_KERNEL(target, name, body)                                          \
    __attribute__((noinline)) target static void name##_apart(PYQ_GEMM_PARAMETERS) { \
        body(tile, rows, offsets, w, steps, how, how / PYQ_STRIDE);                  \
    }                                                                                \
    target void name(PYQ_GEMM_PARAMETERS) {                                          \
        if (how / PYQ_STRIDE == PYQ_NR)                                              \
            body(tile, rows, offsets, w, steps, how, PYQ_NR);                        \
        else                                                                         \
            name##_apart(tile, rows, offsets, w, steps, how);                        \
    }

#endif

/* pyq_run in two steps, for callers that need memory of their own beside it. */
#ifndef PYQ_LOWER_H
#define PYQ_LOWER_H

#include "pyq.h"

/* `size` bytes, aligned to 64, that are this thread's until it asks again; NULL when there are none. */
uint8_t *pyq_reserve(size_t size);

/* What pyq_run_in needs; it returns what pyq_run does. */
size_t pyq_memory_of(const pyq_call *call, int64_t images);
int32_t pyq_run_in(uint8_t *memory, const pyq_call *call, const void *x, int64_t images, const uint8_t *residual,
                   void *out);

#endif

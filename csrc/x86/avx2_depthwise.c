/* AVX2 depthwise kernels: vpmaddwd and vpaddd. Instructions, exactness and peak: avx2_window.h. */
#include "../isa.h"

#if PYQ_HAVE_AVX2
#include "avx2_window.h"

#define DEFINE(name, kernel, stride, mr)                                                                          \
    TARGET_AVX2 void pyq_avx2_##name(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, void *out) { \
        window_of_type(t, pixels, tiles, out, kernel, stride, mr, 0);                                             \
    }
EVERY_TILE(DEFINE)

#endif

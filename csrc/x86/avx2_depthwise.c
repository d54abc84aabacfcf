/* AVX2 depthwise kernels: vpmaddwd and vpaddd. Instructions, exactness and peak: avx2_window.h. */
#include "../isa.h"

#if PYQ_HAVE_AVX2
#include "avx2_window.h"

#define DEFINE(name, kernel, stride, mr)                                                           \
    TARGET_AVX2 void pyq_avx2_##name(const pyq_taps *t, const uint8_t *const *pixels, void *out) { \
        window_of_type(t, pixels, out, kernel, stride, mr, 0);                                     \
    }
DEFINE(window3_1x16, 3, 1, 1)
DEFINE(window3s1_2x16, 3, 1, 2)
DEFINE(window3s1_3x16, 3, 1, 3)
DEFINE(window3s1_4x16, 3, 1, 4)
DEFINE(window3s2_2x16, 3, 2, 2)
DEFINE(window3s2_3x16, 3, 2, 3)
DEFINE(window3s2_4x16, 3, 2, 4)
DEFINE(window5_1x16, 5, 1, 1)
DEFINE(window5s1_2x16, 5, 1, 2)
DEFINE(window5s1_3x16, 5, 1, 3)
DEFINE(window5s1_4x16, 5, 1, 4)
DEFINE(window5s2_2x16, 5, 2, 2)
DEFINE(window5s2_3x16, 5, 2, 3)
DEFINE(window5s2_4x16, 5, 2, 4)

#endif

/* AVX-512 VNNI depthwise kernels: vpdpwssd, and twice as many registers. Instructions, exactness and peak:
 * avx2_window.h. Vectors of 256 bits, because a step has 16 channels.
 */
#include "../isa.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx2_window.h"

#define DEFINE(name, kernel, stride, mr)                                                                         \
    TARGET_AVX512VNNI void pyq_avx512vnni_##name(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, \
                                                 void *out) {                                                    \
        window_of_type(t, pixels, tiles, out, kernel, stride, mr, 1);                                            \
    }
EVERY_TILE(DEFINE)

#endif

/* Quantize with AVX2, 32 elements at a time: avx2_quantize.h has the instructions, and why they are exact.
 *
 * Peak: 8 numbers by 9 instructions, and 4 more for each 32.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include <string.h>

#include "avx2_quantize.h"

ALWAYS_INLINE TARGET_AVX2 __m256i quantize_32(const float *x, const quantizer *q, int32_t *nan) {
    __m256 reals[4];
    UNROLL for (int i = 0; i < 4; i++) reals[i] = _mm256_loadu_ps(x + 8 * i);
    return quantized_32(reals, q, nan);
}

TARGET_AVX2 int32_t pyq_avx2_quantize(const float *x, uint8_t *out, int64_t n, const pyq_quantizer *to) {
    const quantizer q = load_quantizer(to);
    int32_t nan = 0;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) _mm256_storeu_si256((__m256i *)(out + i), quantize_32(x + i, &q, &nan));
    if (i < n) {
        float rest[32] = {0};
        uint8_t bytes[32];
        memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
        _mm256_storeu_si256((__m256i *)bytes, quantize_32(rest, &q, &nan));
        memcpy(out + i, bytes, (size_t)(n - i));
    }
    return nan;
}

#endif

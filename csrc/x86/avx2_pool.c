/* Maximum and sum over a window, 32 channels at a time.
 *
 * Maximum: vpmaxub with memory, for int8 after vpxor has moved the bytes to 0 .. 255: 1 or 2 instructions for 32
 * elements. Sum: vpmovzxbw and vpaddw twice, for 256 elements each, before the 16 bits could overflow and are added to
 * 32-bit sums. Both are exact. The bound is the loads: a window of 3 x 3 reads every element 9 times, from the L1 cache.
 */
#include "../isa.h"
#include "../pool.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <string.h>

/* Several vectors side by side, so that the loops cost little. */
ALWAYS_INLINE TARGET_AVX2 void blocks_max(const pyq_window *w, int64_t channel, __m256i top, uint8_t *out,
                                          const int vectors) {
    __m256i most[4];
    UNROLL for (int i = 0; i < vectors; i++) most[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < w->row_count; r++) {
        const uint8_t *x = w->first + w->rows[r] + channel;
        for (int64_t c = 0; c < w->columns; c++, x += w->step)
            UNROLL for (int i = 0; i < vectors; i++) {
                const __m256i bytes = _mm256_loadu_si256((const __m256i *)x + i);
                most[i] = _mm256_max_epu8(most[i], _mm256_xor_si256(bytes, top));
            }
    }
    UNROLL for (int i = 0; i < vectors; i++) _mm256_storeu_si256((__m256i *)out + i, _mm256_xor_si256(most[i], top));
}

TARGET_AVX2 void pyq_avx2_window_max(const pyq_window *window, uint8_t flip, int64_t channels, uint8_t *out) {
    const pyq_window w = *window; /* a byte stored may alias it */
    const __m256i top = _mm256_set1_epi8((char)flip);
    int64_t i = 0;
    for (; i + 128 <= channels; i += 128) blocks_max(&w, i, top, out + i, 4);
    for (; i + 64 <= channels; i += 64) blocks_max(&w, i, top, out + i, 2);
    for (; i + 32 <= channels; i += 32) blocks_max(&w, i, top, out + i, 1);
    if (i < channels) {
        uint8_t rest[32];
        blocks_max(&w, i, top, rest, 1);
        memcpy(out + i, rest, (size_t)(channels - i));
    }
}

typedef struct {
    __m256i words[2];
    __m256i sums[4];
} accumulators;

ALWAYS_INLINE TARGET_AVX2 void flush(accumulators *a) {
    UNROLL for (int i = 0; i < 4; i++) {
        const __m256i words = a->words[i / 2];
        const __m128i half = i % 2 ? _mm256_extracti128_si256(words, 1) : _mm256_castsi256_si128(words);
        a->sums[i] = _mm256_add_epi32(a->sums[i], _mm256_cvtepu16_epi32(half));
    }
    a->words[0] = a->words[1] = _mm256_setzero_si256();
}

ALWAYS_INLINE TARGET_AVX2 accumulators block_sum(const pyq_window *w, int64_t channel, __m128i top) {
    const __m256i zero = _mm256_setzero_si256();
    accumulators a = {{zero, zero}, {zero, zero, zero, zero}};
    int pending = 0;
    for (int64_t r = 0; r < w->row_count; r++) {
        const uint8_t *x = w->first + w->rows[r] + channel;
        for (int64_t c = 0; c < w->columns; c++, x += w->step) {
            UNROLL for (int i = 0; i < 2; i++) {
                const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)x + i), top);
                a.words[i] = _mm256_add_epi16(a.words[i], _mm256_cvtepu8_epi16(bytes));
            }
            if (++pending == PYQ_POOL_PENDING) flush(&a), pending = 0;
        }
    }
    flush(&a);
    return a;
}

TARGET_AVX2 void pyq_avx2_window_sum(const pyq_window *w, uint8_t flip, int64_t channels, int32_t *sums) {
    const __m128i top = _mm_set1_epi8((char)flip);
    for (int64_t channel = 0; channel < channels; channel += 32, sums += 32) {
        const accumulators a = block_sum(w, channel, top);
        UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)sums + i, a.sums[i]);
    }
}

#endif

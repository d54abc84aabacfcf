/* AVX2 microkernels: PYQ_NR = 16 columns in two accumulators of eight int32 lanes per row.
 *
 * pairs16    a = vpbroadcastd(two int16 activations); acc += vpmaddwd(a, w), twice for a quad
 *            Exact: [0, 255] * [-255, 255]; a pair sums to at most 2 * 255 * 255 in 32 bits.
 *            Per row and quad (64 products) 2 broadcasts, 4 multiplies, 4 additions: with two multiplies and four
 *            vector operations a cycle 32 MAC/cycle; additions take multiply slots, 26 is what is reached.
 * pairs8w    the same with w = vpmovsxbw(int8 weights): four more operations for a quad of all rows, half the memory.
 * quads32    weights and activations are quads of bytes: of each the even bytes (for activations vpand), then the odd
 *            ones (vpsrlw), as pairs of int16, and vpmaddwd as above. One more operation for 32 products.
 * quads8     acc += vpmaddwd(vpmaddubsw(q, w), 1)
 *            Per row and quad 4 multiplies, 2 additions: 32 MAC/cycle; 30 is reached.
 * quads8p2   s = vpmaddubsw(q0, w0) + vpmaddubsw(q1, w1) in 16 bits; acc += vpmaddwd(s, 1)
 *            Per row and group (128 products) 6 multiplies at 2 a cycle: 42.7 MAC/cycle.
 * quads8p4   the same for four quads: 10 multiplies for 256 products, 51.2 MAC/cycle; and 9 loads, at 2 a cycle 57.
 *            quads8*: exact, because the pack proved for every 16-bit lane of a group that amax * (sum of its weights of
 *            one sign) <= 32767, so neither vpmaddubsw nor vpaddw can saturate or wrap.
 * taps16     vpmovzxbw(punpcklbw(tap0, tap1)) gives (tap0, tap1) of a channel in one 32-bit lane; vpmaddwd with the
 *            two weights. Exact as pairs16. 8 vector operations for 32 products: 16 MAC/cycle.
 *
 * Additions of int32 lanes wrap modulo 2^32, as the contract asks. `mr` is a constant in every caller, so the loops
 * over rows unroll and the accumulators live in registers (tile heights stop where they would spill).
 */
#include "../isa.h"
#include "../pyq.h"
#include "gemm_kernel.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <string.h>

enum { AHEAD = 3072 }; /* bytes */

/* vpbroadcastd from memory: costs a load port, no shuffle. */
ALWAYS_INLINE TARGET_AVX2 __m256i broadcast_quad(const uint8_t *address) {
    int32_t quad;
    memcpy(&quad, address, sizeof quad);
    return _mm256_set1_epi32(quad);
}

ALWAYS_INLINE TARGET_AVX2 __m256i load(const void *address) { return _mm256_loadu_si256((const __m256i *)address); }

ALWAYS_INLINE TARGET_AVX2 void begin(__m256i (*acc)[2], const int32_t *tile, const int mr, int64_t how,
                                     int64_t stride) {
    if (how & PYQ_ADD_TO_TILE)
        UNROLL for (int r = 0; r < mr; r++, tile += stride) acc[r][0] = load(tile), acc[r][1] = load(tile + 8);
    else
        UNROLL for (int r = 0; r < mr; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
}

ALWAYS_INLINE TARGET_AVX2 void end(int32_t *tile, __m256i (*acc)[2], const int mr, int64_t stride) {
    if (!__builtin_constant_p(stride)) __asm__("" : "+r"(stride)); /* else addresses are made before the loop */
    UNROLL for (int r = 0; r < mr; r++, tile += stride) {
        _mm256_storeu_si256((__m256i *)tile, acc[r][0]);
        _mm256_storeu_si256((__m256i *)(tile + 8), acc[r][1]);
    }
}

/* Ask for the lines of weights that are used AHEAD bytes later. Rows take so long that too few steps are under way to
 * keep memory busy; the loads of one row run ahead far enough by themselves, and are faster alone. */
ALWAYS_INLINE TARGET_AVX2 void fetch(const void *w, const int lines, int64_t how, const int mr) {
    if (mr > 1 && how & PYQ_FETCH_AHEAD)
        UNROLL for (int i = 0; i < lines; i++) _mm_prefetch((const char *)w + AHEAD + 64 * i, _MM_HINT_T0);
}

/* acc0 += a * w0; acc1 += a * w1. In assembly from the broadcast on, because compilers that schedule the intrinsics keep
 * more products alive than the four registers beside twelve accumulators can hold, and spill: 64 instead of 79 GMAC/s. */
#define MULTIPLY_ADD                              \
    "vpmaddwd %[w0], %[a], %[product]\n\t"        \
    "vpmaddwd %[w1], %[a], %[a]\n\t"              \
    "vpaddd %[product], %[acc0], %[acc0]\n\t"     \
    "vpaddd %[a], %[acc1], %[acc1]"

ALWAYS_INLINE TARGET_AVX2 void multiply_add_pair(__m256i *acc0, __m256i *acc1, const uint8_t *pair, __m256i w0,
                                                 __m256i w1) {
    __m256i a, product;
    __asm__("vpbroadcastd %[pair], %[a]\n\t" MULTIPLY_ADD
            : [acc0] "+x"(*acc0), [acc1] "+x"(*acc1), [a] "=&x"(a), [product] "=&x"(product)
            : [pair] "m"(*(const int32_t *)pair), [w0] "x"(w0), [w1] "x"(w1));
}

ALWAYS_INLINE TARGET_AVX2 void pairs16(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                       const int16_t *w, int64_t steps, int64_t how, const int mr) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = 2 * (int64_t)offsets[s];
        fetch(w, 2, how, mr);
        __m256i w0 = load(w), w1 = load(w + 16);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset, w0, w1);
        w0 = load(w + 32), w1 = load(w + 48);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset + 4, w0, w1);
    }
}

ALWAYS_INLINE TARGET_AVX2 __m256i load_widened(const int8_t *w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
}

ALWAYS_INLINE TARGET_AVX2 void pairs8w(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                       const int8_t *w, int64_t steps, int64_t how, const int mr) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = 2 * (int64_t)offsets[s];
        fetch(w, 1, how, mr);
        __m256i w0 = load_widened(w), w1 = load_widened(w + 16);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset, w0, w1);
        w0 = load_widened(w + 32), w1 = load_widened(w + 48);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_pair(&acc[r][0], &acc[r][1], row[r] + offset + 4, w0, w1);
    }
}

/* An operand in memory: there is no register left. */
static const uint8_t EVEN_BYTES[32] __attribute__((aligned(32))) = {
    255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0,
    255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0};

/* As multiply_add_pair, of the even bytes of a quad, and of the odd ones. */
ALWAYS_INLINE TARGET_AVX2 void multiply_add_even(__m256i *acc0, __m256i *acc1, const uint8_t *quad, __m256i w0,
                                                 __m256i w1) {
    __m256i a, product;
    __asm__("vpbroadcastd %[quad], %[a]\n\t"
            "vpand %[even], %[a], %[a]\n\t" MULTIPLY_ADD
            : [acc0] "+x"(*acc0), [acc1] "+x"(*acc1), [a] "=&x"(a), [product] "=&x"(product)
            : [quad] "m"(*(const int32_t *)quad), [even] "m"(*(const __m256i *)EVEN_BYTES), [w0] "x"(w0), [w1] "x"(w1));
}

ALWAYS_INLINE TARGET_AVX2 void multiply_add_odd(__m256i *acc0, __m256i *acc1, const uint8_t *quad, __m256i w0,
                                                __m256i w1) {
    __m256i a, product;
    __asm__("vpbroadcastd %[quad], %[a]\n\t"
            "vpsrlw $8, %[a], %[a]\n\t" MULTIPLY_ADD
            : [acc0] "+x"(*acc0), [acc1] "+x"(*acc1), [a] "=&x"(a), [product] "=&x"(product)
            : [quad] "m"(*(const int32_t *)quad), [w0] "x"(w0), [w1] "x"(w1));
}

ALWAYS_INLINE TARGET_AVX2 __m256i even_bytes(const int8_t *w) {
    return _mm256_srai_epi16(_mm256_slli_epi16(load(w), 8), 8);
}

ALWAYS_INLINE TARGET_AVX2 __m256i odd_bytes(const int8_t *w) { return _mm256_srai_epi16(load(w), 8); }

ALWAYS_INLINE TARGET_AVX2 void quads32(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                       const int8_t *w, int64_t steps, int64_t how, const int mr) {
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = offsets[s];
        fetch(w, 1, how, mr);
        __m256i w0 = even_bytes(w), w1 = even_bytes(w + 32);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_even(&acc[r][0], &acc[r][1], row[r] + offset, w0, w1);
        w0 = odd_bytes(w), w1 = odd_bytes(w + 32);
        UNROLL for (int r = 0; r < mr; r++) multiply_add_odd(&acc[r][0], &acc[r][1], row[r] + offset, w0, w1);
    }
}

/* The offset of step `s`, in quads if so told, for one row only. */
ALWAYS_INLINE TARGET_AVX2 int64_t at(const int32_t *offsets, int64_t s, int64_t how, const int mr) {
    return mr == 1 && how & PYQ_IN_QUADS ? 4 * (int64_t)((const uint16_t *)offsets)[s] : offsets[s];
}

ALWAYS_INLINE TARGET_AVX2 void quads8(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                      const int8_t *w, int64_t steps, int64_t how, const int mr) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t s = 0; s < steps; s++, w += 4 * PYQ_NR) {
        const int64_t offset = at(offsets, s, how, mr);
        fetch(w, 1, how, mr);
        const __m256i w0 = load(w), w1 = load(w + 32);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m256i q = broadcast_quad(row[r] + offset);
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(q, w0), ones));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(_mm256_maddubs_epi16(q, w1), ones));
        }
    }
}

ALWAYS_INLINE TARGET_AVX2 void quads8p2(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                        const int8_t *w, int64_t steps, int64_t how, const int mr) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t s = 0; s < steps; s += 2, w += 8 * PYQ_NR) {
        const int64_t offset0 = offsets[s], offset1 = offsets[s + 1];
        fetch(w, 2, how, mr);
        const __m256i w00 = load(w), w01 = load(w + 32), w10 = load(w + 64), w11 = load(w + 96);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m256i q0 = broadcast_quad(row[r] + offset0), q1 = broadcast_quad(row[r] + offset1);
            const __m256i s0 = _mm256_add_epi16(_mm256_maddubs_epi16(q0, w00), _mm256_maddubs_epi16(q1, w10));
            const __m256i s1 = _mm256_add_epi16(_mm256_maddubs_epi16(q0, w01), _mm256_maddubs_epi16(q1, w11));
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(s0, ones));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(s1, ones));
        }
    }
}

/* One row's four quads, three of eight weight registers kept for all rows and the others read as operands: more would
 * not fit beside eight accumulators. In assembly, because compilers that schedule this spill: 85 instead of 132. */
ALWAYS_INLINE TARGET_AVX2 void multiply_add_four(__m256i *acc, const uint8_t *q0, const uint8_t *q1, const uint8_t *q2,
                                                 const uint8_t *q3, const __m256i *kept, const int8_t *w,
                                                 __m256i ones) {
    __m256i left, right, quad, product;
    __asm__("vpbroadcastd %[q0], %[quad]\n\t"
            "vpmaddubsw %[kept0], %[quad], %[left]\n\t"
            "vpmaddubsw %[kept1], %[quad], %[right]\n\t"
            "vpbroadcastd %[q1], %[quad]\n\t"
            "vpmaddubsw %[kept2], %[quad], %[product]\n\t"
            "vpaddw %[product], %[left], %[left]\n\t"
            "vpmaddubsw 96(%[w]), %[quad], %[quad]\n\t"
            "vpaddw %[quad], %[right], %[right]\n\t"
            "vpbroadcastd %[q2], %[quad]\n\t"
            "vpmaddubsw 128(%[w]), %[quad], %[product]\n\t"
            "vpaddw %[product], %[left], %[left]\n\t"
            "vpmaddubsw 160(%[w]), %[quad], %[quad]\n\t"
            "vpaddw %[quad], %[right], %[right]\n\t"
            "vpbroadcastd %[q3], %[quad]\n\t"
            "vpmaddubsw 192(%[w]), %[quad], %[product]\n\t"
            "vpaddw %[product], %[left], %[left]\n\t"
            "vpmaddubsw 224(%[w]), %[quad], %[quad]\n\t"
            "vpaddw %[quad], %[right], %[right]\n\t"
            "vpmaddwd %[ones], %[left], %[left]\n\t"
            "vpaddd %[left], %[acc0], %[acc0]\n\t"
            "vpmaddwd %[ones], %[right], %[right]\n\t"
            "vpaddd %[right], %[acc1], %[acc1]"
            : [left] "=&x"(left), [right] "=&x"(right), [quad] "=&x"(quad), [product] "=&x"(product),
              [acc0] "+x"(acc[0]), [acc1] "+x"(acc[1])
            : [q0] "m"(*(const int32_t *)q0), [q1] "m"(*(const int32_t *)q1), [q2] "m"(*(const int32_t *)q2),
              [q3] "m"(*(const int32_t *)q3), [kept0] "x"(kept[0]), [kept1] "x"(kept[1]), [kept2] "x"(kept[2]),
              [w] "r"(w), [ones] "x"(ones), "m"(*(const int8_t(*)[256])w));
}

ALWAYS_INLINE TARGET_AVX2 void quads8p4(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                        const int8_t *w, int64_t steps, int64_t how, const int mr) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t s = 0; s < steps; s += 4, w += 16 * PYQ_NR) {
        const int64_t o0 = offsets[s], o1 = offsets[s + 1], o2 = offsets[s + 2], o3 = offsets[s + 3];
        fetch(w, 4, how, mr);
        const __m256i kept[3] = {load(w), load(w + 32), load(w + 64)};
        UNROLL for (int r = 0; r < mr; r++)
            multiply_add_four(acc[r], row[r] + o0, row[r] + o1, row[r] + o2, row[r] + o3, kept, w, ones);
    }
}

ALWAYS_INLINE TARGET_AVX2 void taps16(__m256i (*acc)[2], const uint8_t *const *row, const int32_t *offsets,
                                      const int16_t *w, int64_t steps, int64_t how, const int mr) {
    (void)how; /* the weights are few */
    for (int64_t s = 0; s < steps; s += 2, w += 2 * PYQ_NR) {
        const int64_t offset0 = offsets[s], offset1 = offsets[s + 1];
        const __m256i w0 = load(w), w1 = load(w + 16);
        UNROLL for (int r = 0; r < mr; r++) {
            const __m128i tap0 = _mm_loadu_si128((const __m128i *)(row[r] + offset0));
            const __m128i tap1 = _mm_loadu_si128((const __m128i *)(row[r] + offset1));
            const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(tap0, tap1));
            const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(tap0, tap1));
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(low, w0));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(high, w1));
        }
    }
}

#define DEFINE(layout, mr, weight)                                                      \
    ALWAYS_INLINE TARGET_AVX2 void layout##_##mr(PYQ_GEMM_PARAMETERS, int64_t stride) { \
        __m256i acc[mr][2];                                                             \
        const uint8_t *row[mr];                                                         \
        UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];                           \
        begin(acc, tile, mr, how, stride);                                              \
        layout(acc, row, offsets, (const weight *)w, steps, how, mr);                   \
        end(tile, acc, mr, stride);                                                     \
    }                                                                                   \
    PYQ_GEMM_KERNEL(TARGET_AVX2, pyq_avx2_##layout##_##mr##x16, layout##_##mr)
DEFINE(pairs16, 1, int16_t)
DEFINE(pairs16, 2, int16_t)
DEFINE(pairs16, 3, int16_t)
DEFINE(pairs16, 4, int16_t)
DEFINE(pairs16, 6, int16_t)
DEFINE(pairs8w, 1, int8_t)
DEFINE(pairs8w, 2, int8_t)
DEFINE(pairs8w, 3, int8_t)
DEFINE(pairs8w, 4, int8_t)
DEFINE(pairs8w, 5, int8_t)
DEFINE(pairs8w, 6, int8_t)
DEFINE(quads32, 1, int8_t)
DEFINE(quads32, 2, int8_t)
DEFINE(quads32, 3, int8_t)
DEFINE(quads32, 4, int8_t)
DEFINE(quads32, 5, int8_t)
DEFINE(quads32, 6, int8_t)
DEFINE(quads8, 1, int8_t)
DEFINE(quads8, 2, int8_t)
DEFINE(quads8, 3, int8_t)
DEFINE(quads8, 4, int8_t)
DEFINE(quads8p2, 1, int8_t)
DEFINE(quads8p2, 2, int8_t)
DEFINE(quads8p2, 3, int8_t)
DEFINE(quads8p2, 4, int8_t)
DEFINE(quads8p4, 1, int8_t)
DEFINE(quads8p4, 2, int8_t)
DEFINE(quads8p4, 3, int8_t)
DEFINE(quads8p4, 4, int8_t)
DEFINE(taps16, 1, int16_t)
DEFINE(taps16, 2, int16_t)
DEFINE(taps16, 4, int16_t)

#endif

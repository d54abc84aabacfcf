/* What the core can do at most, for benchmarks: loops on registers alone.
 *
 * All are in assembly: a compiler would shorten the sums, or move the products out of the loop. Twelve independent
 * chains cover the latency of the multipliers: two products a cycle, of 3 (Zen) to 5 cycles (Intel) each.
 */
#include "isa.h"
#include "pyq.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>

#define CHAINS 12
#define REPEAT_CHAINS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

/* vpmaddubsw: 32 products of bytes. */
TARGET_AVX2 static int64_t multiply_avx2(int64_t iterations) {
    __m256i x[CHAINS] = {0};
    for (int64_t i = 0; i < iterations; i++) {
#define MULTIPLY(chain) __asm__ volatile("vpmaddubsw %0, %0, %0" : "+x"(x[chain]));
        REPEAT_CHAINS(MULTIPLY)
#undef MULTIPLY
    }
    return iterations * CHAINS * 32;
}

/* vpmaddwd, 16 products of words, and the additions of their sums: the least that an exact product of 16-bit pairs takes.
 * Four operations a cycle would be 32 products. But additions wait for products and then take the multipliers' turns:
 * 26 on Zen 4, in whatever order, and 32 only if they do not use the products. */
TARGET_AVX2 static int64_t multiply_add_avx2(int64_t iterations) {
    __m256i sum[CHAINS] = {0}, first, second;
    const __m256i factor = _mm256_set1_epi16(1);
    for (int64_t i = 0; i < iterations; i++) {
#define MULTIPLY_ADD(chain)                                                                           \
    __asm__ volatile(                                                                                 \
        "vpmaddwd %4, %4, %0\n\tvpmaddwd %4, %4, %1\n\tvpaddd %0, %2, %2\n\tvpaddd %1, %3, %3"        \
        : "=&x"(first), "=&x"(second), "+x"(sum[chain]), "+x"(sum[(chain + CHAINS / 2) % CHAINS])     \
        : "x"(factor));
        REPEAT_CHAINS(MULTIPLY_ADD)
#undef MULTIPLY_ADD
    }
    return iterations * CHAINS * 32;
}

#if PYQ_HAVE_AVX512VNNI
/* vpdpbusd: 64 products of bytes, added up four by four. */
TARGET_AVX512VNNI static int64_t multiply_avx512vnni(int64_t iterations) {
    __m512i x[CHAINS] = {0};
    for (int64_t i = 0; i < iterations; i++) {
#define MULTIPLY(chain) __asm__ volatile("vpdpbusd %0, %0, %0" : "+x"(x[chain]));
        REPEAT_CHAINS(MULTIPLY)
#undef MULTIPLY
    }
    return iterations * CHAINS * 64;
}
#endif

/* pmaddwd: 8 products of 16-bit words, the most that SSE2, which every x86-64 has, can do. */
__attribute__((target("sse2"))) static int64_t multiply_scalar(int64_t iterations) {
    __m128i x[CHAINS] = {0};
    for (int64_t i = 0; i < iterations; i++) {
#define MULTIPLY(chain) __asm__ volatile("pmaddwd %0, %0" : "+x"(x[chain]));
        REPEAT_CHAINS(MULTIPLY)
#undef MULTIPLY
    }
    return iterations * CHAINS * 8;
}

/* A sum of two registers takes one cycle on every x86; one with a constant may take none. */
int64_t pyq_dependent_adds(int64_t iterations) {
    int64_t sum = 0;
    for (int64_t i = 0; i < iterations; i++)
        __asm__ volatile("add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\t"
                         "add %1, %0\n\tadd %1, %0\n\tadd %1, %0\n\tadd %1, %0"
                         : "+r"(sum)
                         : "r"(iterations));
    return iterations * 8;
}

int64_t pyq_multiplies(int32_t isa, int64_t iterations) {
    if (isa == PYQ_ISA_SCALAR) return multiply_scalar(iterations);
#if PYQ_HAVE_AVX512VNNI
    if (isa == PYQ_ISA_AVX512VNNI) return multiply_avx512vnni(iterations);
#endif
    return isa == PYQ_ISA_AVX2 ? multiply_avx2(iterations) : 0;
}

int64_t pyq_multiply_adds(int64_t iterations) {
    return pyq_isa_detected() >= PYQ_ISA_AVX2 ? multiply_add_avx2(iterations) : 0;
}
#else
int64_t pyq_multiply_adds(int64_t iterations) { return 0 * iterations; }
int64_t pyq_dependent_adds(int64_t iterations) { return 0 * iterations; }
int64_t pyq_multiplies(int32_t isa, int64_t iterations) { return 0 * isa * iterations; }
#endif

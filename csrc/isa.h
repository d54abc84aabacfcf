/* Which instruction sets this compiler can target function by function (no -m flags: one binary runs everywhere). */
#ifndef PYQ_ISA_H
#define PYQ_ISA_H

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__clang__) || __GNUC__ >= 5)
#define PYQ_HAVE_AVX2 1
#define TARGET_AVX2 __attribute__((target("avx2")))
#else
#define PYQ_HAVE_AVX2 0
#endif

#if PYQ_HAVE_AVX2 && ((defined(__clang__) && __clang_major__ >= 7) || (!defined(__clang__) && __GNUC__ >= 8))
#define PYQ_HAVE_AVX512VNNI 1
#define TARGET_AVX512VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define TARGET_AVX512VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")))
#else
#define PYQ_HAVE_AVX512VNNI 0
#endif

/* Before a loop over the rows of a tile: compilers keep an array in registers only if the loops over it unroll early. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif

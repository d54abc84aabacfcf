/* From sums of bytes to averages: 32 at a time.
 *
 * Sums: the words of two channels, and their high bytes by vpsrlw, are added up with vpaddw; 256 times the high bytes
 * taken from the words leaves the sum of the low bytes, all modulo 2^16. 3 instructions for 32 elements, 4 for int8,
 * whose bytes vpxor moves to 0 .. 255. A sum of 257 bytes still fits 16 bits.
 *
 * Averages of up to 128 elements in fixed point, 16 at a time, by numbers that the caller has proved to give the
 * integers of the numerics (pyq/fixed_point.py): vpmullw by the high half of a factor of 32 bits and vpmulhuw by its
 * low half add up to the high half of the product, of which the last 16 bits are known; vpaddw of an offset before and
 * one after it, vpsraw. vpacksswb saturates, vpshufb restores the order: 18 instructions for 32 averages. Where the
 * numerics have halves, which round up or down, the line goes through their upper integers, and a table of bits says
 * which are 1 less: 34.
 *
 * Where there are no such numbers: of every four channels one is widened by vpmaddwd or vpsrad, converted, multiplied
 * by the scale and divided twice.
 */
#ifndef PYQ_AVX2_AVERAGE_H
#define PYQ_AVX2_AVERAGE_H

#include <immintrin.h>

#include "../isa.h"
#include "../pool.h"

/* 16-bit sums of 32 channels, by the place of their byte in a word; `low` are those of the whole words. */
typedef struct {
    __m256i low, high;
} sums_32;

ALWAYS_INLINE TARGET_AVX2 void add_32(sums_32 *s, const uint8_t *x, const int is_signed) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)x);
    if (is_signed) bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
    s->low = _mm256_add_epi16(s->low, bytes);
    s->high = _mm256_add_epi16(s->high, _mm256_srli_epi16(bytes, 8));
}

ALWAYS_INLINE TARGET_AVX2 __m256i low_sums(const sums_32 *s) {
    return _mm256_sub_epi16(s->low, _mm256_slli_epi16(s->high, 8));
}

typedef enum { LINE, HALVES, DIVIDED } averager_way;

/* How the sums of windows become bytes. Bytes are found minus `base`, which takes the lowest to -128. */
typedef struct {
    __m256i addend, factor_high, factor_low, offset; /* fixed point */
    __m128i bits, rest;                              /* that are shifted out, and the others of 16 */
    __m256i down[2];
    __m256i zero;              /* else: zero point times elements */
    __m256 scale, count, step; /* the differences are multiplied by the first, and divided by the others */
    __m256 low, high;          /* bounds of the integers, minus their zero point */
    __m256i lower;             /* -low - 128 */
    __m256i highest, base;
    averager_way way;
} averager;

ALWAYS_INLINE TARGET_AVX2 __m256i load_twice(const uint8_t *x) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)x));
}

ALWAYS_INLINE TARGET_AVX2 averager load_averager(const pyq_pool_job *j, int64_t elements, float count,
                                                 const pyq_fixed_mean *f) {
    const int32_t low = (int32_t)j->to.low, high = (int32_t)j->to.high;
    const int32_t zero = (int32_t)elements * (j->from->zero_point + (j->pool->is_signed ? 128 : 0));
    return (averager){.addend = _mm256_set1_epi16((int16_t)f->addend),
                      .factor_high = _mm256_set1_epi16((int16_t)(f->factor >> 16)),
                      .factor_low = _mm256_set1_epi16((int16_t)f->factor),
                      .offset = _mm256_set1_epi16((int16_t)f->offset),
                      .bits = _mm_cvtsi32_si128((int32_t)f->bits),
                      .rest = _mm_cvtsi32_si128(16 - (int32_t)f->bits),
                      .down = {load_twice(f->down), load_twice(f->down + 16)},
                      .zero = _mm256_set1_epi16((int16_t)zero),
                      .scale = _mm256_set1_ps(j->from->scale),
                      .count = _mm256_set1_ps(count),
                      .step = _mm256_set1_ps(j->to.scale),
                      .low = _mm256_set1_ps(j->to.low),
                      .high = _mm256_set1_ps(j->to.high),
                      .lower = _mm256_set1_epi16((int16_t)(-low - 128)),
                      .highest = _mm256_set1_epi8((char)(high - low - 128)),
                      .base = _mm256_set1_epi8((char)(low + 128 + j->to.zero_point)),
                      .way = f->bits == 0 ? DIVIDED : f->halves ? HALVES : LINE};
}

/* Integers and fractions. */
ALWAYS_INLINE TARGET_AVX2 __m256i on_line(__m256i sums, const averager *a) {
    sums = _mm256_add_epi16(sums, a->addend);
    const __m256i high = _mm256_mullo_epi16(sums, a->factor_high), low = _mm256_mulhi_epu16(sums, a->factor_low);
    return _mm256_add_epi16(_mm256_add_epi16(high, low), a->offset);
}

ALWAYS_INLINE TARGET_AVX2 __m256i integers(__m256i x0, __m256i x1, const averager *a) {
    return _mm256_packs_epi16(_mm256_sra_epi16(x0, a->bits), _mm256_sra_epi16(x1, a->bits));
}

ALWAYS_INLINE TARGET_AVX2 __m256i is_integer(__m256i x, const averager *a) {
    return _mm256_cmpeq_epi16(_mm256_sll_epi16(x, a->rest), _mm256_setzero_si256());
}

/* -1 for bytes whose bit is set. */
ALWAYS_INLINE TARGET_AVX2 __m256i bit_is_set(__m256i y, const __m256i table[2]) {
    const __m256i byte = _mm256_and_si256(_mm256_srli_epi16(y, 3), _mm256_set1_epi8(31));
    const __m256i low = _mm256_shuffle_epi8(table[0], byte), high = _mm256_shuffle_epi8(table[1], byte);
    const __m256i bits = _mm256_blendv_epi8(low, high, y);
    const __m256i powers = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i bit = _mm256_shuffle_epi8(powers, _mm256_and_si256(y, _mm256_set1_epi8(7)));
    return _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit);
}

ALWAYS_INLINE TARGET_AVX2 __m256i on_line_of_halves(__m256i x0, __m256i x1, const averager *a) {
    const __m256i y = integers(x0, x1, a), half = _mm256_packs_epi16(is_integer(x0, a), is_integer(x1, a));
    return _mm256_add_epi8(y, _mm256_and_si256(half, bit_is_set(y, a->down)));
}

ALWAYS_INLINE TARGET_AVX2 __m256i divided_8(__m256i difference, const averager *a) {
    const __m256 mean = _mm256_div_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(difference), a->scale), a->count);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_div_ps(mean, a->step), a->low), a->high));
}

ALWAYS_INLINE TARGET_AVX2 __m256i divided_16(__m256i sums, const averager *a) {
    const __m256i differences = _mm256_sub_epi16(sums, a->zero);
    const __m256i even = _mm256_madd_epi16(differences, _mm256_set1_epi32(1)); /* the first word of two, by 1 */
    const __m256i y0 = divided_8(even, a), y1 = divided_8(_mm256_srai_epi32(differences, 16), a);
    return _mm256_add_epi16(_mm256_blend_epi16(y0, _mm256_slli_epi32(y1, 16), 0xaa), a->lower);
}

/* way: as in `a`. */
ALWAYS_INLINE TARGET_AVX2 __m256i averages(const sums_32 *s, const averager *a, const averager_way way) {
    const __m256i low = low_sums(s);
    const __m256i bytes = way == LINE     ? integers(on_line(low, a), on_line(s->high, a), a)
                          : way == HALVES ? on_line_of_halves(on_line(low, a), on_line(s->high, a), a)
                                          : _mm256_packs_epi16(divided_16(low, a), divided_16(s->high, a));
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    return _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_min_epi8(bytes, a->highest), order), a->base);
}

#endif

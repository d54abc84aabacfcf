/* AVX2 epilogue: two rows of 16 columns at a time.
 *
 * vpaddd (bias), vcvtdq2ps, vmulps (and vaddps, float32 only: never fused, an FMA would round once instead of twice).
 * To bytes: vminps, vcvtps2dq (rounds half to even), vpackssdw, vpaddsw of minus the lower bound, vpackuswb, vpermd,
 * vpaddb of the lowest byte. Packing to unsigned is the lower clamp: what lies below the bound becomes 0, and a sum too
 * far below for the conversion comes out of it as INT_MIN. The upper clamp is in float, because one too far above would
 * too.
 * A residual: the product is clamped and rounded in float (vmaxps, vminps, vroundps), and the sum, of two vmulps, goes on
 * from there as the product would. Its vdivps is the only instruction here that costs more than a cycle: six.
 * Exact: the same float32 operations in the same order as requant.h, whose bounds are integers, so that clamping
 * before rounding equals clamping after.
 * Peak: 29 instructions for 32 outputs; a table costs 35 more, a residual 48.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX2
#include "avx2_lookup.h"

/* What the epilogue needs of its 16 columns, in registers: a byte stored may alias anything in memory. */
typedef struct {
    __m256i bias[2], minus_low, lowest;
    __m256 multiplier[2], offset[2], low, high;
} columns;

ALWAYS_INLINE TARGET_AVX2 columns load_columns(const pyq_epilogue *e, int64_t column) {
    columns c = {.low = _mm256_set1_ps(e->low), .high = _mm256_set1_ps(e->high)};
    if (e->type == PYQ_OUT_QUANTIZED) {
        c.minus_low = _mm256_set1_epi16((int16_t)-e->low);
        c.lowest = _mm256_set1_epi8((char)((int32_t)e->low + e->zero_point));
    }
    UNROLL for (int half = 0; half < 2; half++, column += 8) {
        c.bias[half] = e->bias ? _mm256_loadu_si256((const __m256i *)(e->bias + column)) : _mm256_setzero_si256();
        c.multiplier[half] = _mm256_loadu_ps(e->multiplier + column);
        /* Adding -0 changes nothing, not even the sign of a zero. */
        c.offset[half] = e->offset ? _mm256_loadu_ps(e->offset + column) : _mm256_set1_ps(-0.0f);
    }
    return c;
}

typedef struct {
    __m256 low, high, product_scale, residual_scale, scale;
    __m256i minus_zero_point;
    __m128i flip; /* makes int8 uint8 */
} sum;

ALWAYS_INLINE TARGET_AVX2 sum load_sum(const pyq_sum *s) {
    const int32_t flip = s->residual_is_signed ? 128 : 0;
    return (sum){
        .low = _mm256_set1_ps(s->low),
        .high = _mm256_set1_ps(s->high),
        .product_scale = _mm256_set1_ps(s->product_scale),
        .residual_scale = _mm256_set1_ps(s->residual_scale),
        .scale = _mm256_set1_ps(s->scale),
        .minus_zero_point = _mm256_set1_epi32(-(s->residual_zero_point + flip)),
        .flip = _mm_set1_epi8((char)flip),
    };
}

/* Eight products, rounded to their own integers, plus eight bytes of the residual; in units of the sum. */
ALWAYS_INLINE TARGET_AVX2 __m256 summed(__m256 product, const uint8_t *residual, const sum *s) {
    const __m256 clamped = _mm256_min_ps(s->high, _mm256_max_ps(s->low, product));
    const __m256 y = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i bytes = _mm_xor_si128(_mm_loadl_epi64((const __m128i *)residual), s->flip);
    const __m256i r = _mm256_add_epi32(_mm256_cvtepu8_epi32(bytes), s->minus_zero_point);
    const __m256 residual_real = _mm256_mul_ps(_mm256_cvtepi32_ps(r), s->residual_scale);
    return _mm256_div_ps(_mm256_add_ps(_mm256_mul_ps(y, s->product_scale), residual_real), s->scale);
}

ALWAYS_INLINE TARGET_AVX2 __m256 scaled(const int32_t *acc, const columns *c, const int half) {
    const __m256i sum = _mm256_add_epi32(_mm256_loadu_si256((const __m256i *)acc + half), c->bias[half]);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), c->multiplier[half]);
}

/* A row as words: columns 0-3, 8-11 in the lower half, 4-7, 12-15 in the upper one; counted from the lower bound. */
ALWAYS_INLINE TARGET_AVX2 __m256i words(const int32_t *row, const columns *c, const uint8_t *residual, const sum *s) {
    __m256i q[2];
    UNROLL for (int half = 0; half < 2; half++) {
        __m256 y = scaled(row, c, half);
        if (s) y = summed(y, residual + 8 * half, s);
        q[half] = _mm256_cvtps_epi32(_mm256_min_ps(c->high, y));
    }
    return _mm256_adds_epi16(_mm256_packs_epi32(q[0], q[1]), c->minus_low);
}

/* Two rows as bytes, one in each half; an odd one comes twice. `s` and `table` may be NULL, which the compiler sees. */
ALWAYS_INLINE TARGET_AVX2 void store_bytes(const int32_t *tile, int64_t rows, const columns *c, const sum *s,
                                           const uint8_t *table, const uint8_t *residual, uint8_t *out,
                                           int64_t stride) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t r = 0; r < rows; r += 2, tile += 2 * PYQ_NR, out += 2 * stride) {
        const int two = r + 1 < rows;
        const __m256i first = words(tile, c, residual, s);
        const __m256i second = words(two ? tile + PYQ_NR : tile, c, s && two ? residual + stride : residual, s);
        __m256i y = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
        y = _mm256_add_epi8(y, c->lowest);
        if (table) y = lookup_32(table, y);
        _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(y));
        if (two) _mm_storeu_si128((__m128i *)(out + stride), _mm256_extracti128_si256(y, 1));
        if (s) residual += 2 * stride;
    }
}

ALWAYS_INLINE TARGET_AVX2 void store_sums(const int32_t *tile, int64_t rows, const columns *c, const pyq_epilogue *e,
                                          const uint8_t *residual, uint8_t *out, int64_t stride) {
    const sum s = load_sum(e->sum);
    if (e->table)
        store_bytes(tile, rows, c, &s, e->table, residual, out, stride);
    else
        store_bytes(tile, rows, c, &s, NULL, residual, out, stride);
}

/* maxps returns its second operand for equal values, which only matters for the sign of zero: requant.h's clamp
 * returns x itself when it equals a bound, hence the bounds come first here. */
ALWAYS_INLINE TARGET_AVX2 __m256 clamped(__m256 y, const columns *c) {
    return _mm256_min_ps(c->high, _mm256_max_ps(c->low, y));
}

ALWAYS_INLINE TARGET_AVX2 void store_floats(const int32_t *tile, int64_t rows, const columns *c, float *out,
                                            int64_t stride) {
    for (int64_t r = 0; r < rows; r++, tile += PYQ_NR)
        UNROLL for (int half = 0; half < 2; half++) {
            const __m256 y = _mm256_add_ps(scaled(tile, c, half), c->offset[half]);
            _mm256_storeu_ps(out + r * stride + 8 * half, clamped(y, c));
        }
}

ALWAYS_INLINE TARGET_AVX2 void store_accumulators(const int32_t *tile, int64_t rows, const int32_t *bias, int32_t *out,
                                                  int64_t stride) {
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256i b = bias ? _mm256_loadu_si256((const __m256i *)bias + half) : _mm256_setzero_si256();
        for (int64_t r = 0; r < rows; r++) {
            const __m256i acc = _mm256_loadu_si256((const __m256i *)(tile + r * PYQ_NR) + half);
            _mm256_storeu_si256((__m256i *)(out + r * stride) + half, _mm256_add_epi32(acc, b));
        }
    }
}

TARGET_AVX2 void pyq_avx2_requantize(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                     const uint8_t *residual, void *out, int64_t stride) {
    if (e->type == PYQ_OUT_INT32) {
        store_accumulators(tile, rows, e->bias ? e->bias + column : NULL, out, stride);
        return;
    }
    const columns c = load_columns(e, column);
    if (e->type == PYQ_OUT_FLOAT32)
        store_floats(tile, rows, &c, out, stride);
    else if (e->sum)
        store_sums(tile, rows, &c, e, residual, out, stride);
    else if (e->table)
        store_bytes(tile, rows, &c, NULL, e->table, NULL, out, stride);
    else
        store_bytes(tile, rows, &c, NULL, NULL, NULL, out, stride);
}

#endif

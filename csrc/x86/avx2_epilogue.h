/* The epilogue of rows of 16 columns, for the kernels that keep it in line: four rows at a time.
 *
 * vpaddd (bias), vcvtdq2ps, vmulps (and vaddps, float32 only: never fused, an FMA would round once instead of twice).
 * To bytes: vminps, vcvtps2dq (rounds half to even), vpackssdw, vpaddsw of minus the lower bound, vpackuswb, vpermd,
 * vpaddb of the lowest byte. Packing to unsigned is the lower clamp: what lies below the bound becomes 0, and a sum too
 * far below for the conversion comes out of it as INT_MIN. The upper clamp is in float, because one too far above would
 * too; where the bounds are 255 apart and no sum is too far, packing is the upper clamp as well.
 * Exact: the same float32 operations in the same order as requant.h, whose bounds are integers, so that clamping
 * before rounding equals clamping after.
 * A residual: the product is clamped and rounded in float (vmaxps, vminps, vroundps), and the sum, of two vmulps, goes
 * on from there as the product would. Its vdivps is the only instruction here that costs more than a cycle: six.
 * Peak: 29 instructions for 32 outputs; a table costs 35 more, a residual 48.
 */
#ifndef PYQ_AVX2_EPILOGUE_H
#define PYQ_AVX2_EPILOGUE_H

#include "../isa.h"
#include "../pyq.h"
#include "avx2_lookup.h"

/* The same for all columns, in registers: a byte stored may alias anything in memory. */
typedef struct {
    __m256i minus_low, lowest;
    __m256 low, high;
} bounds;

ALWAYS_INLINE TARGET_AVX2 bounds load_bounds(const pyq_epilogue *e) {
    bounds b = {.low = _mm256_set1_ps(e->low), .high = _mm256_set1_ps(e->high)};
    if (e->type == PYQ_OUT_QUANTIZED) {
        b.minus_low = _mm256_set1_epi16((int16_t)-e->low);
        b.lowest = _mm256_set1_epi8((char)((int32_t)e->low + e->zero_point));
    }
    return b;
}

typedef struct {
    __m256i bias[2];
    __m256 multiplier[2];
} columns;

ALWAYS_INLINE TARGET_AVX2 columns load_columns(const pyq_epilogue *e, int64_t column) {
    columns c;
    UNROLL for (int half = 0; half < 2; half++, column += 8) {
        c.bias[half] = e->bias ? _mm256_loadu_si256((const __m256i *)(e->bias + column)) : _mm256_setzero_si256();
        c.multiplier[half] = _mm256_loadu_ps(e->multiplier + column);
    }
    return c;
}

ALWAYS_INLINE TARGET_AVX2 __m256 scaled(const int32_t *row, const columns *c, const int half) {
    const __m256i sum = _mm256_add_epi32(_mm256_loadu_si256((const __m256i *)row + half), c->bias[half]);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), c->multiplier[half]);
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

/* Whether packing clamps: an int32 times a multiplier below 1 still is one. */
ALWAYS_INLINE TARGET_AVX2 int packing_clamps(const pyq_epilogue *e, const columns *c) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 most = _mm256_max_ps(_mm256_andnot_ps(sign, c->multiplier[0]), _mm256_andnot_ps(sign, c->multiplier[1]));
    return e->high - e->low == 255 && _mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(1), _CMP_LT_OQ)) == 255;
}

enum { TOGETHER = 4 }; /* rows that are quantized step by step: the chain of one is long, and has nothing beside it */

/* TOGETHER rows, of which the first `rows` exist; two in a register, one in each half. `s` may be NULL. */
ALWAYS_INLINE TARGET_AVX2 void quantize(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                        const int clamped, const sum *s, const uint8_t *residual, int64_t stride,
                                        __m256i *bytes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing works in halves */
    __m256 y[TOGETHER][2];
    __m256i words[TOGETHER];
    UNROLL for (int r = 0; r < TOGETHER; r++) {
        const int64_t row = r < rows ? r : rows - 1;
        UNROLL for (int half = 0; half < 2; half++) {
            y[r][half] = scaled(tile + row * PYQ_NR, c, half);
            if (s) y[r][half] = summed(y[r][half], residual + row * stride + 8 * half, s);
        }
    }
    UNROLL for (int r = 0; r < TOGETHER && !clamped; r++)
        UNROLL for (int half = 0; half < 2; half++) y[r][half] = _mm256_min_ps(b->high, y[r][half]);
    UNROLL for (int r = 0; r < TOGETHER; r++)
        words[r] = _mm256_packs_epi32(_mm256_cvtps_epi32(y[r][0]), _mm256_cvtps_epi32(y[r][1]));
    UNROLL for (int r = 0; r < TOGETHER; r++) words[r] = _mm256_adds_epi16(words[r], b->minus_low);
    UNROLL for (int r = 0; r < TOGETHER; r += 2) {
        const __m256i pair = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words[r], words[r + 1]), order);
        bytes[r / 2] = _mm256_add_epi8(pair, b->lowest);
    }
}

/* The first `rows` of TOGETHER rows. `clamped`: packing_clamps. `s`, with it `residual`, and `table` may be NULL, which the
 * compiler sees. */
ALWAYS_INLINE TARGET_AVX2 void store_together(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                              const int clamped, const sum *s, const uint8_t *table,
                                              const uint8_t *residual, uint8_t *out, int64_t stride) {
    __m256i bytes[TOGETHER / 2];
    quantize(tile, rows, c, b, clamped, s, residual, stride, bytes);
    UNROLL for (int i = 0; i < TOGETHER / 2; i++) {
        const __m256i y = table ? lookup_32(table, bytes[i]) : bytes[i];
        if (rows > 2 * i) _mm_storeu_si128((__m128i *)(out + 2 * i * stride), _mm256_castsi256_si128(y));
        if (rows > 2 * i + 1)
            _mm_storeu_si128((__m128i *)(out + (2 * i + 1) * stride), _mm256_extracti128_si256(y, 1));
    }
}

ALWAYS_INLINE TARGET_AVX2 void store_bytes(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                           const int clamped, const sum *s, const uint8_t *table,
                                           const uint8_t *residual, uint8_t *out, int64_t stride) {
    for (int64_t left = rows; left > 0; left -= TOGETHER, tile += TOGETHER * PYQ_NR, out += TOGETHER * stride) {
        if (left >= TOGETHER) /* without conditions in it: they would be a third of the instructions */
            store_together(tile, TOGETHER, c, b, clamped, s, table, residual, out, stride);
        else
            store_together(tile, left, c, b, clamped, s, table, residual, out, stride);
        if (s) residual += TOGETHER * stride;
    }
}

/* offset: of these 16 columns, or NULL; adding -0 changes nothing, not even the sign of a zero. maxps returns its
 * second operand for equal values, which only matters for that sign too: requant.h's clamp returns x itself when it
 * equals a bound, hence the bounds come first here. */
ALWAYS_INLINE TARGET_AVX2 void store_floats(const int32_t *tile, int64_t rows, const columns *c, const bounds *b,
                                            const float *offset, float *out, int64_t stride) {
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256 add = offset ? _mm256_loadu_ps(offset + 8 * half) : _mm256_set1_ps(-0.0f);
        for (int64_t r = 0; r < rows; r++) {
            const __m256 y = _mm256_add_ps(scaled(tile + r * PYQ_NR, c, half), add);
            _mm256_storeu_ps(out + r * stride + 8 * half, _mm256_min_ps(b->high, _mm256_max_ps(b->low, y)));
        }
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

#endif

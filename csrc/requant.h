/* The epilogue for one element: the numerics of docs/numerics.md in C. SIMD epilogues must give the same bits. */
#ifndef PYQ_REQUANT_H
#define PYQ_REQUANT_H

#include "isa.h"
#include "pyq.h"

/* Round half to even for |x| <= 2^22: adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds. */
ALWAYS_INLINE float round_even(float x) {
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}

/* Bounds are integers, so clamping before rounding equals clamping after, and the conversion cannot overflow. */
ALWAYS_INLINE float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* A product, rounded to its own integers, plus a byte of the residual; in units of the sum. */
ALWAYS_INLINE float summed(float product, const pyq_sum *s, uint8_t byte) {
    const int32_t residual = (s->residual_is_signed ? (int8_t)byte : byte) - s->residual_zero_point;
    const float y = round_even(clamp(product, s->low, s->high));
    return (y * s->product_scale + (float)residual * s->residual_scale) / s->scale;
}

ALWAYS_INLINE void requantize_one(int32_t acc, const pyq_epilogue *e, int64_t column, const uint8_t *residual,
                                  void *out, int64_t index) {
    if (e->bias) acc = (int32_t)((uint32_t)acc + (uint32_t)e->bias[column]);
    if (e->type == PYQ_OUT_INT32) {
        ((int32_t *)out)[index] = acc;
        return;
    }
    float y = (float)acc * e->multiplier[column];
    if (e->type == PYQ_OUT_FLOAT32) {
        if (e->offset) y += e->offset[column];
        ((float *)out)[index] = clamp(y, e->low, e->high);
        return;
    }
    if (e->sum) y = summed(y, e->sum, residual[index]);
    uint8_t byte = (uint8_t)((int32_t)round_even(clamp(y, e->low, e->high)) + e->zero_point);
    ((uint8_t *)out)[index] = e->table ? e->table[byte] : byte;
}

#endif

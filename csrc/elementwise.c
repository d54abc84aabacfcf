/* Element-wise operations: table lookup, quantize, dequantize, binary arithmetic on quantized arrays.
 *
 * Written once in portable C and compiled twice: for the baseline, and with AVX2 as a target, where the compiler
 * vectorises the same float32 operations (division included: vdivps rounds like divss), so the bits are the same.
 * Each equals dequantize -> operation -> quantize in float32.
 */
#include "isa.h"
#include "pyq.h"
#include "requant.h"

#if PYQ_HAVE_AVX2
#include "x86/avx2_lookup.h"
#endif

enum { MAX_DIMS = 8 };
enum { OP_ADD, OP_SUB, OP_MUL, OP_DIV };

ALWAYS_INLINE int32_t quantize(const float *restrict x, uint8_t *restrict out, int64_t n, float scale,
                               int32_t zero_point, float low, float high) {
    int32_t nan = 0;
    for (int64_t i = 0; i < n; i++) {
        nan |= x[i] != x[i];
        out[i] = (uint8_t)((int32_t)round_even(clamp(x[i] / scale, low, high)) + zero_point);
    }
    return nan;
}

ALWAYS_INLINE float real(const uint8_t *q, int64_t i, const pyq_affine *p, const int is_signed) {
    int32_t value = is_signed ? ((const int8_t *)q)[i] : q[i];
    return (float)(value - p->zero_point) * p->scale;
}

ALWAYS_INLINE void dequantize(const uint8_t *restrict q, const int is_signed, float *restrict out, int64_t n, float scale,
                              int32_t zero_point) {
    const pyq_affine p = {scale, zero_point, is_signed};
    for (int64_t i = 0; i < n; i++) out[i] = real(q, i, &p, is_signed);
}

typedef struct {
    int64_t n, a_stride, b_stride; /* strides are 0 or 1 */
    pyq_affine a, b, o;
    float low, high;
} line;

/* Locals and restrict, because a store through uint8_t * may alias anything, `l` included, which stops the vectoriser.
 * A byte becomes a number by (byte ^ flip) - zero: int8 is uint8 with its top bit flipped, minus 128. */
ALWAYS_INLINE void binary_line(const line *l, const uint8_t *restrict a, const uint8_t *restrict b,
                               uint8_t *restrict out, const int op, const int a_stride, const int b_stride) {
    const int64_t n = l->n;
    const int32_t a_flip = l->a.is_signed ? 128 : 0, a_zero = l->a.zero_point + a_flip;
    const int32_t b_flip = l->b.is_signed ? 128 : 0, b_zero = l->b.zero_point + b_flip;
    const int32_t zero_point = l->o.zero_point;
    const float a_scale = l->a.scale, b_scale = l->b.scale, scale = l->o.scale, low = l->low, high = l->high;
    for (int64_t i = 0; i < n; i++) {
        const float x = (float)((a[i * a_stride] ^ a_flip) - a_zero) * a_scale;
        const float y = (float)((b[i * b_stride] ^ b_flip) - b_zero) * b_scale;
        const float z = op == OP_ADD ? x + y : op == OP_SUB ? x - y : op == OP_MUL ? x * y : x / y;
        out[i] = (uint8_t)((int32_t)round_even(clamp(z / scale, low, high)) + zero_point);
    }
}

/* Constant strides and operation let the compiler vectorise each of the cases. */
ALWAYS_INLINE void binary_strides(const line *l, const uint8_t *a, const uint8_t *b, uint8_t *out, const int op) {
    if (l->a_stride && l->b_stride)
        binary_line(l, a, b, out, op, 1, 1);
    else if (l->a_stride)
        binary_line(l, a, b, out, op, 1, 0);
    else if (l->b_stride)
        binary_line(l, a, b, out, op, 0, 1);
    else
        binary_line(l, a, b, out, op, 0, 0);
}

ALWAYS_INLINE void binary(const line *l, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t op) {
    switch (op) {
    case OP_ADD: binary_strides(l, a, b, out, OP_ADD); break;
    case OP_SUB: binary_strides(l, a, b, out, OP_SUB); break;
    case OP_MUL: binary_strides(l, a, b, out, OP_MUL); break;
    default: binary_strides(l, a, b, out, OP_DIV);
    }
}

ALWAYS_INLINE void lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = table[x[i]];
}

#define QUANTIZE_ARGUMENTS x, out, n, scale, zero_point, low, high
#if PYQ_HAVE_AVX2
TARGET_AVX2 static void lookup_avx2(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m256i y = lookup_32(table, _mm256_loadu_si256((const __m256i *)(x + i)));
        _mm256_storeu_si256((__m256i *)(out + i), y);
    }
    lookup(x + i, table, out + i, n - i);
}
TARGET_AVX2 static int32_t quantize_avx2(const float *x, uint8_t *out, int64_t n, float scale, int32_t zero_point,
                                         float low, float high) {
    return quantize(QUANTIZE_ARGUMENTS);
}
TARGET_AVX2 static void dequantize_avx2(const uint8_t *q, int32_t is_signed, float *out, int64_t n, float scale,
                                        int32_t zero_point) {
    if (is_signed)
        dequantize(q, 1, out, n, scale, zero_point);
    else
        dequantize(q, 0, out, n, scale, zero_point);
}
TARGET_AVX2 static void binary_avx2(const line *l, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t op) {
    binary(l, a, b, out, op);
}
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else /* one version only */
#define lookup_avx2 lookup
#define quantize_avx2 quantize
#define dequantize_avx2 dequantize
#define binary_avx2 binary
#define USE_AVX2 0
#endif

void pyq_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    if (USE_AVX2)
        lookup_avx2(x, table, out, n);
    else
        lookup(x, table, out, n);
}

/* Returns whether there was a NaN; what is stored for it has no meaning. */
int32_t pyq_quantize(const float *x, uint8_t *out, int64_t n, float scale, int32_t zero_point, float low, float high) {
    return USE_AVX2 ? quantize_avx2(QUANTIZE_ARGUMENTS) : quantize(QUANTIZE_ARGUMENTS);
}

void pyq_dequantize(const uint8_t *q, int32_t is_signed, float *out, int64_t n, float scale, int32_t zero_point) {
    if (USE_AVX2)
        dequantize_avx2(q, is_signed, out, n, scale, zero_point);
    else
        dequantize(q, is_signed, out, n, scale, zero_point);
}

/* 0 / 0 has been refused before. Element-wise `op` over `ndim` <= MAX_DIMS dimensions; `out` is contiguous in that order; strides are in bytes and
 * the innermost ones 0 (broadcast) or 1. */
void pyq_binary(int32_t op, int32_t ndim, const int64_t *shape, const uint8_t *a, const int64_t *a_strides,
                const uint8_t *b, const int64_t *b_strides, const pyq_affine *qa, const pyq_affine *qb,
                const pyq_affine *qo, float low, float high, uint8_t *out) {
    const int last = ndim - 1;
    line l = {shape[last], a_strides[last], b_strides[last], *qa, *qb, *qo, low, high};
    int64_t index[MAX_DIMS] = {0}, lines = 1;
    for (int d = 0; d < last; d++) lines *= shape[d];
    const int vector = USE_AVX2;
    for (int64_t i = 0; i < lines; i++, out += l.n) {
        if (vector)
            binary_avx2(&l, a, b, out, op);
        else
            binary(&l, a, b, out, op);
        for (int d = last - 1; d >= 0; d--) {
            a += a_strides[d], b += b_strides[d];
            if (++index[d] < shape[d]) break;
            index[d] = 0;
            a -= shape[d] * a_strides[d], b -= shape[d] * b_strides[d];
        }
    }
}

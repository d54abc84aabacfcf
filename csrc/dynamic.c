/* A dynamic layer in one call: the range of its activations, their quantization to [0, amax], the product, float32.
 *
 * From Python these are four calls, an epilogue that nobody needs again, and scales that are chosen number by number:
 * 30 us, three times as long as the product of one row with 768x768 weights. The float32 operations are those of
 * choose_qparams (pyq/qparams.py) and of the epilogue, one by one, so that the bits are the same.
 */
#include "isa.h"
#include "lower.h"
#include "requant.h"

#include <float.h>
#include <math.h>

static size_t aligned(int64_t bytes) { return (size_t)(bytes + 63) / 64 * 64; }

/* As DynamicQuantizeLinear of ONNX, for integers up to `top`; returns whether there is such a scale. */
static int choose_params(float low, float high, int32_t top, float *scale, int32_t *zero_point) {
    const float width = high - low;
    if (!isfinite(width)) return 0;
    *scale = width / (float)top > 0 ? width / (float)top : 1;
    *zero_point = (int32_t)round_even(clamp(0 - low / *scale, 0, (float)top));
    return 1;
}

/* Multipliers and the correction for the zero point; returns whether all numbers are such as an epilogue may have. */
static int make_epilogue(const pyq_dynamic *d, float scale, int32_t zero_point, const float *offset, float *multiplier,
                         int32_t *bias) {
    int fine = 1;
    for (int64_t c = 0; c < d->call.columns; c++) {
        multiplier[c] = scale * d->scale[c];
        fine &= multiplier[c] > 0 && multiplier[c] <= FLT_MAX;
        bias[c] = (int32_t)((uint32_t)d->colsum[c] * (uint32_t)-zero_point);
    }
    for (int64_t c = 0; offset && c < d->call.columns; c++) fine &= fabsf(offset[c]) <= FLT_MAX;
    return fine;
}

int32_t pyq_run_dynamic(const pyq_dynamic *d, const float *x, int64_t rows, const float *offset, float *out) {
    pyq_call call = d->call;
    const int64_t count = rows * call.channels;
    float low, high, scale;
    int32_t zero_point;
    if (pyq_range(x, count, &low, &high) || !choose_params(low, high, call.amax, &scale, &zero_point))
        return PYQ_NOT_ALLOWED;
    call.zero = zero_point;
    call.amax = 255;      /* no integer is above its own, which does not have to be checked again */
    call.exact_reads = 1; /* behind the integers there is memory that may be read */
    const size_t bytes = aligned(count + PYQ_SLACK), column_bytes = aligned(4 * call.columns);
    uint8_t *memory = pyq_reserve(bytes + 2 * column_bytes + pyq_memory_of(&call, rows));
    if (!memory) return PYQ_NO_MEMORY;
    float *multiplier = (float *)(memory + bytes);
    int32_t *bias = (int32_t *)(memory + bytes + column_bytes);
    if (!make_epilogue(d, scale, zero_point, offset, multiplier, bias)) return PYQ_NOT_ALLOWED;
    pyq_quantize(x, memory, count, scale, zero_point, (float)-zero_point, (float)(d->call.amax - zero_point));
    const pyq_epilogue epilogue = {.type = PYQ_OUT_FLOAT32, .bias = bias, .multiplier = multiplier,
                                   .offset = offset, .low = d->low, .high = d->high};
    call.epilogue = &epilogue;
    return pyq_run_in(memory + bytes + 2 * column_bytes, &call, memory, rows, NULL, out);
}

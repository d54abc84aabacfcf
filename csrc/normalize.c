/* Softmax and LayerNormalization of rows, in float32; softmax of rows of bytes by a table of exponentials.
 *
 * The bits do not depend on instruction set or threads: 1024 elements at a time are summed in 16 lanes, element i in
 * lane i % 16, which are then halved (lane j takes lane j + 8, then j + 4, j + 2, j + 1) and added to the total; exp is
 * a polynomial of single float32 operations, none fused. Written in portable C, and all but softmax
 * (x86/avx2_softmax.c) compiled twice: for the baseline, and with AVX2 as a target, where the compiler makes two
 * vectors of the lanes. A row stays in the L1 cache between its passes.
 */
#include <string.h>

#include "isa.h"
#include "normalize.h"
#include "pyq.h"

enum {
    LANES = PYQ_SUM_LANES,
    BLOCK = PYQ_SUM_BLOCK,
    TASK_ELEMENTS = 1 << 14, /* 10 to 20 us */
};

#define EACH_LANE for (int j = 0; j < LANES; j++)

/* e^t for t <= 0, within 1 unit in the last place; 0 below -87.7, where n is -127; NaN for NaN.
 * t = n ln 2 + r with |r| <= ln 2 / 2; n times the first part of ln 2, 355 / 512, is exact. The polynomial is
 * e^r = 1 + r + r^2 q(r), with the q of degree 4 that has the least relative error, 3.1e-9. */
static float exponential(float t) {
    t = t < PYQ_EXP_LOWEST ? PYQ_EXP_LOWEST : t;
    const float shifted = t * PYQ_LOG2_E + PYQ_EXP_MAGIC, n = shifted - PYQ_EXP_MAGIC;
    const float r = (t - n * PYQ_LN2_HIGH) - n * PYQ_LN2_LOW;
    float q = PYQ_EXP_Q4;
    q = q * r + PYQ_EXP_Q3;
    q = q * r + PYQ_EXP_Q2;
    q = q * r + PYQ_EXP_Q1;
    q = q * r + PYQ_EXP_Q0;
    uint32_t bits;
    float power; /* 2^n, or 0 when the biased exponent n + 127 is 0 */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    return (q * (r * r) + r + 1.0f) * power;
}

/* An element, or with `squares` the square of its distance from `middle`. */
ALWAYS_INLINE float term(float x, float middle, const int squares) {
    return squares ? (x - middle) * (x - middle) : x;
}

/* The sum of n <= BLOCK terms. */
ALWAYS_INLINE float block_sum(const float *x, int64_t n, float middle, const int squares) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) EACH_LANE lanes[j] += term(x[i + j], middle, squares);
    for (int j = 0; i < n; i++, j++) lanes[j] += term(x[i], middle, squares);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0];
}

ALWAYS_INLINE float sum(const float *x, int64_t n, float middle, const int squares) {
    float total = 0;
    for (; n > BLOCK; n -= BLOCK, x += BLOCK) total += block_sum(x, BLOCK, middle, squares);
    return total + block_sum(x, n, middle, squares);
}

/* In any order. gcc would unroll a loop over fewer lanes, and then not see that they are vectors. */
ALWAYS_INLINE float largest(const float *x, int64_t n) {
    float lanes[2 * LANES];
    for (int j = 0; j < 2 * LANES; j++) lanes[j] = x[0];
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < 2 * LANES; j++) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (int j = 0; i < n; i++, j++) lanes[j] = x[i] > lanes[j] ? x[i] : lanes[j];
    for (int half = LANES; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lanes[j] = lanes[j + half] > lanes[j] ? lanes[j + half] : lanes[j];
    return lanes[0];
}

static void softmax(const float *restrict x, float *restrict out, int64_t n) {
    const float top = largest(x, n);
    for (int64_t i = 0; i < n; i++) out[i] = exponential(x[i] - top);
    const float total = sum(out, n, 0, 0);
    for (int64_t i = 0; i < n; i++) out[i] /= total;
}

typedef struct {
    const float *x, *scale, *bias;
    float *out, *mean, *inverse;
    int64_t rows, n;
    float epsilon;
} floats;

ALWAYS_INLINE void layer_norm(const floats *f, int64_t row) {
    const int64_t n = f->n;
    const float *restrict x = f->x + row * n, *restrict scale = f->scale, *restrict bias = f->bias;
    float *restrict out = f->out + row * n;
    const float mean = sum(x, n, 0, 0) / (float)n;
    const float inverse = 1.0f / __builtin_sqrtf(sum(x, n, mean, 1) / (float)n + f->epsilon);
    if (bias)
        for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * scale[i] + bias[i];
    else
        for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * scale[i];
    f->mean[row] = mean, f->inverse[row] = inverse;
}

typedef struct {
    const uint8_t *q;
    const int32_t *exponentials;
    float *out;
    int64_t rows, n;
    uint8_t flip;
} bytes;

ALWAYS_INLINE void softmax_of_bytes(const bytes *b, int64_t row) {
    const uint8_t *restrict q = b->q + row * b->n, flip = b->flip;
    float *restrict out = b->out + row * b->n;
    const int64_t n = b->n;
    uint8_t top = 0;
    for (int64_t i = 0; i < n; i++) top = (q[i] ^ flip) > top ? q[i] ^ flip : top;
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t e = b->exponentials[top - (q[i] ^ flip)];
        total += e;
        out[i] = (float)e;
    }
    for (int64_t i = 0; i < n; i++) out[i] /= (float)total;
}

#if PYQ_HAVE_AVX2
TARGET_AVX2 static void layer_norm_avx2(const floats *f, int64_t row) { layer_norm(f, row); }
TARGET_AVX2 static void softmax_of_bytes_avx2(const bytes *b, int64_t row) { softmax_of_bytes(b, row); }
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else /* one version only */
#define pyq_avx2_softmax softmax
#define layer_norm_avx2 layer_norm
#define softmax_of_bytes_avx2 softmax_of_bytes
#define USE_AVX2 0
#endif

static int64_t rows_per_task(int64_t n) { return n < TASK_ELEMENTS ? TASK_ELEMENTS / n : 1; }
static int64_t tasks(int64_t rows, int64_t n) { return (rows + rows_per_task(n) - 1) / rows_per_task(n); }

/* The rows from *row on, up to the result, are those of task number `index`. */
static int64_t task_rows(int64_t index, int64_t rows, int64_t n, int64_t *row) {
    *row = index * rows_per_task(n);
    return *row + rows_per_task(n) < rows ? *row + rows_per_task(n) : rows;
}

static void softmax_task(void *context, int64_t index) {
    const floats *f = context;
    int64_t row;
    for (const int64_t end = task_rows(index, f->rows, f->n, &row); row < end; row++)
        if (USE_AVX2)
            pyq_avx2_softmax(f->x + row * f->n, f->out + row * f->n, f->n);
        else
            softmax(f->x + row * f->n, f->out + row * f->n, f->n);
}

void pyq_softmax(const float *x, int64_t rows, int64_t n, float *out) {
    floats f = {.x = x, .out = out, .rows = rows, .n = n};
    pyq_parallel(softmax_task, &f, tasks(rows, n));
}

static void layer_norm_task(void *context, int64_t index) {
    const floats *f = context;
    int64_t row;
    for (const int64_t end = task_rows(index, f->rows, f->n, &row); row < end; row++)
        USE_AVX2 ? layer_norm_avx2(f, row) : layer_norm(f, row);
}

void pyq_layer_norm(const float *x, int64_t rows, int64_t n, const float *scale, const float *bias, float epsilon,
                    float *out, float *mean, float *inverse) {
    floats f = {x, scale, bias, out, mean, inverse, rows, n, epsilon};
    pyq_parallel(layer_norm_task, &f, tasks(rows, n));
}

static void softmax_of_bytes_task(void *context, int64_t index) {
    const bytes *b = context;
    int64_t row;
    for (const int64_t end = task_rows(index, b->rows, b->n, &row); row < end; row++)
        USE_AVX2 ? softmax_of_bytes_avx2(b, row) : softmax_of_bytes(b, row);
}

/* exponentials[d] belongs to an element d below the largest of its row; sums are exact. */
void pyq_softmax_of_bytes(const uint8_t *q, int32_t is_signed, int64_t rows, int64_t n, const int32_t *exponentials,
                          float *out) {
    bytes b = {q, exponentials, out, rows, n, is_signed ? 128 : 0};
    pyq_parallel(softmax_of_bytes_task, &b, tasks(rows, n));
}

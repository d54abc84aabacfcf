/* Element-wise operations: table lookup, quantize, dequantize, range, binary arithmetic on quantized arrays.
 *
 * Portable C, of which each operation equals dequantize -> operation -> quantize in float32. Lookup, dequantize and
 * range are also compiled with AVX2 as a target, where the compiler vectorises the same float32 operations, so the bits
 * are the same; x86/avx2_elementwise.c and x86/avx2_binary.c have the others. Large arrays are cut into chunks for
 * several threads.
 */
#include "elementwise.h"

#include <stdatomic.h>

#include "isa.h"
#include "requant.h"

#if PYQ_HAVE_AVX2
#include "x86/avx2_lookup.h"
#include "x86/avx512_lookup.h"
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define USE_AVX2 0
#endif

enum {
    CHUNK = 1 << 16, /* elements of a task: 10 to 20 us, which are worth a thread's waking */
    RANGES = 64,     /* most tasks of a search for the range */
};

static int64_t chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK; }
static int64_t chunk_size(int64_t n, int64_t start) { return n - start < CHUNK ? n - start : CHUNK; }

ALWAYS_INLINE void lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = table[x[i]];
}

ALWAYS_INLINE uint8_t quantized(float x, const pyq_quantizer *q) {
    return (uint8_t)((int32_t)round_even(clamp(x / q->scale, q->low, q->high)) + q->zero_point);
}

static int32_t quantize(const float *x, uint8_t *out, int64_t n, const pyq_quantizer *to) {
    const pyq_quantizer q = *to; /* a byte stored may alias *to */
    int32_t nan = 0;
    for (int64_t i = 0; i < n; i++) {
        nan |= x[i] != x[i];
        out[i] = quantized(x[i] == x[i] ? x[i] : 0, &q);
    }
    return nan;
}

/* A byte becomes a number by (byte ^ flip) - zero: int8 is uint8 with its top bit flipped, minus 128. */
ALWAYS_INLINE float real(uint8_t q, int32_t flip, int32_t zero, float scale) {
    return (float)((q ^ flip) - zero) * scale;
}

ALWAYS_INLINE void dequantize(const uint8_t *restrict q, float *restrict out, int64_t n, const pyq_affine *p) {
    const int32_t flip = p->is_signed ? 128 : 0, zero = p->zero_point + flip;
    const float scale = p->scale;
    for (int64_t i = 0; i < n; i++) out[i] = real(q[i], flip, zero, scale);
}

/* Zero is within every range. Comparisons in this order leave the bounds as they are where x is NaN. */
ALWAYS_INLINE int32_t range(const float *x, int64_t n, float *low, float *high) {
    float lows[32] = {0}, highs[32] = {0};
    int32_t nans[32] = {0};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 32; j++) {
            const float value = x[i + j];
            lows[j] = value < lows[j] ? value : lows[j];
            highs[j] = value > highs[j] ? value : highs[j];
            nans[j] |= value != value;
        }
    for (int j = 0; i < n; i++, j++) {
        lows[j] = x[i] < lows[j] ? x[i] : lows[j];
        highs[j] = x[i] > highs[j] ? x[i] : highs[j];
        nans[j] |= x[i] != x[i];
    }
    *low = *high = 0;
    for (int j = 0; j < 32; j++) {
        if (lows[j] < *low) *low = lows[j];
        if (highs[j] > *high) *high = highs[j];
        nans[0] |= nans[j];
    }
    return nans[0];
}

static void binary_lines(const pyq_binary_lines *lines, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    const pyq_binary_lines l = *lines; /* a byte stored may alias it */
    const pyq_arithmetic p = *l.arithmetic;
    const int32_t a_flip = p.a.is_signed ? 128 : 0, b_flip = p.b.is_signed ? 128 : 0;
    for (int64_t k = 0; k < l.lines; k++, a += l.a_line, b += l.b_line, out += l.out_line)
        for (int64_t i = 0; i < l.n; i++) {
            const float x = real(a[i * l.a_stride], a_flip, p.a.zero_point + a_flip, p.a.scale);
            const float y = real(b[i * l.b_stride], b_flip, p.b.zero_point + b_flip, p.b.scale);
            const float z = p.op == PYQ_ADD ? x + y : p.op == PYQ_SUB ? x - y : p.op == PYQ_MUL ? x * y : x / y;
            out[i] = quantized(z, &p.out);
        }
}

#if PYQ_HAVE_AVX2
TARGET_AVX2 static void lookup_avx2(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    int64_t i = 0;
#if PYQ_HAVE_AVX512VNNI
    if (pyq_use_vbmi()) pyq_avx512vbmi_lookup(x, table, out, i = n / 64 * 64);
#endif
    for (; i + 32 <= n; i += 32) {
        const __m256i y = lookup_32(table, _mm256_loadu_si256((const __m256i *)(x + i)));
        _mm256_storeu_si256((__m256i *)(out + i), y);
    }
    lookup(x + i, table, out + i, n - i);
}
TARGET_AVX2 static void dequantize_avx2(const uint8_t *q, float *out, int64_t n, const pyq_affine *p) {
    dequantize(q, out, n, p);
}
TARGET_AVX2 static int32_t range_avx2(const float *x, int64_t n, float *low, float *high) {
    return range(x, n, low, high);
}
#else /* one version only */
#define lookup_avx2 lookup
#define dequantize_avx2 dequantize
#define range_avx2 range
#define pyq_avx2_quantize quantize
#define pyq_avx2_binary_lines binary_lines
#define pyq_avx2_prepare_binary(arithmetic) ((void)(arithmetic))
#endif

typedef struct {
    const uint8_t *x, *table;
    uint8_t *out;
    int64_t n;
} lookup_job;

static void lookup_task(void *context, int64_t task) {
    const lookup_job *j = context;
    const int64_t start = task * CHUNK, n = chunk_size(j->n, start);
    if (USE_AVX2)
        lookup_avx2(j->x + start, j->table, j->out + start, n);
    else
        lookup(j->x + start, j->table, j->out + start, n);
}

void pyq_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n) {
    lookup_job job = {x, table, out, n};
    pyq_parallel(lookup_task, &job, chunks(n));
}

typedef struct {
    const float *x;
    uint8_t *out;
    int64_t n;
    pyq_quantizer to;
    atomic_int nan;
} quantize_job;

static void quantize_task(void *context, int64_t task) {
    quantize_job *j = context;
    const int64_t start = task * CHUNK, n = chunk_size(j->n, start);
    const float *x = j->x + start;
    if (USE_AVX2 ? pyq_avx2_quantize(x, j->out + start, n, &j->to) : quantize(x, j->out + start, n, &j->to))
        atomic_store(&j->nan, 1);
}

/* Returns whether there was a NaN; what is stored for it has no meaning. */
int32_t pyq_quantize(const float *x, uint8_t *out, int64_t n, float scale, int32_t zero_point, float low, float high) {
    quantize_job job = {x, out, n, {scale, low, high, zero_point}, 0};
    pyq_parallel(quantize_task, &job, chunks(n));
    return atomic_load(&job.nan);
}

typedef struct {
    const uint8_t *q;
    float *out;
    int64_t n;
    pyq_affine from;
} dequantize_job;

static void dequantize_task(void *context, int64_t task) {
    const dequantize_job *j = context;
    const int64_t start = task * CHUNK, n = chunk_size(j->n, start);
    if (USE_AVX2)
        dequantize_avx2(j->q + start, j->out + start, n, &j->from);
    else
        dequantize(j->q + start, j->out + start, n, &j->from);
}

void pyq_dequantize(const uint8_t *q, int32_t is_signed, float *out, int64_t n, float scale, int32_t zero_point) {
    dequantize_job job = {q, out, n, {scale, zero_point, is_signed}};
    pyq_parallel(dequantize_task, &job, chunks(n));
}

typedef struct {
    const float *x;
    int64_t n, share;
    float low[RANGES], high[RANGES];
    atomic_int nan;
} range_job;

static void range_task(void *context, int64_t task) {
    range_job *j = context;
    const int64_t start = task * j->share, rest = j->n - start, n = rest < j->share ? rest : j->share;
    const float *x = j->x + start;
    float *low = &j->low[task], *high = &j->high[task];
    if (USE_AVX2 ? range_avx2(x, n, low, high) : range(x, n, low, high)) atomic_store(&j->nan, 1);
}

/* The smallest and the largest of 0 and all x, which are not NaN; returns whether there was a NaN. */
int32_t pyq_range(const float *x, int64_t n, float *low, float *high) {
    range_job job = {.x = x, .n = n, .share = CHUNK};
    if (chunks(n) > RANGES) job.share = (n + RANGES - 1) / RANGES;
    const int64_t tasks = (n + job.share - 1) / job.share;
    pyq_parallel(range_task, &job, tasks);
    *low = *high = 0;
    for (int64_t i = 0; i < tasks; i++) {
        if (job.low[i] < *low) *low = job.low[i];
        if (job.high[i] > *high) *high = job.high[i];
    }
    return atomic_load(&job.nan);
}

typedef struct {
    pyq_binary_lines lines; /* n is a whole line's */
    int32_t outer;        /* dimensions but the innermost */
    const int64_t *shape, *a_strides, *b_strides;
    const uint8_t *a, *b;
    uint8_t *out;
    int64_t count, pieces; /* lines; pieces of a line: a task is one of a long line, or several short lines */
    int64_t lines_per_task;
} binary_job;

/* n elements, from `start` on, of lines from `index` on that are evenly spaced. */
static void run_lines(const binary_job *j, int64_t index, int64_t lines, int64_t start, int64_t n) {
    const uint8_t *a = j->a + start * j->lines.a_stride, *b = j->b + start * j->lines.b_stride;
    uint8_t *out = j->out + index * j->lines.n + start;
    for (int d = j->outer - 1; d >= 0; index /= j->shape[d], d--) {
        a += index % j->shape[d] * j->a_strides[d];
        b += index % j->shape[d] * j->b_strides[d];
    }
    pyq_binary_lines l = j->lines;
    l.lines = lines, l.n = n;
    if (USE_AVX2)
        pyq_avx2_binary_lines(&l, a, b, out);
    else
        binary_lines(&l, a, b, out);
}

static void binary_task(void *context, int64_t task) {
    const binary_job *j = context;
    const int64_t start = task % j->pieces * CHUNK, n = chunk_size(j->lines.n, start);
    const int64_t row = j->outer ? j->shape[j->outer - 1] : 1; /* lines that are evenly spaced */
    int64_t first = task / j->pieces * j->lines_per_task, last = first + j->lines_per_task;
    if (last > j->count) last = j->count;
    while (first < last) {
        const int64_t rest = row - first % row, lines = last - first < rest ? last - first : rest;
        run_lines(j, first, lines, start, n);
        first += lines;
    }
}

/* Looks for shorter ways, which takes as long as some 100000 results. */
void pyq_prepare_binary(int32_t op, const pyq_affine *a, const pyq_affine *b, const pyq_affine *out, float low,
                        float high, pyq_arithmetic *prepared) {
    *prepared = (pyq_arithmetic){op, *a, *b, {out->scale, low, high, out->zero_point}, {0}, 0};
    if (USE_AVX2) pyq_avx2_prepare_binary(prepared);
}

/* 0 / 0 has been refused before. Over `ndim` dimensions; `out` is contiguous in that order; strides are in bytes and
 * the innermost ones 0 (broadcast) or 1. */
void pyq_binary(const pyq_arithmetic *prepared, int32_t ndim, const int64_t *shape, const uint8_t *a,
                const int64_t *a_strides, const uint8_t *b, const int64_t *b_strides, uint8_t *out) {
    const int last = ndim - 1;
    const int64_t a_line = last ? a_strides[last - 1] : 0, b_line = last ? b_strides[last - 1] : 0, n = shape[last];
    binary_job j = {{1, a_line, b_line, n, n, a_strides[last], b_strides[last], prepared},
                    last, shape, a_strides, b_strides, a, b, out, 1, chunks(n), 1};
    for (int d = 0; d < last; d++) j.count *= shape[d];
    if (n < CHUNK) j.lines_per_task = CHUNK / n;
    pyq_parallel(binary_task, &j, j.pieces * ((j.count + j.lines_per_task - 1) / j.lines_per_task));
}

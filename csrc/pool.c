/* Maximum and average pools of images that lie channels last, of any number of spatial dimensions.
 *
 * An image is rows of pixels. The caller lists the rows of the input that each row of the output covers (there the number
 * of dimensions ends), and the pixels that each column covers, without the padding. An average is
 *
 *     quantize(float(sum - zero_point * elements) * scale / float(count))
 *
 * with an exact sum and float32 operations; the quotients of many pixels are collected and quantized together.
 */
#include "pool.h"

#include <string.h>

#include "elementwise.h"
#include "isa.h"

#if PYQ_HAVE_AVX2
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define USE_AVX2 0
#define pyq_avx2_window_max window_max
#define pyq_avx2_window_sum window_sum
#define divided_avx2 divided
#endif

enum {
    BLOCK = PYQ_POOL_BLOCK,
    CHANNELS = 256,          /* whose sums become averages together */
    MEANS = 4 * CHANNELS,    /* that are quantized together */
    TASK_ELEMENTS = 1 << 18, /* that a task reads: 10 to 20 us */
};

static void window_max(const pyq_window *w, uint8_t flip, int64_t channels, uint8_t *out) {
    for (int64_t i = 0; i < channels; i++) out[i] = flip;
    for (int64_t r = 0; r < w->row_count; r++)
        for (int64_t c = 0; c < w->columns; c++) {
            const uint8_t *x = w->first + w->rows[r] + c * w->step;
            for (int64_t i = 0; i < channels; i++) out[i] = (x[i] ^ flip) > (out[i] ^ flip) ? x[i] : out[i];
        }
}

static void window_sum(const pyq_window *w, uint8_t flip, int64_t channels, int32_t *sums) {
    memset(sums, 0, (size_t)channels * sizeof *sums);
    for (int64_t r = 0; r < w->row_count; r++)
        for (int64_t c = 0; c < w->columns; c++) {
            const uint8_t *x = w->first + w->rows[r] + c * w->step;
            for (int64_t i = 0; i < channels; i++) sums[i] += x[i] ^ flip;
        }
}

ALWAYS_INLINE void divided(const int32_t *restrict sums, int64_t n, int32_t zero, float scale, float count,
                           float *restrict means) {
    for (int64_t i = 0; i < n; i++) means[i] = (float)(sums[i] - zero) * scale / count;
}

#if PYQ_HAVE_AVX2
TARGET_AVX2 static void divided_avx2(const int32_t *sums, int64_t n, int32_t zero, float scale, float count,
                                     float *means) {
    divided(sums, n, zero, scale, count, means);
}
#endif

typedef struct {
    const pyq_pool *pool;
    const pyq_affine *from; /* averages only */
    pyq_quantizer to;
    uint8_t *out;
    int64_t rows_per_task;
} job;

/* The window of the first column of a row of the output. */
static pyq_window row_window(const pyq_pool *p, int64_t row) {
    const int64_t r = row % p->rows, start = p->starts[r];
    return (pyq_window){.first = p->x + row / p->rows * p->image_size,
                        .rows = p->offsets + start,
                        .row_count = p->starts[r + 1] - start,
                        .step = p->step};
}

static void choose_column(pyq_window *w, const uint8_t *image, const pyq_pool *p, int64_t column) {
    w->first = image + p->firsts[column];
    w->columns = p->taps[column];
}

/* Whether the channels can be read in whole blocks without leaving the images. */
static int readable(const pyq_pool *p, const pyq_window *w, int64_t channels) {
    const uint8_t *last = w->first + w->rows[w->row_count - 1] + (w->columns - 1) * w->step;
    return last + (channels + BLOCK - 1) / BLOCK * BLOCK <= p->x + p->images * p->image_size;
}

static void max_row(const pyq_pool *p, int64_t row, uint8_t *out) {
    const uint8_t flip = p->is_signed ? 128 : 0;
    pyq_window w = row_window(p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p->columns; column++, out += p->channels) {
        choose_column(&w, image, p, column);
        if (USE_AVX2 && readable(p, &w, p->channels))
            pyq_avx2_window_max(&w, flip, p->channels, out);
        else
            window_max(&w, flip, p->channels, out);
    }
}

/* The averages of up to CHANNELS channels. */
static void average(const job *j, const pyq_window *w, float count, int64_t channels, float *means) {
    const uint8_t flip = j->pool->is_signed ? 128 : 0;
    const int32_t elements = (int32_t)(w->row_count * w->columns), zero = (j->from->zero_point + flip) * elements;
    const float scale = j->from->scale;
    int32_t sums[CHANNELS];
    if (USE_AVX2 && readable(j->pool, w, channels))
        pyq_avx2_window_sum(w, flip, channels, sums);
    else
        window_sum(w, flip, channels, sums);
    if (USE_AVX2)
        divided_avx2(sums, channels, zero, scale, count, means);
    else
        divided(sums, channels, zero, scale, count, means);
}

static void average_row(const job *j, int64_t row, uint8_t *out) {
    const pyq_pool *p = j->pool;
    const float *counts = p->counts + row % p->rows * p->columns;
    float means[MEANS];
    int64_t collected = 0;
    pyq_window w = row_window(p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p->columns; column++) {
        choose_column(&w, image, p, column);
        for (int64_t rest = p->channels; rest > 0; rest -= CHANNELS, w.first += CHANNELS) {
            const int64_t channels = rest < CHANNELS ? rest : CHANNELS;
            average(j, &w, counts[column], channels, means + collected);
            collected += channels;
            if (collected <= MEANS - CHANNELS) continue;
            pyq_quantize(means, out, collected, j->to.scale, j->to.zero_point, j->to.low, j->to.high);
            out += collected, collected = 0;
        }
    }
    pyq_quantize(means, out, collected, j->to.scale, j->to.zero_point, j->to.low, j->to.high);
}

static void task(void *context, int64_t index) {
    const job *j = context;
    const int64_t rows = j->pool->images * j->pool->rows, first = index * j->rows_per_task;
    for (int64_t row = first; row < first + j->rows_per_task && row < rows; row++) {
        uint8_t *out = j->out + row * j->pool->columns * j->pool->channels;
        if (j->from)
            average_row(j, row, out);
        else
            max_row(j->pool, row, out);
    }
}

static void run(job *j) {
    const pyq_pool *p = j->pool;
    int64_t pixels = 0; /* that a row of the output reads */
    for (int64_t column = 0; column < p->columns; column++) pixels += p->taps[column] * p->starts[p->rows] / p->rows;
    j->rows_per_task = TASK_ELEMENTS / (pixels * p->channels + 1) + 1;
    pyq_parallel(task, j, (p->images * p->rows + j->rows_per_task - 1) / j->rows_per_task);
}

void pyq_max_pool(const pyq_pool *pool, uint8_t *out) {
    job j = {.pool = pool, .out = out};
    run(&j);
}

void pyq_average_pool(const pyq_pool *pool, const pyq_affine *from, const pyq_affine *to, float low, float high,
                      uint8_t *out) {
    job j = {.pool = pool, .from = from, .to = {to->scale, low, high, to->zero_point}, .out = out};
    run(&j);
}

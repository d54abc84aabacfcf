/* Maximum and average pools of images that lie channels last, of any number of spatial dimensions.
 *
 * An image is rows of pixels. The caller lists the rows of the input that each row of the output covers (there the
 * number of dimensions ends), and the pixels that each column covers, without the padding. An average is
 *
 *     quantize(float(sum - zero_point * elements) * scale / float(count))
 *
 * with an exact sum and float32 operations. The caller may know numbers that give the same for every sum in fixed
 * point.
 */
#include "pool.h"

#include <string.h>

#include "elementwise.h"
#include "isa.h"

#if PYQ_HAVE_AVX2
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define USE_AVX2 0
#define pyq_avx2_max_row max_row
#define pyq_avx2_average_row average_row
#define pyq_avx2_window_sum window_sum
#define divided_avx2 divided
#endif

enum {
    CHANNELS = 256,          /* whose sums become averages together */
    TASK_ELEMENTS = 1 << 18, /* that a task reads: 10 to 20 us */
};

void pyq_max_pixel(const pyq_pool *p, const pyq_window *w, uint8_t *out) {
    const uint8_t flip = p->is_signed ? 128 : 0;
    const int64_t channels = p->channels;
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

void pyq_average_pixel(const pyq_pool_job *j, const pyq_window *window, float count, uint8_t *out) {
    const uint8_t flip = j->pool->is_signed ? 128 : 0;
    const float scale = j->from->scale;
    pyq_window w = *window;
    const int32_t elements = (int32_t)(w.row_count * w.columns), zero = (j->from->zero_point + flip) * elements;
    int32_t sums[CHANNELS];
    float means[CHANNELS];
    for (int64_t rest = j->pool->channels; rest > 0; rest -= CHANNELS, w.first += CHANNELS, out += CHANNELS) {
        const int64_t channels = rest < CHANNELS ? rest : CHANNELS;
        if (USE_AVX2 && pyq_readable(j->pool, &w, channels)) {
            pyq_avx2_window_sum(&w, flip, channels, sums);
            divided_avx2(sums, channels, zero, scale, count, means);
        } else {
            window_sum(&w, flip, channels, sums);
            divided(sums, channels, zero, scale, count, means);
        }
        pyq_quantize(means, out, channels, j->to.scale, j->to.zero_point, j->to.low, j->to.high);
    }
}

static void max_row(const pyq_pool_job *j, int64_t row, uint8_t *out) {
    const pyq_pool *p = j->pool;
    pyq_window w = pyq_row_window(p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p->columns; column++, out += p->channels) {
        pyq_choose_column(&w, image, p, column);
        pyq_max_pixel(p, &w, out);
    }
}

static void average_row(const pyq_pool_job *j, int64_t row, uint8_t *out) {
    const pyq_pool *p = j->pool;
    const float *counts = p->counts + row % p->rows * p->columns;
    pyq_window w = pyq_row_window(p, row);
    const uint8_t *image = w.first;
    for (int64_t column = 0; column < p->columns; column++, out += p->channels) {
        pyq_choose_column(&w, image, p, column);
        pyq_average_pixel(j, &w, counts[column], out);
    }
}

static void task(void *context, int64_t index) {
    const pyq_pool_job *j = context;
    const int64_t rows = j->pool->images * j->pool->rows, first = index * j->rows_per_task;
    for (int64_t row = first; row < first + j->rows_per_task && row < rows; row++) {
        uint8_t *out = j->out + row * j->pool->columns * j->pool->channels;
        if (j->from)
            USE_AVX2 ? pyq_avx2_average_row(j, row, out) : average_row(j, row, out);
        else
            USE_AVX2 ? pyq_avx2_max_row(j, row, out) : max_row(j, row, out);
    }
}

static void run(pyq_pool_job *j) {
    const pyq_pool *p = j->pool;
    int64_t pixels = 0; /* that a row of the output reads */
    for (int64_t column = 0; column < p->columns; column++) pixels += p->taps[column] * p->starts[p->rows] / p->rows;
    j->rows_per_task = TASK_ELEMENTS / (pixels * p->channels + 1) + 1;
    pyq_parallel(task, j, (p->images * p->rows + j->rows_per_task - 1) / j->rows_per_task);
}

void pyq_max_pool(const pyq_pool *pool, uint8_t *out) {
    pyq_pool_job j = {.pool = pool, .out = out};
    run(&j);
}

/* fixed: [rows, columns]. */
void pyq_average_pool(const pyq_pool *pool, const pyq_affine *from, const pyq_affine *to, float low, float high,
                      const pyq_fixed_mean *fixed, uint8_t *out) {
    pyq_pool_job j = {.pool = pool,
                      .from = from,
                      .to = {to->scale, low, high, to->zero_point},
                      .fixed = fixed,
                      .out = out};
    run(&j);
}

/* The one loop nest: matrix product, convolution and depthwise convolution.
 *
 * Tasks are blocks of rows by runs of panels. Within a task a panel stays in the first-level cache while the rows of
 * the block, which fit the second level, go by tile after tile. Tasks share nothing but their inputs, so the number of
 * threads cannot change a result.
 */
#include "isa.h"
#include "pyq.h"

#include <string.h>

enum {
    ROW_BLOCK = 192,         /* a multiple of GROUP, so that only a last block has tails */
    GROUP = 12,              /* rows that share an epilogue: a multiple of the tallest tiles, of 4 and of 6 */
    TASK_PRODUCTS = 1 << 20, /* about 20 us of work: less than this is not worth waking a thread for */
};

typedef struct {
    const pyq_rows *rows;
    const pyq_weights *weights;
    const pyq_epilogue *epilogue;
    uint8_t *out;
    int64_t columns, row_count, row_blocks, segments_per_task;
    int element_size;
} nest;

/* The element at which each of `count` rows starts. */
static void row_starts(const pyq_rows *rows, int64_t first, int64_t count, int64_t *start) {
    const int64_t *size = rows->size, *stride = rows->stride;
    int64_t w = first % size[2], h = first / size[2] % size[1], d = first / size[2] / size[1] % size[0];
    int64_t n = first / size[2] / size[1] / size[0];
    for (int64_t i = 0; i < count; i++) {
        start[i] = n * rows->stride_n + d * stride[0] + h * stride[1] + w * stride[2];
        if (++w < size[2]) continue;
        w = 0;
        if (++h < size[1]) continue;
        h = 0;
        if (++d < size[0]) continue;
        d = 0, n++;
    }
}

/* The last columns of a matrix do not fill a panel: run the epilogue on copies that do, and keep what exists. */
static void store_tail(const nest *t, pyq_epilogue_fn store, const int32_t *tile, int64_t rows, const pyq_segment *panel,
                       uint8_t *out) {
    int32_t bias[PYQ_NR] = {0};
    float multiplier[PYQ_NR] = {0}, offset[PYQ_NR] = {0};
    uint8_t full[GROUP * PYQ_NR * 4];
    pyq_epilogue e = *t->epilogue;
    size_t n = (size_t)panel->columns;
    if (e.bias) memcpy(bias, e.bias + panel->column, n * sizeof *bias), e.bias = bias;
    if (e.multiplier) memcpy(multiplier, e.multiplier + panel->column, n * sizeof *multiplier), e.multiplier = multiplier;
    if (e.offset) memcpy(offset, e.offset + panel->column, n * sizeof *offset), e.offset = offset;
    store(tile, rows, &e, 0, full, PYQ_NR);
    for (int64_t r = 0; r < rows; r++)
        memcpy(out + (size_t)(r * t->columns) * t->element_size, full + (size_t)(r * PYQ_NR) * t->element_size,
               n * t->element_size);
}

static void run_segment(const nest *t, const pyq_segment *s, const int64_t *start, int64_t count, int32_t *tile,
                        int32_t accumulate) {
    const int32_t *offsets = t->weights->offsets + s->order;
    const uint8_t *data = t->weights->data + s->data;
    const int wide = s->layout == PYQ_PAIRS16 || s->layout == PYQ_PAIRS8, width = wide ? 2 : 1;
    const uint8_t *base = wide ? (const uint8_t *)t->rows->words : t->rows->bytes;
    const uint8_t *rows[PYQ_MAX_MR];
    for (int64_t i = 0; i < count;) {
        const pyq_kernel *k = pyq_select(s->layout, count - i);
        for (int r = 0; r < k->mr; r++) rows[r] = base + (start[i + r] + s->row_offset) * width;
        k->gemm(tile + i * PYQ_NR, rows, offsets, data, s->steps, accumulate);
        i += k->mr;
    }
}

/* The segments [first, end) of one panel for `count` rows. */
static void run_panel(const nest *t, pyq_epilogue_fn store, const pyq_segment *first, const pyq_segment *end,
                      const int64_t *start, int64_t first_row, int64_t count) {
    _Alignas(64) int32_t tile[GROUP * PYQ_NR];
    uint8_t *out = t->out + (size_t)(first_row * t->columns + first->column) * t->element_size;
    const size_t stride = (size_t)t->columns * t->element_size;
    for (int64_t i = 0; i < count; i += GROUP, out += GROUP * stride) {
        const int64_t rows = count - i < GROUP ? count - i : GROUP;
        /* The lines to be written arrive while the kernels run: without this a store waits for memory. */
        for (int64_t r = 0; r < rows; r++) __builtin_prefetch(out + r * stride, 1);
        for (const pyq_segment *s = first; s < end; s++) run_segment(t, s, start + i, rows, tile, s != first);
        if (first->columns == PYQ_NR)
            store(tile, rows, t->epilogue, first->column, out, t->columns);
        else
            store_tail(t, store, tile, rows, first, out);
    }
}

/* Where a panel begins, at `index` or behind it. */
static int64_t panel_start(const pyq_weights *w, int64_t index) {
    if (index >= w->segment_count) return w->segment_count;
    while (index > 0 && index < w->segment_count && w->segments[index].column == w->segments[index - 1].column) index++;
    return index;
}

static void run_task(void *context, int64_t task) {
    const nest *t = context;
    const pyq_weights *w = t->weights;
    int64_t start[ROW_BLOCK];
    int64_t first_row = task % t->row_blocks * ROW_BLOCK, index = task / t->row_blocks * t->segments_per_task;
    int64_t rows = t->row_count - first_row < ROW_BLOCK ? t->row_count - first_row : ROW_BLOCK;
    int64_t last = panel_start(w, index + t->segments_per_task), next;
    pyq_epilogue_fn store = pyq_select_epilogue();
    row_starts(t->rows, first_row, rows, start);
    for (index = panel_start(w, index); index < last; index = next) {
        next = panel_start(w, index + 1);
        run_panel(t, store, &w->segments[index], &w->segments[next], start, first_row, rows);
    }
}

/* Few rows: cut the panels into more tasks, down to what is worth a thread's waking. */
static int64_t choose_segments_per_task(const nest *t) {
    int64_t segments = t->weights->segment_count, threads = pyq_get_num_threads();
    if (threads == 1 || t->row_blocks >= 4 * threads) return segments;
    int64_t rows = t->row_count < ROW_BLOCK ? t->row_count : ROW_BLOCK, steps = 0;
    for (int64_t i = 0; i < segments; i++) steps += t->weights->segments[i].steps;
    int64_t products = rows * steps * 4 * PYQ_NR / segments;
    int64_t at_least = TASK_PRODUCTS / (products > 0 ? products : 1) + 1;
    int64_t share = (segments * t->row_blocks + 4 * threads - 1) / (4 * threads);
    return share < at_least ? (at_least < segments ? at_least : segments) : share;
}

void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, void *out,
              int64_t columns) {
    nest t = {.rows = rows, .weights = weights, .epilogue = epilogue, .out = out, .columns = columns};
    t.row_count = rows->images * rows->size[0] * rows->size[1] * rows->size[2];
    if (t.row_count == 0 || weights->segment_count == 0) return;
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    t.row_blocks = (t.row_count + ROW_BLOCK - 1) / ROW_BLOCK;
    t.segments_per_task = choose_segments_per_task(&t);
    int64_t runs = (weights->segment_count + t.segments_per_task - 1) / t.segments_per_task;
    pyq_parallel(run_task, &t, t.row_blocks * runs);
}

/* The epilogue alone, on accumulators that lie in memory: what QLinear operators with two steps need. */
void pyq_apply_epilogue(const int32_t *acc, int64_t rows, int64_t columns, const pyq_epilogue *epilogue, void *out) {
    nest t = {.epilogue = epilogue, .out = out, .columns = columns};
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    pyq_epilogue_fn store = pyq_select_epilogue();
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += PYQ_NR) {
            int32_t tile[PYQ_NR] = {0};
            pyq_segment panel = {.column = (int32_t)c, .columns = (int32_t)(columns - c < PYQ_NR ? columns - c : PYQ_NR)};
            memcpy(tile, acc + r * columns + c, (size_t)panel.columns * sizeof *tile);
            uint8_t *to = (uint8_t *)out + (size_t)(r * columns + c) * t.element_size;
            if (panel.columns == PYQ_NR)
                store(tile, 1, epilogue, c, to, columns);
            else
                store_tail(&t, store, tile, 1, &panel, to);
        }
}

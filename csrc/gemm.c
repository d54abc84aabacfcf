/* The one loop nest: matrix product, convolution and depthwise convolution.
 *
 * Tasks are blocks of rows by blocks of panels. Within a task a panel stays in the first-level cache while the rows
 * of the block, which fit the second level, go by tile after tile. Tasks share nothing but their inputs, so the
 * number of threads cannot change a result.
 */
#include "isa.h"
#include "pyq.h"

#include <string.h>

enum {
    ROW_BLOCK = 192,                /* a multiple of every tile height, so that only a last block has tails */
    TASK_PRODUCTS = 1 << 20,        /* about 20 us of work: less than this is not worth waking a thread for */
};

typedef struct {
    const pyq_rows *rows;
    const pyq_weights *weights;
    const pyq_epilogue *epilogue;
    uint8_t *out;
    int64_t columns, row_count, row_blocks, panels_per_task;
    int element_size;
} nest;

/* The element at which each of `count` rows starts. */
static void row_starts(const pyq_rows *rows, int64_t first, int64_t count, int64_t *start) {
    int64_t w = first % rows->width, h = first / rows->width % rows->height, n = first / rows->width / rows->height;
    for (int64_t i = 0; i < count; i++) {
        start[i] = n * rows->stride_n + h * rows->stride_h + w * rows->stride_w;
        if (++w == rows->width) {
            w = 0;
            if (++h == rows->height) h = 0, n++;
        }
    }
}

/* The last columns of a matrix do not fill a panel: run the epilogue on copies that do, and keep what exists. */
static void store_tail(const nest *t, pyq_epilogue_fn store, const int32_t *tile, int64_t rows, const pyq_panel *panel,
                       uint8_t *out) {
    int32_t bias[PYQ_NR] = {0};
    float multiplier[PYQ_NR] = {0}, offset[PYQ_NR] = {0};
    uint8_t full[PYQ_MAX_MR * PYQ_NR * 4];
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

static void run_panel(const nest *t, pyq_epilogue_fn store, const pyq_panel *panel, const int64_t *start,
                      int64_t first_row, int64_t count) {
    _Alignas(64) int32_t tile[PYQ_MAX_MR * PYQ_NR];
    const int32_t *offsets = t->weights->offsets + panel->order;
    const uint8_t *data = t->weights->data + panel->data;
    const int wide = panel->layout == PYQ_PAIRS16, width = wide ? 2 : 1;
    const uint8_t *base = wide ? (const uint8_t *)t->rows->words : t->rows->bytes;
    const uint8_t *rows[PYQ_MAX_MR];
    for (int64_t i = 0; i < count;) {
        const pyq_kernel *k = pyq_select(panel->layout, count - i);
        uint8_t *out = t->out + (size_t)((first_row + i) * t->columns + panel->column) * t->element_size;
        for (int r = 0; r < k->mr; r++) {
            rows[r] = base + (start[i + r] + panel->row_offset) * width;
            /* The lines to be written arrive while the kernel runs: without this a store waits for memory. */
            __builtin_prefetch(out + (size_t)(r * t->columns) * t->element_size, 1);
        }
        k->gemm(tile, rows, offsets, data, panel->steps);
        if (panel->columns == PYQ_NR)
            store(tile, k->mr, t->epilogue, panel->column, out, t->columns);
        else
            store_tail(t, store, tile, k->mr, panel, out);
        i += k->mr;
    }
}

static void run_task(void *context, int64_t task) {
    const nest *t = context;
    int64_t start[ROW_BLOCK];
    int64_t first_row = task % t->row_blocks * ROW_BLOCK, first_panel = task / t->row_blocks * t->panels_per_task;
    int64_t rows = t->row_count - first_row < ROW_BLOCK ? t->row_count - first_row : ROW_BLOCK;
    int64_t last_panel = first_panel + t->panels_per_task;
    if (last_panel > t->weights->panel_count) last_panel = t->weights->panel_count;
    pyq_epilogue_fn store = pyq_select_epilogue();
    row_starts(t->rows, first_row, rows, start);
    for (int64_t p = first_panel; p < last_panel; p++)
        run_panel(t, store, &t->weights->panels[p], start, first_row, rows);
}

/* Few rows: cut the panels into more tasks, down to what is worth a thread's waking. */
static int64_t choose_panels_per_task(const nest *t) {
    int64_t panels = t->weights->panel_count, threads = pyq_get_num_threads();
    if (threads == 1 || t->row_blocks >= 4 * threads) return panels;
    int64_t rows = t->row_count < ROW_BLOCK ? t->row_count : ROW_BLOCK;
    int64_t products = rows * t->weights->panels[0].steps * 4 * PYQ_NR;
    int64_t at_least = TASK_PRODUCTS / (products > 0 ? products : 1) + 1;
    int64_t share = (panels * t->row_blocks + 4 * threads - 1) / (4 * threads);
    return share < at_least ? (at_least < panels ? at_least : panels) : share;
}

void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, void *out,
              int64_t columns) {
    nest t = {.rows = rows, .weights = weights, .epilogue = epilogue, .out = out, .columns = columns};
    t.row_count = rows->images * rows->height * rows->width;
    if (t.row_count == 0 || weights->panel_count == 0) return;
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    t.row_blocks = (t.row_count + ROW_BLOCK - 1) / ROW_BLOCK;
    t.panels_per_task = choose_panels_per_task(&t);
    pyq_parallel(run_task, &t, t.row_blocks * ((weights->panel_count + t.panels_per_task - 1) / t.panels_per_task));
}

/* The epilogue alone, on accumulators that lie in memory: what QLinear operators with two steps need. */
void pyq_apply_epilogue(const int32_t *acc, int64_t rows, int64_t columns, const pyq_epilogue *epilogue, void *out) {
    nest t = {.epilogue = epilogue, .out = out, .columns = columns};
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    pyq_epilogue_fn store = pyq_select_epilogue();
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += PYQ_NR) {
            int32_t tile[PYQ_NR] = {0};
            pyq_panel panel = {.column = (int32_t)c, .columns = (int32_t)(columns - c < PYQ_NR ? columns - c : PYQ_NR)};
            memcpy(tile, acc + r * columns + c, (size_t)panel.columns * sizeof *tile);
            uint8_t *to = (uint8_t *)out + (size_t)(r * columns + c) * t.element_size;
            if (panel.columns == PYQ_NR)
                store(tile, 1, epilogue, c, to, columns);
            else
                store_tail(&t, store, tile, 1, &panel, to);
        }
}

/* The one loop nest: matrix product, convolution and depthwise convolution.
 *
 * Tasks are blocks of rows by blocks of panels, whose weights fit in the second-level cache. Within a task, a group of
 * rows meets all panels of the block before the next group comes: the group's activations and the lines of the output
 * that it fills stay in the first-level cache, and the weights stream from the second, 64 bytes for 12 * 64 products.
 * Tasks share nothing but their inputs, so the number of threads cannot change a result.
 */
#include "isa.h"
#include "pyq.h"

#include <string.h>

enum {
    GROUP = 12,               /* rows that share an epilogue: a multiple of the tallest tiles, of 4 and of 6 */
    BLOCK_BYTES = 160 * 1024, /* weights of a block: a third of a second-level cache of 512 KiB */
    TASK_PRODUCTS = 1 << 20,  /* about 10 us of work: less than this is not worth waking a thread for */
    TASKS_PER_THREAD = 4,     /* so that threads that others slow down do less */
};

typedef struct {
    const pyq_rows *rows;
    const pyq_weights *weights;
    const pyq_epilogue *epilogue;
    uint8_t *out;
    int64_t columns, row_count, rows_per_task, row_blocks, segments_per_task;
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

/* A group of rows: how many, where they start, and their addresses for the panels with one `row_offset`. */
typedef struct {
    int64_t count, start[GROUP];
    int32_t row_offset;
    const uint8_t *bytes[GROUP], *words[GROUP];
} group;

static void set_addresses(group *g, const pyq_rows *rows, int32_t row_offset) {
    g->row_offset = row_offset;
    for (int64_t r = 0; r < g->count; r++) {
        if (rows->bytes) g->bytes[r] = rows->bytes + (g->start[r] + row_offset);
        if (rows->words) g->words[r] = (const uint8_t *)(rows->words + (g->start[r] + row_offset));
    }
}

static void run_segment(const nest *t, const pyq_segment *s, const group *g, int32_t *tile, int32_t accumulate) {
    const int32_t *offsets = t->weights->offsets + s->order;
    const uint8_t *data = t->weights->data + s->data;
    const uint8_t *const *rows = s->layout == PYQ_PAIRS16 || s->layout == PYQ_PAIRS8 ? g->words : g->bytes;
    const pyq_kernel *k = pyq_select(s->layout, g->count);
    for (int64_t i = 0; i < g->count; i += k->mr) {
        if (g->count - i < k->mr) k = pyq_select(s->layout, g->count - i);
        k->gemm(tile + i * PYQ_NR, rows + i, offsets, data, s->steps, accumulate);
    }
}

/* The segments [first, end) of one panel; `out` is where the output of the group's first row starts. */
static void run_panel(const nest *t, pyq_epilogue_fn store, const pyq_segment *first, const pyq_segment *end, group *g,
                      uint8_t *out) {
    _Alignas(64) int32_t tile[GROUP * PYQ_NR];
    const size_t stride = (size_t)t->columns * t->element_size;
    out += (size_t)first->column * t->element_size;
    /* The lines to be written arrive while the kernels run: without this a store waits for memory. */
    for (int64_t r = 0; r < g->count; r++) __builtin_prefetch(out + r * stride, 1);
    if (first->row_offset != g->row_offset) set_addresses(g, t->rows, first->row_offset);
    for (const pyq_segment *s = first; s < end; s++) run_segment(t, s, g, tile, s != first);
    if (first->columns == PYQ_NR)
        store(tile, g->count, t->epilogue, first->column, out, t->columns);
    else
        store_tail(t, store, tile, g->count, first, out);
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
    const int64_t first_row = task % t->row_blocks * t->rows_per_task;
    const int64_t end_row = first_row + t->rows_per_task < t->row_count ? first_row + t->rows_per_task : t->row_count;
    const int64_t index = task / t->row_blocks * t->segments_per_task;
    const int64_t first = panel_start(w, index), last = panel_start(w, index + t->segments_per_task);
    pyq_epilogue_fn store = pyq_select_epilogue();
    if (first == last) return; /* the block ends within the panel that it starts in, which belongs to the one before */
    for (int64_t row = first_row; row < end_row; row += GROUP) {
        uint8_t *out = t->out + (size_t)(row * t->columns) * t->element_size;
        group g = {.count = end_row - row < GROUP ? end_row - row : GROUP};
        row_starts(t->rows, row, g.count, g.start);
        set_addresses(&g, t->rows, w->segments[first].row_offset);
        for (int64_t i = first, next; i < last; i = next) {
            for (next = i + 1; next < last && w->segments[next].column == w->segments[i].column;) next++;
            run_panel(t, store, &w->segments[i], &w->segments[next], &g, out);
        }
    }
}

static int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

/* Blocks of panels that fit the cache by all rows; with several threads both are cut further, down to what is worth a
 * thread's waking, the rows first: cutting panels makes each thread read all activations. */
static void choose_tasks(nest *t) {
    const pyq_weights *w = t->weights;
    const pyq_segment *end = &w->segments[w->segment_count - 1];
    const int64_t threads = pyq_get_num_threads(), groups = (t->row_count + GROUP - 1) / GROUP;
    const int64_t segment_bytes = at_least_one((end->data + (int64_t)end->steps * 4 * PYQ_NR) / w->segment_count);
    int64_t segments = at_least_one(BLOCK_BYTES / segment_bytes), groups_per_task = groups;
    if (segments > w->segment_count) segments = w->segment_count;
    if (threads > 1) {
        const int64_t blocks = (w->segment_count + segments - 1) / segments, wanted = TASKS_PER_THREAD * threads;
        groups_per_task = at_least_one(groups * blocks / wanted);
        const int64_t least_groups = TASK_PRODUCTS / at_least_one(GROUP * segment_bytes * segments) + 1;
        if (groups_per_task < least_groups) groups_per_task = least_groups;
        const int64_t row_tasks = (groups + groups_per_task - 1) / groups_per_task;
        if (row_tasks * blocks < wanted) {
            const int64_t rows = t->row_count < GROUP * groups_per_task ? t->row_count : GROUP * groups_per_task;
            const int64_t least = TASK_PRODUCTS / at_least_one(rows * segment_bytes) + 1;
            const int64_t share = at_least_one(w->segment_count * row_tasks / wanted);
            const int64_t fewer = share > least ? share : least;
            if (fewer < segments) segments = fewer;
        }
    }
    t->rows_per_task = groups_per_task * GROUP;
    t->segments_per_task = segments;
    t->row_blocks = (t->row_count + t->rows_per_task - 1) / t->rows_per_task;
}

void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, void *out,
              int64_t columns) {
    nest t = {.rows = rows, .weights = weights, .epilogue = epilogue, .out = out, .columns = columns};
    t.row_count = rows->images * rows->size[0] * rows->size[1] * rows->size[2];
    if (t.row_count == 0 || weights->segment_count == 0) return;
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    choose_tasks(&t);
    int64_t blocks = (weights->segment_count + t.segments_per_task - 1) / t.segments_per_task;
    pyq_parallel(run_task, &t, t.row_blocks * blocks);
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

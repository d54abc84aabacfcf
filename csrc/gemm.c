/* The one loop nest: matrix product, convolution and depthwise convolution.
 *
 * Tasks are blocks of rows by runs of panels. Within a task a panel stays in the first-level cache while the rows of
 * the block, which fit the second level, go by group after group. Tasks share nothing but their inputs, so the number of
 * threads cannot change a result.
 */
#include "isa.h"
#include "pyq.h"

#include <string.h>

enum {
    TILE_BYTES = 6 << 10,    /* of activations of a tile, that with weights they fit the first-level cache */
    ROW_BLOCK = 4 * PYQ_TILE_ROWS, /* at most */
    CACHE_WAYS = 8,          /* of the first level */
    LINE = 64,               /* bytes of a line of it */
    BLOCK_BYTES = 256 << 10, /* of activations: half of a second-level cache of 512 KiB */
    NEAR_BYTES = 512 << 10,  /* of weights: as many stay in a second-level cache from call to call */
    LONG_PANEL = 1024,       /* steps from which on one row reads two panels faster than one after the other */
    TASK_PRODUCTS = 1 << 20, /* about 10 us of work: less than this is not worth waking a thread for */
    TASKS_PER_THREAD = 8,    /* so that threads that others slow down do less */
};

typedef struct {
    const pyq_rows *rows;
    const pyq_weights *weights;
    const pyq_epilogue *epilogue;
    const uint8_t *residual; /* or NULL */
    pyq_panels_fn finished; /* or NULL */
    uint8_t *out;
    int64_t columns, row_count, group, tile_rows, rows_per_task, row_blocks, segments_per_task, segment_blocks;
    int rows_first; /* whether tasks that follow each other are of one block of rows, or else of one run of panels */
    int32_t first_tile; /* what kernels are told for the first rows of a block: PYQ_FETCH_AHEAD, or nothing */
    int element_size;
} nest;

/* The element at which each of `count` rows starts. */
static void row_starts(const pyq_rows *rows, int64_t first, int64_t count, int64_t *start) {
    const int64_t *size = rows->size, *stride = rows->stride;
    if (size[0] * size[1] * size[2] == 1) { /* a matrix: as many images as rows */
        for (int64_t i = 0; i < count; i++) start[i] = (first + i) * rows->stride_n;
        return;
    }
    int64_t w = first % size[2], h = first / size[2] % size[1], d = first / size[2] / size[1] % size[0];
    int64_t n = first / size[2] / size[1] / size[0];
    for (int64_t i = 0, run; i < count; i += run) {
        const int64_t at = n * rows->stride_n + d * stride[0] + h * stride[1] + w * stride[2];
        run = size[2] - w < count - i ? size[2] - w : count - i;
        for (int64_t r = 0; r < run; r++) start[i + r] = at + r * stride[2];
        w = 0;
        if (++h < size[1]) continue;
        h = 0;
        if (++d < size[0]) continue;
        d = 0, n++;
    }
}

/* Moves of constant length, the last of which may overlap the one before; a call for each row would take longer. */
static void copy_rows(const uint8_t *from, size_t pitch, int64_t rows, size_t bytes, uint8_t *to, size_t stride) {
    for (; rows > 0; rows--, from += pitch, to += stride)
        if (bytes > 16) {
            for (size_t i = 0; i < bytes - 16; i += 16) memcpy(to + i, from + i, 16);
            memcpy(to + bytes - 16, from + bytes - 16, 16);
        } else if (bytes > 8) {
            memcpy(to, from, 8), memcpy(to + bytes - 8, from + bytes - 8, 8);
        } else if (bytes >= 4) {
            memcpy(to, from, 4), memcpy(to + bytes - 4, from + bytes - 4, 4);
        } else {
            memcpy(to, from, bytes);
        }
}

/* The last columns of a matrix do not fill a panel: run the epilogue on copies that do, and keep what exists. */
static void store_tail(const nest *t, pyq_epilogue_fn store, const int32_t *tile, int64_t rows, const pyq_segment *panel,
                       const uint8_t *residual, uint8_t *out) {
    int32_t bias[PYQ_NR] = {0};
    float multiplier[PYQ_NR] = {0}, offset[PYQ_NR] = {0};
    uint8_t addend[PYQ_TILE_ROWS * PYQ_NR] = {0}, full[PYQ_TILE_ROWS * PYQ_NR * 4];
    pyq_epilogue e = *t->epilogue;
    size_t n = (size_t)panel->columns;
    if (e.bias) memcpy(bias, e.bias + panel->column, n * sizeof *bias), e.bias = bias;
    if (e.multiplier) memcpy(multiplier, e.multiplier + panel->column, n * sizeof *multiplier), e.multiplier = multiplier;
    if (e.offset) memcpy(offset, e.offset + panel->column, n * sizeof *offset), e.offset = offset;
    if (residual)
        for (int64_t r = 0; r < rows; r++) memcpy(addend + r * PYQ_NR, residual + r * t->columns, n);
    store(tile, rows, &e, 0, addend, full, PYQ_NR);
    const size_t size = (size_t)t->element_size;
    copy_rows(full, PYQ_NR * size, rows, n * size, out, (size_t)t->columns * size);
}

/* A block of rows: how many, where they start, and their addresses for the panels with one `row_offset`. */
typedef struct {
    int64_t first, count, start[ROW_BLOCK];
    int32_t row_offset;
    const uint8_t *bytes[ROW_BLOCK], *words[ROW_BLOCK];
    int32_t order, steps, reads_on; /* of the offsets looked at last: which they are, and what was found */
} block;

static void set_addresses(block *b, const pyq_rows *rows, int32_t row_offset) {
    b->row_offset = row_offset;
    for (int64_t r = 0; r < b->count; r++) {
        if (rows->bytes) b->bytes[r] = rows->bytes + (b->start[r] + row_offset);
        if (rows->words) b->words[r] = (const uint8_t *)(rows->words + (b->start[r] + row_offset));
    }
}

/* Rows of the output to be written: their lines arrive while the kernels run, because a store would wait for memory. */
typedef struct {
    const uint8_t *at; /* the last byte of the first row: of the two lines that 16 columns may lie in, the panel before has
                        * written to the first; NULL if they lie in that one, and for bytes, which are so few that asking
                        * took longer. A third line, of int32 of two panels, is not worth an instruction more. */
    size_t stride;
} destination;

/* The kernel for the next of `left` rows. Of two panels it takes four, but more while their weights come from memory: there
 * is more to multiply meanwhile. */
static const pyq_kernel *next_kernel(const pyq_segment *s, int64_t columns, int64_t left, int64_t how) {
    const int64_t most = columns <= PYQ_NR || how & PYQ_FETCH_AHEAD ? PYQ_MAX_MR : 4;
    return pyq_select(s->layout, columns, left < most ? left : most);
}

/* Each kernel asks for the lines of its own rows only: those of all rows at once would wait for each other. */
static void run_segment(const nest *t, const pyq_segment *s, int64_t columns, const uint8_t *const *rows, int64_t count,
                        int32_t *tile, int64_t how, destination out) {
    const int32_t *offsets = t->weights->offsets + s->order;
    const uint8_t *data = t->weights->data + s->data;
    const pyq_kernel *k = next_kernel(s, columns, count, how);
    const int64_t stride = how / PYQ_STRIDE;
    for (int64_t i = 0, mr; i < count; i += mr) {
        if (count - i < k->mr) k = next_kernel(s, columns, count - i, how);
        mr = k->mr;
        if (out.at)
            for (int64_t r = 0; r < mr; r++, out.at += out.stride) __builtin_prefetch(out.at, 1);
        k->gemm(tile + i * stride, rows + i, offsets, data, s->steps, how);
        if (!(how & PYQ_FETCH_AHEAD)) continue;
        how &= ~(int64_t)PYQ_FETCH_AHEAD; /* now they are near */
        k = next_kernel(s, columns, count, how);
    }
}

/* One panel or two that one kernel computes: of the first the segments [first, end), of the second the one that follows. */
typedef struct {
    const pyq_segment *first, *end;
    int64_t count, columns; /* of panels; as many as exist */
} panels;

/* Whether the steps of a segment read one row from its first element to its last. Most segments share their offsets. */
static int reads_on(const nest *t, const pyq_segment *s, block *b) {
    if (s->order == b->order && s->steps == b->steps) return b->reads_on;
    const int32_t *offsets = t->weights->offsets + s->order;
    int32_t apart = 0;
    for (int32_t i = 0; i < s->steps; i++) apart |= offsets[i] ^ (offsets[0] + 4 * i);
    b->order = s->order, b->steps = s->steps, b->reads_on = apart == 0;
    return b->reads_on;
}

static int is_wide(const pyq_segment *s) { return s->layout == PYQ_PAIRS16 || s->layout == PYQ_PAIRS8W; }

/* Whether the weights and offsets of the next segment, of bytes as well, continue those of this one. */
static int goes_on(const pyq_segment *s, const pyq_segment *next) {
    const int64_t bytes = (int64_t)s->steps * 4 * PYQ_NR;
    return next->layout >= PYQ_QUADS8 && next->data == s->data + bytes && next->order == s->order + s->steps;
}

/* One row waits for memory, so what is read and done beside each line of weights counts: offsets that follow each other
 * are not read. Of large weights others are read in half the bytes, and one kernel computes all segments with 16-bit sums;
 * where weights stay in a cache it would be slower, by 4 % of 1x1000x1280. */
static void run_row(const nest *t, const panels *p, block *b, int32_t *sums, int64_t how) {
    const pyq_weights *w = t->weights;
    const int in_quads = w->quads && pyq_get_isa() == PYQ_ISA_AVX2; /* whose kernel knows */
    for (const pyq_segment *s = p->first; s < p->end; how |= PYQ_ADD_TO_TILE) {
        pyq_segment all = *s++;
        const void *offsets = w->offsets + all.order;
        int flags = all.layout == PYQ_QUADS32 && reads_on(t, &all, b) ? PYQ_READS_ON : 0;
        if (in_quads && all.layout >= PYQ_QUADS8) {
            offsets = w->quads + all.order, flags = PYQ_IN_QUADS;
            for (; s < p->end && goes_on(&all, s); s++) all.steps += s->steps;
            all.layout = PYQ_QUADS8; /* proves the least of them */
        }
        const uint8_t *const *rows = is_wide(&all) ? b->words : b->bytes;
        pyq_select(all.layout, p->columns, 1)->gemm(sums, rows, offsets, w->data + all.data, all.steps, how | flags);
    }
}

/* Whether a kernel finishes what it multiplies. Not a few rows of large weights, of which other kernels take more at
 * once: 8x4096x4096 is 1.17 times as fast that way. */
static int at_once(const nest *t, const panels *p) {
    if (t->first_tile && t->row_count <= PYQ_MAX_MR) return 0;
    return t->finished && p->first->layout == PYQ_QUADS32 && p->end == p->first + 1 && p->columns > PYQ_NR / 2;
}

static void run_finished(const nest *t, const panels *p, const block *b) {
    const pyq_segment *s = p->first;
    const int8_t *weights = (const int8_t *)t->weights->data + s->data;
    const pyq_panels at = {t->epilogue, t->weights->offsets + s->order, weights,   s->steps,
                           s->column,   p->columns,                     t->columns};
    uint8_t *out = t->out + (b->first * t->columns + s->column) * t->element_size;
    t->finished(&at, b->bytes, b->count, t->first_tile, out);
}

/* Sums that nothing is done to are made where the output lies; those of several segments meet in the tile, where none of
 * them waits for its lines. */
static void run_panels(const nest *t, pyq_epilogue_fn store, const panels *p, block *b) {
    _Alignas(64) int32_t tile[2][PYQ_TILE_ROWS * PYQ_NR];
    const pyq_segment *first = p->first;
    if (p->columns <= PYQ_NR / 2) memset(tile[0], 0, sizeof tile[0]); /* what kernels for narrow panels leave alone */
    const int sums_only = t->epilogue->type == PYQ_OUT_INT32 && !t->epilogue->bias;
    const int in_place = sums_only && p->columns == p->count * PYQ_NR && p->end == first + 1;
    const size_t stride = (size_t)t->columns * t->element_size;
    const size_t last_byte = (size_t)p->columns * t->element_size - 1;
    uint8_t *out = t->out + (size_t)b->first * stride + (size_t)first->column * t->element_size;
    const int one_line = first->column && stride % LINE == 0 && (uintptr_t)(out + last_byte) % LINE > last_byte;
    const int near = one_line || t->element_size == 1;
    for (int64_t i = 0; i < b->count; i += t->tile_rows, out += t->tile_rows * stride) {
        const int64_t rows = b->count - i < t->tile_rows ? b->count - i : t->tile_rows;
        const uint8_t *residual = t->residual ? t->residual + (out - t->out) : NULL;
        if (residual)
            for (int64_t r = 0; r < rows; r++) __builtin_prefetch(residual + r * stride);
        destination to = {near ? NULL : out + last_byte, stride};
        int32_t *sums = in_place ? (int32_t *)out : tile[0];
        int64_t how = PYQ_STRIDE * (in_place ? t->columns : PYQ_NR) + (i == 0 ? t->first_tile : 0);
        if (t->row_count == 1)
            run_row(t, p, b, sums, how);
        else
            for (const pyq_segment *s = first; s < p->end; s++, to.at = NULL, how |= PYQ_ADD_TO_TILE)
                run_segment(t, s, p->columns, (is_wide(s) ? b->words : b->bytes) + i, rows, sums, how, to);
        if (in_place) continue;
        for (int64_t n = 0; n < p->count; n++) {
            const pyq_segment *panel = n ? p->end : first;
            uint8_t *part = out + n * PYQ_NR * t->element_size;
            const uint8_t *addend = residual ? residual + n * PYQ_NR : NULL;
            if (panel->columns == PYQ_NR)
                store(tile[n], rows, t->epilogue, panel->column, addend, part, t->columns);
            else
                store_tail(t, store, tile[n], rows, panel, addend, part);
        }
    }
}

/* Where a panel begins, at `index` or behind it. */
static int64_t panel_start(const pyq_weights *w, int64_t index) {
    if (index >= w->segment_count) return w->segment_count;
    while (index > 0 && index < w->segment_count && w->segments[index].column == w->segments[index - 1].column) index++;
    return index;
}

/* Whether one kernel computes this panel of one segment and the next. */
static int are_a_pair(const pyq_segment *a, const pyq_segment *b) {
    const int64_t bytes = (int64_t)a->steps * 4 * PYQ_NR;
    const int alike = a->layout == b->layout && a->steps == b->steps && a->order == b->order;
    const int adjacent = a->columns == PYQ_NR && b->column == a->column + PYQ_NR && b->data == a->data + bytes;
    return alike && adjacent && a->row_offset == b->row_offset && pyq_select(a->layout, 2 * PYQ_NR, 1);
}

/* The panel that begins at segment `index`, with the next one if there is a kernel for both: for each product it loads
 * half as many activations. With one row, the weights are what takes time, and those of one panel, unless it is long, are
 * read faster. */
static panels panels_from(const nest *t, int64_t index, int64_t last) {
    const pyq_weights *w = t->weights;
    const pyq_segment *first = &w->segments[index], *end = first + 1, *all = w->segments + last;
    while (end < all && end->column == first->column) end++;
    const int alone = end == first + 1 && end < all && (end + 1 == all || end[1].column != end->column);
    const int pair = (t->row_count > 1 || first->steps >= LONG_PANEL) && alone && are_a_pair(first, end);
    return (panels){first, end, 1 + pair, first->columns + (pair ? end->columns : 0)};
}

static void run_task(void *context, int64_t task) {
    const nest *t = context;
    const pyq_weights *w = t->weights;
    const int64_t row_block = t->rows_first ? task / t->segment_blocks : task % t->row_blocks;
    const int64_t index = (t->rows_first ? task % t->segment_blocks : task / t->row_blocks) * t->segments_per_task;
    const int64_t last = panel_start(w, index + t->segments_per_task);
    pyq_epilogue_fn store = pyq_select_epilogue(t->epilogue);
    block b;
    b.first = row_block * t->rows_per_task, b.row_offset = -1, b.order = -1;
    b.count = t->row_count - b.first < t->rows_per_task ? t->row_count - b.first : t->rows_per_task;
    row_starts(t->rows, b.first, b.count, b.start);
    for (int64_t i = panel_start(w, index); i < last;) {
        const panels p = panels_from(t, i, last);
        if (p.first->row_offset != b.row_offset) set_addresses(&b, t->rows, p.first->row_offset);
        if (at_once(t, &p))
            run_finished(t, &p, &b);
        else
            run_panels(t, store, &p, &b);
        i = p.end - w->segments + p.count - 1;
    }
}

/* A group of rows is whole tiles: of the tallest kernels of 4 and of 6 rows, which a panel may have both, or of 8. */
static int64_t choose_group(const pyq_weights *w) {
    return pyq_select(w->segments->layout, PYQ_NR, PYQ_MAX_MR)->mr == 8 ? 16 : 12;
}

/* Rows `stride` bytes apart of which a first-level cache of CACHE_WAYS times 4096 bytes keeps the lines that one panel
 * writes, from a kernel to the epilogue: with a multiple of 4096 between them all lie in one set. */
static int64_t rows_kept(int64_t stride) {
    const int64_t power = stride & -stride;
    return power < 4096 ? CACHE_WAYS * (4096 / power) : CACHE_WAYS;
}

/* Whole groups of rows of which `bytes` are read each: as many as fit `room`, at least one group, at most `most` rows. */
static int64_t rows_that_fit(int64_t room, int64_t bytes, int64_t most, int64_t group) {
    const int64_t groups = room / (bytes * group + 1);
    return groups < 1 ? group : groups * group < most ? groups * group : most;
}

static int bytes_per_element(const pyq_rows *rows) { return (rows->bytes != NULL) + 2 * (rows->words != NULL); }

/* Rows of a tile, and rows whose activations fit in half of a second-level cache. A row of a convolution shares most of
 * what it reads with its neighbours: it adds a pixel to each line of the kernel, of which three are typical. */
static int64_t choose_rows(nest *t) {
    const pyq_rows *rows = t->rows;
    const pyq_segment *s = t->weights->segments, *end = s + t->weights->segment_count;
    const int64_t added = 3 * (rows->size[2] > 1 ? rows->stride[2] : rows->stride_n);
    const int width = bytes_per_element(rows);
    int64_t steps = 0;
    for (const int32_t column = s->column; s < end && s->column == column; s++) steps += s->steps;
    const int64_t kept = rows_kept(t->columns * t->element_size);
    t->tile_rows = rows_that_fit(TILE_BYTES, 4 * steps, PYQ_TILE_ROWS, t->group);
    const int64_t unit = t->group == 16 ? 8 : t->group; /* kernels of 8 rows, or of 4 and 6 */
    if (kept < t->tile_rows) t->tile_rows = kept > unit ? kept / unit * unit : unit;
    return rows_that_fit(BLOCK_BYTES, width * (4 * steps < added ? 4 * steps : added), ROW_BLOCK, t->group);
}

/* Equal blocks of rows; with several threads, runs of panels so short that there are enough tasks, but not so short
 * that one is not worth a thread's waking. */
static void choose_tasks(nest *t) {
    const pyq_weights *w = t->weights;
    t->group = choose_group(w);
    const int64_t threads = pyq_get_num_threads(), groups = (t->row_count + t->group - 1) / t->group;
    const int64_t most = choose_rows(t);
    t->row_blocks = (t->row_count + most - 1) / most;
    t->rows_per_task = (groups + t->row_blocks - 1) / t->row_blocks * t->group;
    t->segments_per_task = w->segment_count;
    const pyq_segment *end = &w->segments[w->segment_count - 1];
    const int64_t weights = end->data + (int64_t)end->steps * 4 * PYQ_NR, rows = t->row_count / t->row_blocks;
    t->first_tile = weights > NEAR_BYTES ? PYQ_FETCH_AHEAD : 0;
    if (threads == 1) return;
    const int64_t wanted = TASKS_PER_THREAD * threads, share = w->segment_count * t->row_blocks / wanted;
    if (share >= w->segment_count) return;
    const int64_t least = TASK_PRODUCTS / (weights / w->segment_count * rows + 1) + 1;
    t->segments_per_task = share > least ? share : least;
    if (t->segments_per_task > 1) t->segments_per_task &= ~(int64_t)1; /* pairs of panels stay together */
    if (t->segments_per_task > w->segment_count) t->segments_per_task = w->segment_count;
    /* A thread takes tasks that follow each other. Rows were just written, by both: a line of another core's costs about
     * three times one of the weights, which nobody writes. 3x3, stride 2, 128 channels: 1.80 x on two threads, not 1.60. */
    t->rows_first = 3 * bytes_per_element(t->rows) * t->rows->images * t->rows->stride_n > weights;
}

void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, const uint8_t *residual,
              void *out, int64_t columns) {
    nest t = {.rows = rows, .weights = weights, .epilogue = epilogue, .residual = residual, .out = out};
    t.columns = columns;
    t.row_count = rows->images * rows->size[0] * rows->size[1] * rows->size[2];
    if (t.row_count == 0 || weights->segment_count == 0) return;
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    if (t.row_count > 1) t.finished = pyq_select_panels(epilogue);
    choose_tasks(&t);
    t.segment_blocks = (weights->segment_count + t.segments_per_task - 1) / t.segments_per_task;
    pyq_parallel(run_task, &t, t.row_blocks * t.segment_blocks);
}

/* The epilogue alone, on accumulators that lie in memory: what QLinear operators with two steps need. */
void pyq_apply_epilogue(const int32_t *acc, int64_t rows, int64_t columns, const pyq_epilogue *epilogue,
                        const uint8_t *residual, void *out) {
    nest t = {.epilogue = epilogue, .out = out, .columns = columns};
    t.element_size = epilogue->type == PYQ_OUT_QUANTIZED ? 1 : 4;
    pyq_epilogue_fn store = pyq_select_epilogue(epilogue);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += PYQ_NR) {
            int32_t tile[PYQ_NR] = {0};
            pyq_segment panel = {.column = (int32_t)c, .columns = (int32_t)(columns - c < PYQ_NR ? columns - c : PYQ_NR)};
            memcpy(tile, acc + r * columns + c, (size_t)panel.columns * sizeof *tile);
            uint8_t *to = (uint8_t *)out + (size_t)(r * columns + c) * t.element_size;
            const uint8_t *addend = residual ? residual + r * columns + c : NULL;
            if (panel.columns == PYQ_NR)
                store(tile, 1, epilogue, c, addend, to, columns);
            else
                store_tail(&t, store, tile, 1, &panel, addend, to);
        }
}

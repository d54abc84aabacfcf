/* Transpose matrices of bytes or of 4-byte words: images from NCHW to NHWC and back.
 *
 * The matrix is cut into parts of some 64K elements, one for each task, whose reads and writes use whole cache lines.
 */
#include "transpose.h"

#include <string.h>

#include "isa.h"
#include "pyq.h"

#if PYQ_HAVE_AVX2
#define USE_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define USE_AVX2 0
#define pyq_avx2_transpose_bytes(part)
#define pyq_avx2_transpose_words(part)
#endif

enum {
    PART = 1 << 16, /* elements of a task: 10 to 20 us */
    EDGE = 64,      /* least rows and columns of a part that does not have them all: a cache line of bytes */
};

void pyq_transpose_bytes(const pyq_part *part, int64_t first_row, int64_t first_column) {
    const pyq_part p = *part; /* a byte stored may alias it */
    for (int64_t c = first_column; c < p.columns; c++)
        for (int64_t r = first_row; r < p.rows; r++) p.out[c * p.out_stride + r] = p.x[r * p.x_stride + c];
}

void pyq_transpose_words(const pyq_part *p, int64_t first_row, int64_t first_column) {
    const uint32_t *restrict x = (const uint32_t *)p->x;
    uint32_t *restrict out = (uint32_t *)p->out;
    for (int64_t c = first_column; c < p->columns; c++)
        for (int64_t r = first_row; r < p->rows; r++) out[c * p->out_stride + r] = x[r * p->x_stride + c];
}

typedef struct {
    const uint8_t *x;
    uint8_t *out;
    int64_t rows, columns, row_parts, column_parts;
    int32_t item;
} job;

static void task(void *context, int64_t index) {
    const job *j = context;
    const int64_t column_part = index % j->column_parts, row_part = index / j->column_parts % j->row_parts;
    const int64_t image = index / (j->column_parts * j->row_parts) * j->rows * j->columns;
    const int64_t row = j->rows * row_part / j->row_parts, column = j->columns * column_part / j->column_parts;
    const pyq_part p = {
        .x = j->x + (image + row * j->columns + column) * j->item,
        .out = j->out + (image + column * j->rows + row) * j->item,
        .rows = j->rows * (row_part + 1) / j->row_parts - row,
        .columns = j->columns * (column_part + 1) / j->column_parts - column,
        .x_stride = j->columns,
        .out_stride = j->rows,
    };
    if (USE_AVX2)
        j->item == 1 ? pyq_avx2_transpose_bytes(&p) : pyq_avx2_transpose_words(&p);
    else
        j->item == 1 ? pyq_transpose_bytes(&p, 0, 0) : pyq_transpose_words(&p, 0, 0);
}

static int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

void pyq_transpose(const uint8_t *x, int64_t images, int64_t rows, int64_t columns, int32_t item, uint8_t *out) {
    if (rows == 1 || columns == 1) {
        memcpy(out, x, (size_t)(images * rows * columns * item));
        return;
    }
    const int64_t narrow = columns < EDGE ? columns : EDGE, tall = rows < PART / narrow ? rows : PART / narrow;
    const int64_t wide = PART / tall > narrow ? PART / tall : narrow; /* few rows: more columns */
    job j = {x, out, rows, columns, parts(rows, tall), parts(columns, wide), item};
    pyq_parallel(task, &j, images * j.row_parts * j.column_parts);
}

/* pyq's kernel core: the contract between packing, microkernels, epilogues and the loop nest.
 *
 * Activations are u8 values in rows given by address; the k axis is a list of offsets that all rows share. Weights
 * are packed in panels of PYQ_NR columns, and a panel in segments of one layout each. A microkernel computes an int32
 * tile of `mr` rows by PYQ_NR columns:
 *
 *     TAPS16        tile[r][c] = sum over steps s of                  row[r][offset[s] + c] * weight[s][c]
 *     the others    tile[r][c] = sum over steps s, elements i < 4 of  row[r][offset[s] + i] * weight[s][c][i]
 *
 * in int32 that wraps modulo 2^32; with PYQ_ADD_TO_TILE, it adds to the tile instead. Kernels for narrow panels leave
 * the second half of the columns alone; kernels for pairs of panels compute the tiles of two. Rows are bytes, but for
 * PAIRS16 and PAIRS8W the same values widened to int16 beforehand (once for all panels, instead of two instructions for
 * every quad); offsets count elements. A kernel may read, but never use, up to 15 elements behind the last one needed:
 * buffers carry PYQ_SLACK of them. A matrix product and a convolution differ only in the addresses of the rows and in
 * the offsets, so one loop nest (gemm.c) serves both, strided, dilated, padded and grouped.
 */
#ifndef PYQ_H
#define PYQ_H

#include <stddef.h>
#include <stdint.h>

#define PYQ_NR 16
#define PYQ_MAX_MR 8
#define PYQ_TILE_ROWS 48 /* at most, of which the epilogue is run at once */
#define PYQ_SLACK 64

/* How the weights of a segment lie in memory. A step of a GEMM layout is a quad: four consecutive k of NR columns. */
enum {
    PYQ_PAIRS16,  /* int16 [steps][2][NR][2]: elements (0, 1) of a quad, then (2, 3). Always exact. */
    PYQ_PAIRS8W,  /* int8 [steps][2][NR][2]: the same, widened by the kernel. */
    PYQ_QUADS32,  /* int8 [steps][NR][4]: nothing is proved, products are added in 32 bits. Always exact. */
    PYQ_QUADS8,   /* the same bytes: the pack proved that the sums of a quad's pairs fit in 16 bits. */
    PYQ_QUADS8P2, /* and that those of groups of two quads together do. */
    PYQ_QUADS8P4, /* of groups of four. */
    PYQ_TAPS16,   /* int16 [steps / 2][NR][2]: depthwise; two taps of NR neighbouring channels. */
    PYQ_LAYOUTS
};

enum { PYQ_ISA_SCALAR, PYQ_ISA_AVX2, PYQ_ISA_AVX512VNNI, PYQ_ISAS };
enum { PYQ_OUT_INT32, PYQ_OUT_FLOAT32, PYQ_OUT_QUANTIZED };
enum { PYQ_GEMM, PYQ_DEPTHWISE, PYQ_REQUANTIZE, PYQ_GEMM_REQUANTIZE, PYQ_GEMM_SUMS };

/* Segments of one panel follow each other and have the same column: their sums add up. */
typedef struct {
    int64_t data;       /* bytes from the start of the packed data */
    int32_t order;      /* first of this segment's entries in the offset list */
    int32_t steps;
    int32_t layout;
    int32_t column;     /* first output column */
    int32_t columns;    /* output columns that exist, at most PYQ_NR */
    int32_t row_offset; /* elements added to every row: the group's, or the depthwise panel's, first channel */
} pyq_segment;

typedef struct {
    const pyq_segment *segments;
    int64_t segment_count;
    const int32_t *offsets;
    const uint16_t *quads; /* of a large matrix: offsets / 4, for one row; or NULL */
    const uint8_t *data;
} pyq_weights;

/* Row (n, d, h, w) starts at element n * stride_n + d * stride[0] + h * stride[1] + w * stride[2]. */
typedef struct {
    const uint8_t *bytes; /* for layouts that read bytes; NULL when there are none */
    const int16_t *words; /* for PAIRS16 and PAIRS8W; NULL when there are none */
    int64_t images, size[3];
    int64_t stride_n, stride[3];
} pyq_rows;

/* How the residual of a residual block is added: the product, requantized by itself first, and the residual become
 * real, and their sum is what gets requantized. */
typedef struct {
    float low, high;      /* bounds of the product's own integers, minus their zero point */
    float product_scale, residual_scale;
    int32_t residual_zero_point, residual_is_signed;
    float scale;          /* of the sum */
} pyq_sum;

typedef struct {
    int32_t type;            /* PYQ_OUT_... */
    int32_t zero_point;
    const int32_t *bias;     /* per column, or NULL; wraps */
    const float *multiplier; /* per column; unused for int32 */
    const float *offset;     /* per column, float32 output only, or NULL */
    float low, high;         /* quantized: bounds minus zero_point, finite; float32: real bounds, may be infinite */
    const uint8_t *table;    /* 256 entries applied to the stored byte, or NULL */
    const pyq_sum *sum;      /* quantized output only, or NULL: there is no residual */
} pyq_epilogue;

/* What a microkernel is told, in one number, because a seventh argument would go through the stack.
 * PYQ_FETCH_AHEAD: its weights are not in a near cache, so that it may ask for them ahead.
 * PYQ_READS_ON: each offset is four elements behind the one before, so that it need not be read.
 * PYQ_IN_QUADS: the offsets are uint16 and count quads; the AVX2 kernel of QUADS8 for one row is told so.
 * PYQ_STRIDE, times the elements from a row of the tile, which may lie in the output, to the next.
 * A kernel for two panels finds the weights of the second behind those of the first. So do its tiles lie, in the output
 * beside each other; where the stride is PYQ_NR, which no output of two panels has, that of the second follows
 * PYQ_TILE_ROWS rows below. */
enum { PYQ_ADD_TO_TILE = 1, PYQ_FETCH_AHEAD = 2, PYQ_READS_ON = 4, PYQ_IN_QUADS = 8, PYQ_STRIDE = 16 };

/* `rows` point to int16 elements for PAIRS16 and PAIRS8W, to bytes otherwise. */
typedef void (*pyq_gemm_fn)(int32_t *tile, const uint8_t *const *rows, const int32_t *offsets, const void *weights,
                            int64_t steps, int64_t how);
/* Writes `rows` rows of PYQ_NR columns. `column` indexes bias, multiplier and offset; `stride` is in elements.
 * `residual` is read if e->sum is there: bytes that lie as those of `out`, or `out` itself, each read before it is
 * written. */
typedef void (*pyq_epilogue_fn)(const int32_t *tile, int64_t rows, const pyq_epilogue *e, int64_t column,
                                const uint8_t *residual, void *out, int64_t stride);

/* One panel, or two, of one segment of QUADS32 each, whose products are finished without a tile between. */
typedef struct {
    const pyq_epilogue *epilogue; /* without a sum; with a table only where pyq_use_vbmi */
    const int32_t *offsets;
    const int8_t *weights; /* of the first panel; those of the second follow */
    int64_t steps, column, columns, stride; /* as for pyq_epilogue_fn; columns that exist: of two panels 17 to 32 */
} pyq_panels;

/* Writes `count` rows of the columns. how: PYQ_FETCH_AHEAD or 0. */
typedef void (*pyq_panels_fn)(const pyq_panels *p, const uint8_t *const *rows, int64_t count, int64_t how, uint8_t *out);

/* The taps of a square depthwise kernel, for up to PYQ_WINDOW neighbouring output pixels at once (depthwise.c). A panel
 * has PYQ_NR channels from 0, PYQ_NR, ... on, but the last one the last PYQ_NR channels. Its weights are int16
 * [pairs][NR][2]: two taps of a channel are multiplied together. The pairs of a kernel of K lines and columns (K odd):
 *     lines (0, 1) of column 0, 1, ..., K - 1; lines (2, 3) of each column; ...
 *     of the last line, columns (0, 1), (2, 3), ..., (K - 1, none); then columns (none, 0), (1, 2), ...
 * where the weight of none is 0. An output pixel uses one of the two forms of the last line. */
#define PYQ_WINDOW 4
#define PYQ_PITCH 72
typedef struct {
    const int16_t *weights;
    const pyq_epilogue *epilogue; /* without a table and without a sum */
    int64_t channels;             /* at least PYQ_NR */
    int32_t lowest;               /* quantized: the lower bound, zero point included */
    int32_t stride;               /* input pixels from one output pixel to the next */
    int64_t apart;                /* elements from one output pixel to the next: `channels`, times the dilation */
    const int8_t *quads;          /* the same weights, for kernels that take four taps of a channel together; or NULL:
                                   * they are not all bytes. [quads][NR][4] for each panel:
                                   *     lines (0, 1, 2, 3) of each column; lines (4, 5, 6, none); ...
                                   * and of the last line of a 5x5 kernel, for each s < 4, with s times none before it,
                                   * the first four columns, and the next four. */
} pyq_taps;

/* Writes `tiles` times `mr` output pixels, all channels. pixels[r * PYQ_PITCH + i]: the channels of input pixel i in
 * line r. */
typedef void (*pyq_window_fn)(const pyq_taps *t, const uint8_t *const *pixels, int64_t tiles, void *out);

typedef struct {
    const char *name;
    int32_t operation, isa, layout, mr, nr, p;
    int32_t kernel, stride;   /* of a window; stride 0: any */
    int32_t quads;            /* of a window: four taps are taken together, for which AVX512-VBMI has to be there */
    pyq_gemm_fn gemm;         /* what the row is: one of these, the others NULL */
    pyq_epilogue_fn epilogue;
    pyq_window_fn window;
    pyq_panels_fn panels;
} pyq_kernel;

/* registry.c */
extern const pyq_kernel pyq_kernels[];
int32_t pyq_kernel_count(void);
int32_t pyq_isa_detected(void);
int32_t pyq_get_isa(void);
int32_t pyq_set_isa(int32_t isa);
int32_t pyq_use_vbmi(void); /* which not all CPUs with AVX512-VNNI have: for tables of bytes and windows of quads */
const pyq_kernel *pyq_select(int32_t layout, int64_t columns, int64_t rows); /* may be NULL for two panels */
pyq_epilogue_fn pyq_select_epilogue(const pyq_epilogue *e);
pyq_panels_fn pyq_select_panels(const pyq_epilogue *e); /* or NULL */
const pyq_kernel *pyq_select_window(int64_t kernel, int64_t stride, int64_t pixels, int32_t quads);
int32_t pyq_can_run(const pyq_kernel *k); /* whether this CPU can */

/* gemm.c: out is [rows, columns], contiguous; so is residual, which is NULL or out itself or does not overlap it. */
void pyq_gemm(const pyq_rows *rows, const pyq_weights *weights, const pyq_epilogue *epilogue, const uint8_t *residual,
              void *out, int64_t columns);
void pyq_apply_epilogue(const int32_t *acc, int64_t rows, int64_t columns, const pyq_epilogue *epilogue,
                        const uint8_t *residual, void *out);

/* lower.c: from the caller's bytes to rows. */
typedef struct {
    const pyq_weights *weights;
    const pyq_epilogue *epilogue;
    int64_t columns;
    int64_t size[3], channels;   /* of an image: depth, height, width; a matrix is images of one pixel */
    int64_t begin[3], end[3];    /* pads */
    int64_t out_size[3], stride[3];
    int64_t dilation[3];         /* read with `window` only: the offsets of the weights have it */
    int32_t shift;               /* added to every byte, modulo 256: makes int8 unsigned */
    int32_t zero;                /* what padding is, shifted */
    int32_t amax;                /* what no shifted byte may exceed */
    int32_t exact_reads;         /* the kernels read nothing behind the images, so that they can stay where they are */
    int32_t window;              /* side of the kernel when it is for pyq_depthwise; else 0 */
    const int16_t *window_weights;
    const int8_t *window_quads;  /* or NULL */
} pyq_call;

enum { PYQ_OK, PYQ_ABOVE_AMAX, PYQ_NO_MEMORY, PYQ_NOT_ALLOWED };
int32_t pyq_run(const pyq_call *call, const void *x, int64_t images, const uint8_t *residual, void *out);

/* dynamic.c: float32 rows times packed weights, by way of uint8. PYQ_NOT_ALLOWED when a number is not finite, or one of
 * the scales would not be. */
typedef struct {
    pyq_call call;         /* for bytes without sign; its epilogue, zero and amax are made for each run */
    const float *scale;    /* of the weights, per column */
    const int32_t *colsum; /* of the packed weights, per column */
    float low, high;       /* bounds of the result, may be infinite */
} pyq_dynamic;

int32_t pyq_run_dynamic(const pyq_dynamic *dynamic, const float *x, int64_t rows, const float *offset, float *out);

/* depthwise.c: as pyq_gemm, where `window` is not 0. */
void pyq_depthwise(const pyq_call *call, const uint8_t *images, int64_t count, const uint8_t *zeros, void *out);

/* pack.c: returns the number of segments; see there for the sizes of the buffers. */
int64_t pyq_pack(const int16_t *w, int64_t quads, int64_t columns, int64_t own_quads, int32_t amax, int32_t isa,
                 pyq_segment *segments, int32_t *order, uint8_t *data);

/* pack_bytes.c: returns the layout, QUADS32 where that is fast and all weights fit int8, else PAIRS16. */
int32_t pyq_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, const int32_t *zero_point,
                       uint8_t *data, int32_t *sums);

/* product.c: products of matrices a[m][k] and b[k][n] of bytes. For those with matrix i of b, first[i] <= j <
 * first[i + 1], a_index[j] and out_index[j] are the numbers of the other two. Returns PYQ_OK or PYQ_NO_MEMORY. */
typedef struct {
    const uint8_t *a, *b;
    int64_t m, k, n, b_count;
    const int64_t *first, *a_index, *out_index;
    int32_t shift, zero;          /* as in pyq_call: zero is the shifted zero point of a */
    int32_t b_is_signed, one_zero_point_row;
    const int32_t *b_zero_points; /* [b_count or 1][n] */
    const pyq_epilogue *epilogue; /* without a sum; for activations whose zero point is 0 */
    uint8_t *out;
} pyq_products;

int32_t pyq_multiply(const pyq_products *products);

/* elementwise.c */
void pyq_lookup(const uint8_t *x, const uint8_t *table, uint8_t *out, int64_t n);
int32_t pyq_quantize(const float *x, uint8_t *out, int64_t n, float scale, int32_t zero_point, float low, float high);
void pyq_dequantize(const uint8_t *q, int32_t is_signed, float *out, int64_t n, float scale, int32_t zero_point);
int32_t pyq_range(const float *x, int64_t n, float *low, float *high);

typedef struct {
    float scale;
    int32_t zero_point;
    int32_t is_signed;
} pyq_affine;

/* y = rne(clamp(x / scale, low, high)) + zero_point; low and high have the zero point subtracted. */
typedef struct {
    float scale, low, high;
    int32_t zero_point;
} pyq_quantizer;

/* How a sum or a difference is found in fixed point, of bytes without sign:
 *     (a * a_factor + b * b_factor + offset) >> fraction_bits,  unless its fraction is at most `close`. */
typedef struct {
    int32_t fraction_bits; /* 0: not so */
    int32_t a_factor, b_factor, offset, close;
} pyq_fixed_sum;

/* An operation on two quantized numbers, and shorter ways to its results. */
typedef struct {
    int32_t op;
    pyq_affine a, b;
    pyq_quantizer out;
    pyq_fixed_sum sum;
    float product_factor; /* by which a product of two differences from zero points is multiplied; 0: not so */
} pyq_arithmetic;

void pyq_prepare_binary(int32_t op, const pyq_affine *a, const pyq_affine *b, const pyq_affine *out, float low,
                        float high, pyq_arithmetic *prepared);
void pyq_binary(const pyq_arithmetic *prepared, int32_t ndim, const int64_t *shape, const uint8_t *a,
                const int64_t *a_strides, const uint8_t *b, const int64_t *b_strides, uint8_t *out);

/* pool.c: images that lie channels last; positions count elements. See there. */
typedef struct {
    const uint8_t *x;
    int32_t is_signed;
    int64_t images, image_size, channels;
    int64_t rows, columns;          /* of the output, for each image */
    const int64_t *starts, *offsets; /* output row r covers input rows at offsets[starts[r]] .. offsets[starts[r + 1]] */
    const int64_t *firsts, *taps;   /* output column c covers taps[c] pixels of a row, from firsts[c] on */
    int64_t step;                   /* from one such pixel to the next */
    const float *counts;            /* [rows, columns]: what the sums of an average are divided by */
} pyq_pool;

/* The average of a window whose elements, as numbers from 0 to 255, sum to s: the 16 bits of
 *     (((s + addend) * factor >> 16) + offset) >> bits,
 * a number with sign that saturates to 8 bits, plus 128, plus the lowest that the result may be, but at most the
 * highest. With `halves`, 1 less where no bit is shifted out and the byte's bit of `down` is set: some halves round
 * down. */
typedef struct {
    uint32_t factor, addend, offset;
    uint32_t bits; /* 0: not so */
    uint32_t halves;
    uint8_t down[32];
} pyq_fixed_mean;

void pyq_max_pool(const pyq_pool *pool, uint8_t *out);
void pyq_average_pool(const pyq_pool *pool, const pyq_affine *from, const pyq_affine *to, float low, float high,
                      const pyq_fixed_mean *fixed, uint8_t *out);

/* transpose.c: [images, rows, columns] to [images, columns, rows], elements of 1 or 4 bytes */
void pyq_transpose(const uint8_t *x, int64_t images, int64_t rows, int64_t columns, int32_t item, uint8_t *out);

/* normalize.c: rows of n > 0 elements; bias may be NULL */
void pyq_softmax(const float *x, int64_t rows, int64_t n, float *out);
void pyq_layer_norm(const float *x, int64_t rows, int64_t n, const float *scale, const float *bias, float epsilon,
                    float *out, float *mean, float *inverse);
void pyq_softmax_of_bytes(const uint8_t *q, int32_t is_signed, int64_t rows, int64_t n, const int32_t *exponentials,
                          float *out);

/* peak.c: loops on registers alone. They return how many cycles, or products, they took; 0 where there is none. */
int64_t pyq_dependent_adds(int64_t iterations);
int64_t pyq_multiplies(int32_t isa, int64_t iterations);
int64_t pyq_multiply_adds(int64_t iterations);

/* threads.c */
typedef void (*pyq_task_fn)(void *context, int64_t task);
void pyq_parallel(pyq_task_fn fn, void *context, int64_t tasks);
int32_t pyq_get_num_threads(void);
void pyq_set_num_threads(int32_t n);

#endif

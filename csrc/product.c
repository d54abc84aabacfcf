/* Products of matrices of bytes, neither of which is kept: the second is packed for this once (pack_bytes.c).
 *
 * What a call from Python prepares once for a weight, is made here in C: of a product of 16x16 matrices it would be nine
 * tenths of the time. The products of a batch, as those of the heads of an attention layer, are small and many, so that
 * with enough of them each thread packs and multiplies its own.
 *
 * Kernels that add products of bytes in 32 bits need b - zero_point in a byte. For sums alone that is always to be had:
 *     sum((a - za) * (b - zb)) = sum((a - za) * (b - middle)) + (middle - zb) * sum(a - za)
 * with 0 of int8 or 128 of uint8 as the middle: one sum for a row, and one product for an output.
 */
#include "isa.h"
#include "pyq.h"

#include <stdatomic.h>
#include <stdlib.h>

typedef struct {
    const pyq_products *p;
    atomic_int failed;
} job;

/* Parts of one block of memory, all for 16 columns a panel: */
typedef struct {
    uint8_t *data;
    pyq_segment *segments;
    int32_t *offsets, *sums, *middle, *rest; /* middle: as zero points; rest: what they leave of the true ones */
    int has_rest;
} packed;

static int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static int reserve(packed *w, int64_t panels, int64_t quads) {
    const size_t data = (size_t)(panels * quads) * 2 * 4 * PYQ_NR, segments = (size_t)panels * sizeof *w->segments;
    const size_t numbers = (size_t)(quads + 3 * panels * PYQ_NR) * sizeof *w->sums;
    w->data = aligned_alloc(64, (size_t)whole((int64_t)(data + segments + numbers), 64) * 64);
    if (!w->data) return 0;
    w->segments = (pyq_segment *)(w->data + data);
    w->sums = (int32_t *)(w->data + data + segments);
    w->middle = w->sums + panels * PYQ_NR;
    w->rest = w->middle + panels * PYQ_NR;
    w->offsets = w->rest + panels * PYQ_NR;
    return 1;
}

#if PYQ_HAVE_AVX512VNNI
/* out[m][n] += rest[n] * the sum of a row, where a[m][k] is shifted, and its zero point subtracted. */
TARGET_AVX2 static void add_rest(const pyq_products *p, const uint8_t *a, const int32_t *rest, uint32_t *out) {
    for (int64_t r = 0; r < p->m; r++, a += p->k, out += p->n) {
        uint32_t sum = 0;
        for (int64_t i = 0; i < p->k; i++) sum += (uint8_t)(a[i] + p->shift);
        sum -= (uint32_t)p->k * (uint32_t)p->zero;
        for (int64_t c = 0; c < p->n; c++) out[c] += (uint32_t)rest[c] * sum;
    }
}
#define BYTES_ONLY(p) ((p)->epilogue->type == PYQ_OUT_INT32 && pyq_get_isa() >= PYQ_ISA_AVX512VNNI)
#else
#define add_rest(...) (void)0
#define BYTES_ONLY(p) 0
#endif

/* The zero points for packing b, and what is left of them. */
static const int32_t *split_zero_points(const pyq_products *p, const int32_t *zero_points, packed *w) {
    w->has_rest = 0;
    if (!BYTES_ONLY(p)) return zero_points;
    const int32_t middle = p->b_is_signed ? 0 : 128;
    for (int64_t c = 0; c < p->n; c++) {
        w->middle[c] = middle, w->rest[c] = middle - zero_points[c];
        w->has_rest |= w->rest[c] != 0;
    }
    return w->middle;
}

/* b[k][n] as the packed weights of `w`. */
static pyq_weights pack(const pyq_products *p, int64_t index, packed *w) {
    const int64_t quads = whole(p->k, 4), panels = whole(p->n, PYQ_NR);
    const int32_t *own = p->b_zero_points + (p->one_zero_point_row ? 0 : index * p->n);
    const int32_t *zero_points = split_zero_points(p, own, w);
    const int32_t layout =
        pyq_pack_bytes(p->b + index * p->k * p->n, p->b_is_signed, p->k, p->n, zero_points, w->data, w->sums);
    const int64_t step = (layout == PYQ_PAIRS16 ? 2 : 1) * 4 * PYQ_NR;
    for (int64_t i = 0; i < panels; i++) {
        const int64_t left = p->n - i * PYQ_NR;
        w->segments[i] = (pyq_segment){.data = i * quads * step, .steps = (int32_t)quads, .layout = layout};
        w->segments[i].column = (int32_t)(i * PYQ_NR), w->segments[i].columns = (int32_t)(left < PYQ_NR ? left : PYQ_NR);
    }
    for (int64_t i = 0; i < quads; i++) w->offsets[i] = (int32_t)(4 * i);
    return (pyq_weights){w->segments, panels, w->offsets, NULL, w->data};
}

/* All products with matrix number `index` of b. */
static void multiply(void *context, int64_t index) {
    job *j = context;
    const pyq_products *p = j->p;
    packed w;
    if (!reserve(&w, whole(p->n, PYQ_NR), whole(p->k, 4))) {
        atomic_store(&j->failed, 1);
        return;
    }
    const pyq_weights weights = pack(p, index, &w);
    for (int64_t c = 0; c < p->n; c++) {
        const uint32_t bias = p->epilogue->bias ? (uint32_t)p->epilogue->bias[c] : 0;
        w.sums[c] = (int32_t)(bias - (uint32_t)w.sums[c] * (uint32_t)p->zero);
    }
    pyq_epilogue epilogue = *p->epilogue;
    epilogue.bias = w.sums;
    const int64_t out_size = p->m * p->n * (epilogue.type == PYQ_OUT_QUANTIZED ? 1 : 4);
    const pyq_call call = {
        .weights = &weights, .epilogue = &epilogue, .columns = p->n, .channels = p->k, .shift = p->shift, .amax = 255,
        .size = {1, 1, 1}, .out_size = {1, 1, 1}, .stride = {1, 1, 1}, .exact_reads = p->k % 4 == 0};
    for (int64_t i = p->first[index]; i < p->first[index + 1]; i++) {
        const uint8_t *a = p->a + p->a_index[i] * p->m * p->k;
        uint8_t *out = p->out + p->out_index[i] * out_size;
        if (pyq_run(&call, a, p->m, NULL, out) != PYQ_OK) atomic_store(&j->failed, 1);
        if (w.has_rest) add_rest(p, a, w.rest, (uint32_t *)out);
    }
    free(w.data);
}

int32_t pyq_multiply(const pyq_products *p) {
    job j = {.p = p};
    if (p->b_count >= 2 * pyq_get_num_threads())
        pyq_parallel(multiply, &j, p->b_count);
    else
        for (int64_t i = 0; i < p->b_count; i++) multiply(&j, i);
    return atomic_load(&j.failed) ? PYQ_NO_MEMORY : PYQ_OK;
}

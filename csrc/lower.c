/* From the caller's bytes to the rows of the loop nest: shifted to uint8, padded, widened where a layout wants int16.
 *
 * Kernels see activations in [0, 255] only: an int8 value is shifted up by half of amax + 1, and its zero point with
 * it, which no integer result can tell. Images that need none of this stay where they are. The copy is checked against
 * amax as it is made: the proofs of the packing hold up to there.
 *
 * Compiled for the baseline and for AVX2, where the compiler makes of a line one load, addition and maximum, and one
 * vpmovzxbw and store, for 16 or 32 elements.
 */
#include "isa.h"
#include "lower.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINE = 4096,              /* elements of a line where images need no padding: any run of bytes will do */
    TASK_ELEMENTS = 8 * LINE, /* elements of a task: 1 to 3 us */
};

typedef struct {
    const pyq_call *call;
    const uint8_t *x;
    uint8_t *bytes;
    int16_t *words;
    int64_t line, total;      /* elements of a line; of all, where nothing is padded */
    int64_t lines_per_task, lines;
    int padded;
    atomic_int highest;
} job;

ALWAYS_INLINE int convert_line(const uint8_t *restrict x, int64_t n, uint8_t shift, uint8_t *restrict bytes,
                               int16_t *restrict words) {
    uint8_t highest = 0;
    if (bytes)
        for (int64_t i = 0; i < n; i++) {
            const uint8_t value = (uint8_t)(x[i] + shift);
            highest = value > highest ? value : highest;
            bytes[i] = value;
        }
    if (words)
        for (int64_t i = 0; i < n; i++) {
            const uint8_t value = (uint8_t)(x[i] + shift);
            highest = value > highest ? value : highest;
            words[i] = value;
        }
    if (!bytes && !words)
        for (int64_t i = 0; i < n; i++) {
            const uint8_t value = (uint8_t)(x[i] + shift);
            highest = value > highest ? value : highest;
        }
    return highest;
}

#if PYQ_HAVE_AVX2
TARGET_AVX2 static int convert_line_avx2(const uint8_t *x, int64_t n, uint8_t shift, uint8_t *bytes, int16_t *words) {
    return convert_line(x, n, shift, bytes, words);
}
#define CONVERT(...) (pyq_get_isa() >= PYQ_ISA_AVX2 ? convert_line_avx2(__VA_ARGS__) : convert_line(__VA_ARGS__))
#else
#define CONVERT(...) convert_line(__VA_ARGS__)
#endif

static void fill(const job *j, int64_t to, int64_t n) {
    if (j->bytes) memset(j->bytes + to, j->call->zero, (size_t)n);
    if (j->words)
        for (int64_t i = 0; i < n; i++) j->words[to + i] = (int16_t)j->call->zero;
}

static int convert(const job *j, const uint8_t *x, int64_t to, int64_t n) {
    return CONVERT(x, n, (uint8_t)j->call->shift, j->bytes ? j->bytes + to : NULL, j->words ? j->words + to : NULL);
}

/* Line number `line` of the padded images. */
static int convert_padded(const job *j, int64_t line) {
    const pyq_call *c = j->call;
    const int64_t height = c->begin[1] + c->size[1] + c->end[1], depth = c->begin[0] + c->size[0] + c->end[0];
    const int64_t h = line % height - c->begin[1], d = line / height % depth - c->begin[0], n = line / height / depth;
    const int64_t to = line * j->line, left = c->begin[2] * c->channels, width = c->size[2] * c->channels;
    if (h < 0 || h >= c->size[1] || d < 0 || d >= c->size[0]) {
        fill(j, to, j->line);
        return 0;
    }
    fill(j, to, left);
    fill(j, to + left + width, j->line - left - width);
    return convert(j, j->x + ((n * c->size[0] + d) * c->size[1] + h) * width, to + left, width);
}

static void run_lines(void *context, int64_t task) {
    job *j = context;
    int64_t last = (task + 1) * j->lines_per_task;
    int highest = 0;
    for (int64_t line = task * j->lines_per_task; line < (last < j->lines ? last : j->lines); line++) {
        const int64_t at = line * j->line, left = j->total - at;
        const int here = j->padded ? convert_padded(j, line) : convert(j, j->x + at, at, left < j->line ? left : j->line);
        highest = here > highest ? here : highest;
    }
    for (int seen = atomic_load(&j->highest); highest > seen;)
        if (atomic_compare_exchange_weak(&j->highest, &seen, highest)) break;
}

/* Each thread keeps one buffer, as large as the largest call needed. */
typedef struct {
    void *memory;
    size_t size;
} buffer;
static _Thread_local buffer scratch;
static pthread_key_t at_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&at_exit, free); }

uint8_t *pyq_reserve(size_t size) {
    if (scratch.size < size) {
        pthread_once(&once, make_key);
        free(scratch.memory);
        scratch.size = 0;
        scratch.memory = aligned_alloc(64, (size + 63) / 64 * 64);
        pthread_setspecific(at_exit, scratch.memory);
        if (scratch.memory) scratch.size = size;
    }
    return scratch.memory;
}

static void needs(const pyq_weights *w, int *bytes, int *words) {
    for (int64_t i = 0; i < w->segment_count; i++)
        if (w->segments[i].layout <= PYQ_PAIRS8W)
            *words = 1;
        else
            *bytes = 1;
}

/* What a call needs, in bytes, one part behind the other. */
typedef struct {
    int64_t padded[3], row, total; /* size of a padded image; elements of a line of it, and of all images */
    int padded_any, words, in_place;
    size_t byte_size, word_size, size;
} layout;

static layout lay_out(const pyq_call *c, int64_t images) {
    layout l = {.row = c->channels};
    for (int d = 0; d < 3; d++) {
        l.padded[d] = c->size[d] + (c->window ? 0 : c->begin[d] + c->end[d]);
        l.padded_any |= l.padded[d] != c->size[d];
    }
    l.row *= l.padded[2];
    l.total = images * l.padded[0] * l.padded[1] * l.row;
    int bytes = 0;
    needs(c->weights, &bytes, &l.words);
    l.in_place = bytes && !c->shift && !l.padded_any && c->exact_reads;
    l.byte_size = bytes && !l.in_place ? (size_t)(l.total + PYQ_SLACK + 63) / 64 * 64 : 0;
    l.word_size = 2 * (size_t)(l.words ? l.total + PYQ_SLACK : PYQ_SLACK);
    l.size = l.byte_size + l.word_size + (size_t)(c->window ? c->channels : 0);
    return l;
}

size_t pyq_memory_of(const pyq_call *c, int64_t images) { return lay_out(c, images).size; }

int32_t pyq_run_in(uint8_t *memory, const pyq_call *c, const void *x, int64_t images, const uint8_t *residual,
                   void *out) {
    const layout l = lay_out(c, images);
    job j = {.call = c, .x = x, .padded = l.padded_any, .total = l.total};
    j.bytes = l.byte_size ? memory : NULL;
    j.words = l.words ? (int16_t *)(memory + l.byte_size) : NULL;
    if (j.bytes || j.words || c->amax < 255) {
        j.line = j.padded ? l.row : LINE;
        j.lines = j.padded ? images * l.padded[0] * l.padded[1] : (l.total + LINE - 1) / LINE;
        j.lines_per_task = j.line > TASK_ELEMENTS ? 1 : TASK_ELEMENTS / (j.line ? j.line : 1);
        pyq_parallel(run_lines, &j, (j.lines + j.lines_per_task - 1) / j.lines_per_task);
        if (atomic_load(&j.highest) > c->amax) return PYQ_ABOVE_AMAX;
    }
    const uint8_t *bytes = l.in_place ? x : j.bytes;
    if (c->window) {
        uint8_t *zeros = memory + l.byte_size + l.word_size;
        memset(zeros, c->zero, (size_t)c->channels);
        pyq_depthwise(c, bytes, images, zeros, out);
        return PYQ_OK;
    }
    const pyq_rows rows = {
        .bytes = bytes,
        .words = j.words,
        .images = images,
        .size = {c->out_size[0], c->out_size[1], c->out_size[2]},
        .stride_n = l.padded[0] * l.padded[1] * l.row,
        .stride = {c->stride[0] * l.padded[1] * l.row, c->stride[1] * l.row, c->stride[2] * c->channels},
    };
    pyq_gemm(&rows, c->weights, c->epilogue, residual, out, c->columns);
    return PYQ_OK;
}

/* Compute out [images * out_size, columns] from contiguous images [images, *size, channels]; residual as in pyq_gemm. */
int32_t pyq_run(const pyq_call *c, const void *x, int64_t images, const uint8_t *residual, void *out) {
    uint8_t *memory = pyq_reserve(pyq_memory_of(c, images));
    return memory ? pyq_run_in(memory, c, x, images, residual, out) : PYQ_NO_MEMORY;
}

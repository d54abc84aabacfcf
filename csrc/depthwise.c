/* Depthwise convolution of the usual kernels: 3x3, 5x5 and 7x7, strides 1 and 2 along a line. The others go through gemm.c.
 *
 * A microkernel computes a few neighbouring pixels, all channels of them, and is given the address of every input pixel
 * that it reads. A pixel outside the image has the address of a line of zero points: nothing is padded or copied. The
 * addresses of a run of tiles are made at once. Tasks are runs of output lines.
 * Dilation d along a line (at stride 1): outputs d pixels apart share input pixels as neighbours do without. So a line is
 * done in d turns, each of which takes every d-th pixel.
 */
#include "isa.h"
#include "pyq.h"

enum {
    RUN = 32, /* output pixels whose addresses are made at once: PYQ_PITCH >= (RUN - 1) * 2 + MAX_KERNEL */
    MAX_KERNEL = 7,
    TASK_PRODUCTS = 1 << 19, /* about 20 us of work: less than this is not worth waking a thread for */
};

typedef struct {
    const pyq_call *call;
    const uint8_t *images, *zeros;
    uint8_t *out;
    const pyq_kernel *kernels[PYQ_WINDOW + 1]; /* by the pixels that are left */
    pyq_epilogue epilogue; /* without the table, which is applied to whole lines */
    pyq_taps taps;
    int64_t lines, lines_per_task, pixel_size; /* output lines of all images; bytes of an output pixel */
} job;

static int64_t limited(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* Addresses of `count` input pixels from column `first` on, of the lines under the kernel at line h of image n; as far
 * apart as the kernel's own. */
static void gather(const job *j, int64_t n, int64_t h, int64_t first, int64_t count, const uint8_t **pixels) {
    const pyq_call *c = j->call;
    const int64_t channels = c->channels, apart = c->dilation[2];
    const int64_t begin = limited((apart - 1 - first) / apart, 0, count);
    const int64_t end = limited((c->size[2] - first + apart - 1) / apart, begin, count);
    for (int64_t r = 0; r < c->window; r++, pixels += PYQ_PITCH) {
        const int64_t y = h * c->stride[1] + r * c->dilation[1] - c->begin[1];
        const int inside = y >= 0 && y < c->size[1];
        const uint8_t *line = inside ? j->images + ((n * c->size[1] + y) * c->size[2] + first) * channels : j->zeros;
        const int64_t step = inside ? apart * channels : 0;
        for (int64_t i = 0; i < begin; i++) pixels[i] = j->zeros;
        for (int64_t i = begin; i < end; i++) pixels[i] = line + i * step;
        for (int64_t i = end; i < count; i++) pixels[i] = j->zeros;
    }
}

/* The output pixels x, x + dilation, ... of line h of image n. */
static void run_turn(const job *j, int64_t n, int64_t h, int64_t x, uint8_t *out) {
    const pyq_call *c = j->call;
    const uint8_t *pixels[PYQ_PITCH * MAX_KERNEL];
    const int64_t width = c->out_size[2], stride = c->stride[2], apart = c->dilation[2];
    for (int64_t left = (width - x + apart - 1) / apart, count; left > 0; left -= count, x += count * apart) {
        count = left < RUN ? left : RUN;
        gather(j, n, h, x * stride - c->begin[2], (count - 1) * stride + c->window, pixels);
        for (int64_t i = 0; i < count;) {
            const pyq_kernel *k = j->kernels[count - i < PYQ_WINDOW ? count - i : PYQ_WINDOW];
            const int64_t tiles = (count - i) / k->mr;
            k->window(&j->taps, pixels + i * stride, tiles, out + (x + i * apart) * j->pixel_size);
            i += tiles * k->mr;
        }
    }
}

static void run_line(const job *j, int64_t line) {
    const pyq_call *c = j->call;
    const int64_t width = c->out_size[2], turns = c->dilation[2] < width ? c->dilation[2] : width;
    uint8_t *out = j->out + line * width * j->pixel_size;
    for (int64_t x = 0; x < turns; x++) run_turn(j, line / c->out_size[1], line % c->out_size[1], x, out);
    if (c->epilogue->table) pyq_lookup(out, c->epilogue->table, out, width * j->pixel_size);
}

static void run_task(void *context, int64_t task) {
    const job *j = context;
    const int64_t last = (task + 1) * j->lines_per_task;
    for (int64_t line = task * j->lines_per_task; line < (last < j->lines ? last : j->lines); line++) run_line(j, line);
}

/* images: shifted to uint8. zeros: `channels` bytes of the shifted zero point. */
void pyq_depthwise(const pyq_call *c, const uint8_t *images, int64_t count, const uint8_t *zeros, void *out) {
    job j = {.call = c, .images = images, .zeros = zeros, .out = out, .epilogue = *c->epilogue};
    j.epilogue.table = NULL;
    const int quantized = c->epilogue->type == PYQ_OUT_QUANTIZED;
    const int32_t lowest = quantized ? (int32_t)c->epilogue->low + c->epilogue->zero_point : 0;
    j.taps = (pyq_taps){c->window_weights, &j.epilogue, c->channels, lowest, (int32_t)c->stride[2],
                        c->channels * c->dilation[2], c->window_quads};
    for (int left = 1; left <= PYQ_WINDOW; left++)
        j.kernels[left] = pyq_select_window(c->window, c->stride[2], left, c->window_quads != NULL);
    j.pixel_size = c->channels * (quantized ? 1 : 4);
    j.lines = count * c->out_size[1];
    if (j.lines == 0) return;
    const int64_t products = j.lines * c->out_size[2] * c->channels * c->window * c->window;
    const int64_t tasks = limited(products / TASK_PRODUCTS, 1, 4 * pyq_get_num_threads());
    j.lines_per_task = (j.lines + tasks - 1) / tasks;
    pyq_parallel(run_task, &j, (j.lines + j.lines_per_task - 1) / j.lines_per_task);
}

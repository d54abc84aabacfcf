/* The kernel table, what this CPU can run of it, and the choice. */
#include "pyq.h"

#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "x86/avx512_lookup.h"

#define KERNEL(operation, name, isa, layout, mr, nr, p) \
    void pyq_##name(int32_t *, const uint8_t *const *, const int32_t *, const void *, int64_t, int64_t);
#define EPILOGUE(operation, name, isa) \
    void pyq_##name(const int32_t *, int64_t, const pyq_epilogue *, int64_t, const uint8_t *, void *, int64_t);
#define WINDOW(name, isa, kernel, stride, mr) \
    void pyq_##name(const pyq_taps *, const uint8_t *const *, int64_t, void *);
#define QUAD_WINDOW WINDOW
#define PANELS(operation, name, isa, mr, nr) \
    void pyq_##name(const pyq_panels *, const uint8_t *const *, int64_t, int64_t, uint8_t *);
#include "kernels.def"
#undef KERNEL
#undef EPILOGUE
#undef WINDOW
#undef QUAD_WINDOW
#undef PANELS

const pyq_kernel pyq_kernels[] = {
#define KERNEL(operation, name, isa, layout, mr, nr, p) \
    {#name, PYQ_##operation, PYQ_ISA_##isa, PYQ_##layout, mr, nr, p, 0, 0, 0, pyq_##name, NULL, NULL, NULL},
#define EPILOGUE(operation, name, isa) \
    {#name, PYQ_##operation, PYQ_ISA_##isa, -1, 0, 16, 0, 0, 0, 0, NULL, pyq_##name, NULL, NULL},
#define WINDOW(name, isa, kernel, stride, mr) \
    {#name, PYQ_DEPTHWISE, PYQ_ISA_##isa, -1, mr, 16, 1, kernel, stride, 0, NULL, NULL, pyq_##name, NULL},
#define QUAD_WINDOW(name, isa, kernel, stride, mr) \
    {#name, PYQ_DEPTHWISE, PYQ_ISA_##isa, -1, mr, 16, 1, kernel, stride, 1, NULL, NULL, pyq_##name, NULL},
#define PANELS(operation, name, isa, mr, nr) \
    {#name, PYQ_##operation, PYQ_ISA_##isa, -1, mr, nr, 1, 0, 0, 0, NULL, NULL, NULL, pyq_##name},
#include "kernels.def"
};

int32_t pyq_kernel_count(void) { return (int32_t)(sizeof pyq_kernels / sizeof pyq_kernels[0]); }

#if PYQ_HAVE_AVX2
#include <cpuid.h>

static const unsigned SAVES_AVX = 0x06, SAVES_AVX512 = 0xe6;       /* XCR0: SSE and AVX state; and masks, all of ZMM */
static const unsigned AVX2 = 1u << 5;                              /* EBX of CPUID leaf 7 */
static const unsigned AVX512 = 1u << 16 | 1u << 30 | 1u << 31;     /* F, BW and VL */
static const unsigned VNNI = 1u << 11, VBMI = 1u << 1;             /* ECX */

/* __builtin_cpu_supports lacks names on some compilers, so ask CPUID, and XGETBV whether the OS saves the registers. A
 * function of its own, for tests on emulated CPUs. */
__attribute__((noinline)) static int32_t detect(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return PYQ_ISA_SCALAR; /* OSXSAVE */
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & SAVES_AVX) != SAVES_AVX || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return PYQ_ISA_SCALAR;
    const int wide = (low & SAVES_AVX512) == SAVES_AVX512 && (b & AVX512) == AVX512 && (c & VNNI);
    return wide && PYQ_HAVE_AVX512VNNI ? PYQ_ISA_AVX512VNNI : PYQ_ISA_AVX2;
}

static int detect_vbmi(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & VBMI);
}
#else
static int32_t detect(void) { return PYQ_ISA_SCALAR; }
static int detect_vbmi(void) { return 0; }
#endif

static const char *const NAMES[PYQ_ISAS] = {"scalar", "avx2", "avx512vnni"}; /* in PYQ_ISA */

enum { MAX_KERNEL = 7, MAX_STRIDE = 2 }; /* of a WINDOW */

enum { NARROW, FULL, PAIR, WIDTHS }; /* at most half the columns of a panel, all of them, those of two panels */

/* best[layout][width][rows]: the kernel to use when `rows` rows are left. Rebuilt by pyq_set_isa, read without a lock. */
static const pyq_kernel *best[PYQ_LAYOUTS][WIDTHS][PYQ_MAX_MR + 1];
static pyq_epilogue_fn best_epilogue;
static pyq_panels_fn best_panels[2]; /* whether they quantize */
static const pyq_kernel *best_window[2][MAX_KERNEL + 1][MAX_STRIDE + 1][PYQ_WINDOW + 1]; /* of quads: [1] */
static int32_t detected, current;
static int has_vbmi;

int32_t pyq_isa_detected(void) { return detected; }
int32_t pyq_get_isa(void) { return current; }
int32_t pyq_use_vbmi(void) { return has_vbmi && current >= PYQ_ISA_AVX512VNNI; }

int32_t pyq_can_run(const pyq_kernel *k) { return k->isa <= detected && (has_vbmi || !k->quads); }

static int better(const pyq_kernel *k, const pyq_kernel *than) {
    if (than == NULL || k->isa != than->isa) return than == NULL || k->isa > than->isa;
    return k->nr != than->nr ? k->nr < than->nr : k->mr > than->mr;
}

static int width_of(int64_t columns) { return columns > PYQ_NR ? PAIR : columns > PYQ_NR / 2 ? FULL : NARROW; }

static void offer_tile(const pyq_kernel *k) {
    const int widest = width_of(k->nr);
    for (int width = widest == FULL ? NARROW : widest; width <= widest; width++)
        for (int rows = k->mr; rows <= PYQ_MAX_MR; rows++) {
            const pyq_kernel **best_here = &best[k->layout][width][rows];
            if (better(k, *best_here)) *best_here = k;
        }
}

static void offer_window(const pyq_kernel *k) {
    for (int stride = 1; stride <= MAX_STRIDE; stride++)
        for (int pixels = k->mr; pixels <= PYQ_WINDOW; pixels++) {
            const pyq_kernel **best_here = &best_window[k->quads][k->kernel][stride][pixels];
            if ((k->stride == stride || k->stride == 0) && better(k, *best_here)) *best_here = k;
        }
}

/* Cap the choice at `isa`, for tests and comparisons; returns what is now in force. Not while another thread computes. */
int32_t pyq_set_isa(int32_t isa) {
    current = isa < detected ? isa : detected;
    memset(best, 0, sizeof best);
    memset(best_window, 0, sizeof best_window);
    memset(best_panels, 0, sizeof best_panels);
    for (int32_t i = 0; i < pyq_kernel_count(); i++) {
        const pyq_kernel *k = &pyq_kernels[i];
        if (k->isa > current || !pyq_can_run(k)) continue;
        if (k->epilogue) best_epilogue = k->epilogue; /* the rows are in the order of the instruction sets */
        if (k->panels) best_panels[k->operation == PYQ_GEMM_REQUANTIZE] = k->panels;
        if (k->window) offer_window(k);
        if (k->gemm) offer_tile(k);
    }
    return current;
}

const pyq_kernel *pyq_select(int32_t layout, int64_t columns, int64_t rows) {
    return best[layout][width_of(columns)][rows < PYQ_MAX_MR ? rows : PYQ_MAX_MR];
}

pyq_epilogue_fn pyq_select_epilogue(const pyq_epilogue *e) {
#if PYQ_HAVE_AVX512VNNI
    if (e->table && pyq_use_vbmi()) return pyq_avx512vbmi_requantize;
#endif
    (void)e;
    return best_epilogue;
}

pyq_panels_fn pyq_select_panels(const pyq_epilogue *e) {
    return e->sum || (e->table && !pyq_use_vbmi()) ? NULL : best_panels[e->type == PYQ_OUT_QUANTIZED];
}

const pyq_kernel *pyq_select_window(int64_t kernel, int64_t stride, int64_t pixels, int32_t quads) {
    if (pixels > PYQ_WINDOW) pixels = PYQ_WINDOW;
    const pyq_kernel *of_quads = quads ? best_window[1][kernel][stride][pixels] : NULL;
    return of_quads ? of_quads : best_window[0][kernel][stride][pixels];
}

__attribute__((constructor)) static void initialize(void) {
    detected = detect(), has_vbmi = detect_vbmi();
    const char *cap = getenv("PYQ_ISA");
    int32_t isa = PYQ_ISAS - 1;
    for (int32_t i = 0; cap && i < PYQ_ISAS; i++)
        if (strcmp(cap, NAMES[i]) == 0) isa = i;
    pyq_set_isa(isa);
}

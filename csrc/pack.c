/* Packing: weights to panels, and the proof that 16-bit sums cannot overflow.
 *
 * vpmaddubsw adds two u8 * s8 products in int16 and saturates. With activations up to amax a lane is exact whatever
 * the activations are if amax * (sum of its positive weights) <= 32767 and amax * (sum of |its negative weights|) <=
 * 32767. Weights are constants, so this is decided here, once:
 *   1. a quad with a lane that breaks the bound by itself is widened to 32 bits at once (QUADS32);
 *   2. the other quads are bin-packed, heaviest first, into pairs whose lanes keep the bound together (QUADS8P2), and
 *      pairs into fours (QUADS8P4); who finds no mate stays alone (QUADS8).
 * A panel is then up to four segments, one for each layout. Where many quads widen, it is cheaper to widen the
 * activations beforehand, once for all panels (PAIRS8W); where nearly all do, to widen all quads of the panel, and of a
 * small matrix their weights as well (PAIRS16). What is cheapest is told by the measured cost of a step. A panel whose
 * folded weights do not fit int8 is PAIRS16. The order of quads costs nothing: each has its offset.
 *
 * Where vpdpbusd adds products of bytes in 32 bits nothing is gained by a proof: all quads are QUADS32.
 */
#include "isa.h"
#include "pack_plan.h"
#include "pyq.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_SEGMENTS = 4,    /* of a panel */
    SMALL = 512 << 10,   /* bytes of int16 weights that stay in a second-level cache: a row reads them as fast as int8 */
    HIGHEST_BOUND = 4096 /* above any sum of a group, which is at most 8 * 128; and sums of two loads fit int16 */
};

/* Nanoseconds per row, as the costs of a plan (from products of 512 to 3072 rows, scaled to those): the widening of a
 * quad of activations; and what it costs a panel that a quad is in the caches in both forms. */
static const float WIDEN = 0.17f, BOTH = 0.015f;

ALWAYS_INLINE void interleave_n(const int16_t *restrict a, const int16_t *restrict b, int16_t *restrict out,
                                const int64_t n) {
    for (int64_t i = 0; i < n; i++) out[2 * i] = a[i], out[2 * i + 1] = b[i];
}

/* A whole panel is the usual case, and with a constant length two unpack instructions for eight columns. */
static void interleave(const int16_t *a, const int16_t *b, int16_t *out, int64_t n) {
    if (n == PYQ_NR)
        interleave_n(a, b, out, PYQ_NR);
    else
        interleave_n(a, b, out, n);
}

static void store_pairs16(const int16_t *w, int64_t quads, int64_t columns, const pyq_segment *s, int32_t *order,
                          uint8_t *data) {
    int16_t *to = (int16_t *)data;
    if (s->columns < PYQ_NR) memset(data, 0, (size_t)quads * 128);
    for (int64_t q = 0; q < quads; q++, to += 4 * PYQ_NR) {
        order[q] = (int32_t)q;
        for (int half = 0; half < 2; half++) {
            const int16_t *first = w + (4 * q + 2 * half) * columns + s->column, *second = first + columns;
            interleave(first, second, to + half * 2 * PYQ_NR, s->columns);
        }
    }
}

/* Returns whether all weights fit int8. */
static int store_quads32(const int16_t *w, int64_t quads, int64_t columns, const pyq_segment *s, int32_t *order,
                         uint8_t *data) {
    int fits = 1;
    for (int64_t q = 0; q < quads && fits; q++) {
        order[q] = (int32_t)q;
        fits = pyq_load_quad(w + 4 * q * columns + s->column, columns, s->columns, (int8_t *)data + q * QUAD);
    }
    return fits;
}

static void store_pair8(const int8_t *w, int8_t *to) {
    for (int half = 0; half < 2; half++)
        for (int c = 0; c < PYQ_NR; c++)
            for (int k = 0; k < 2; k++) to[(half * PYQ_NR + c) * 2 + k] = w[4 * c + 2 * half + k];
}

/* The steps of one layout; groups that are not full are filled with zeros. Returns their number. */
static int32_t store_groups(const list *groups, int layout, int32_t *order, uint8_t *data) {
    const int size = layout == PYQ_QUADS8P4 ? 4 : layout == PYQ_QUADS8P2 ? 2 : 1;
    int32_t steps = 0;
    for (int64_t i = 0; i < groups->count; i++) {
        const item *it = groups->items[i];
        for (int k = 0; k < size; k++, steps++, it = it ? it->next : NULL) {
            int8_t *to = (int8_t *)data + (int64_t)steps * QUAD;
            order[steps] = it ? it->quad : groups->items[i]->quad;
            if (!it)
                memset(to, 0, QUAD);
            else if (layout == PYQ_PAIRS8W)
                store_pair8(it->w, to);
            else
                memcpy(to, it->w, QUAD);
        }
    }
    return steps;
}

/* Store the segments of a plan, in the order of the layouts; returns how many there are. */
static int64_t store_plan(const plan *p, pyq_segment *s, int32_t *order, uint8_t *data) {
    const pyq_segment first = *s;
    int64_t count = 0, used = 0, entries = 0;
    for (int layout = PYQ_PAIRS8W; layout <= PYQ_QUADS8P4; layout++) {
        if (!p->of[layout].count) continue;
        s[count] = first;
        s[count].layout = layout;
        s[count].data = used;
        s[count].order = (int32_t)entries;
        s[count].steps = store_groups(&p->of[layout], layout, order + entries, data + used);
        used += (int64_t)s[count].steps * QUAD;
        entries += s[count].steps;
        count++;
    }
    return count;
}

/* The matrix, and room for each of its panels at a fixed distance, so that they can be packed in any order. */
typedef struct {
    const int16_t *w;
    int64_t quads, columns, own_quads;
    int bound, adds32;     /* adds32: the CPU adds products of bytes in 32 bits */
    int widened;           /* layout of panels that are widened as a whole */
    float most;            /* a panel that costs more is widened */
    pyq_segment *segments; /* MAX_SEGMENTS for a panel; their data and order count from the panel's own room */
    int32_t *order;
    uint8_t *data;
    int64_t order_room, data_room;
    int32_t *counts;
    float *costs;
} job;

/* By the plan, or, where there is none, in the one layout that needs none. */
static void store_panel(const job *j, int64_t panel, const plan *p) {
    pyq_segment *s = j->segments + panel * MAX_SEGMENTS;
    const int64_t column = panel * PYQ_NR, left = j->columns - column;
    *s = (pyq_segment){.column = (int32_t)column, .columns = (int32_t)(left < PYQ_NR ? left : PYQ_NR)};
    int32_t *order = j->order + panel * j->order_room;
    uint8_t *data = j->data + panel * j->data_room;
    if (p) {
        j->counts[panel] = (int32_t)store_plan(p, s, order, data);
        j->costs[panel] = p->cost;
        return;
    }
    const int bytes = j->adds32 && store_quads32(j->w, j->quads, j->columns, s, order, data);
    if (!bytes) store_pairs16(j->w, j->quads, j->columns, s, order, data);
    s->steps = (int32_t)j->quads;
    s->layout = bytes ? PYQ_QUADS32 : PYQ_PAIRS16;
    j->counts[panel] = 1;
    j->costs[panel] = pyq_segment_cost(s->layout, j->quads, 1);
}

/* Pack a panel that costs more than `most`: at first every panel does. */
static void pack_panel(void *context, int64_t panel) {
    const job *j = context;
    if (j->costs[panel] <= j->most) return;
    const int64_t column = panel * PYQ_NR, left = j->columns - column, n = left < PYQ_NR ? left : PYQ_NR;
    const int words = j->most >= 0 && j->widened == PYQ_PAIRS16 && n > PYQ_NR / 2; /* narrow kernels take bytes */
    if (j->adds32 || words) {
        store_panel(j, panel, NULL);
        return;
    }
    const size_t quads = (size_t)j->quads;
    item *items = malloc(quads * sizeof *items), **lists = malloc(5 * quads * sizeof *lists);
    plan p = {0};
    for (int i = 0; lists && i < 5; i++) p.of[PYQ_PAIRS8W + i].items = lists + (size_t)i * quads;
    /* Too wide for bytes, or no memory for the proof: what is left is PAIRS16. */
    const int fits8 = items && lists && pyq_load_items(items, j->w + column, j->quads, j->columns, n);
    if (fits8 && j->most < 0)
        pyq_make_plan(&p, items, j->quads, j->bound);
    else if (fits8)
        pyq_widen_all(&p, items, j->quads);
    store_panel(j, panel, fits8 ? &p : NULL);
    free(items);
    free(lists);
}

/* The segment of a panel whose kernel widens activations, or NULL. */
static pyq_segment *widening_segment(const job *j, int64_t panel) {
    pyq_segment *s = j->segments + panel * MAX_SEGMENTS, *end = s + j->counts[panel];
    while (s < end && s->layout != PYQ_QUADS32) s++;
    return s < end ? s : NULL;
}

/* What a panel costs when its activations come widened as well. */
static float cost_with_words(const job *j, int64_t panel) {
    const pyq_segment *s = widening_segment(j, panel);
    if (!s) return j->costs[panel];
    return j->costs[panel] - pyq_saved_by_words() * (float)s->steps + BOTH * (float)j->own_quads;
}

static void use_words(const job *j, int64_t panel) {
    const float cost = cost_with_words(j, panel);
    if (cost >= j->costs[panel] || cost >= j->most) return;
    pyq_segment *s = widening_segment(j, panel);
    int8_t *to = (int8_t *)j->data + panel * j->data_room + s->data, quad[QUAD];
    for (int32_t i = 0; i < s->steps; i++, to += QUAD) memcpy(quad, to, QUAD), store_pair8(quad, to);
    s->layout = PYQ_PAIRS8W;
    j->costs[panel] = cost;
}

/* Share out the quads of all panels. Then see what each would gain from activations that are widened beforehand, for its
 * own widened quads or by widening all; if together they gain more than that costs, it is done. */
static void pack_panels(job *j, int64_t panels) {
    const float widened = pyq_segment_cost(j->widened, j->quads, 1);
    float gain = -WIDEN * (float)j->own_quads;
    j->most = -1;
    for (int64_t p = 0; p < panels; p++) j->costs[p] = 0;
    pyq_parallel(pack_panel, j, panels);
    if (j->adds32) return;
    for (int64_t p = 0; p < panels; p++) {
        const float words = cost_with_words(j, p), least = words < widened ? words : widened;
        if (j->segments[p * MAX_SEGMENTS].layout == PYQ_PAIRS16)
            gain += WIDEN * (float)j->own_quads, j->costs[p] = 0; /* they are widened for this one anyway */
        else if (j->costs[p] > least)
            gain += j->costs[p] - least;
    }
    j->most = widened;
    if (gain <= 0) return;
    for (int64_t p = 0; p < panels; p++) use_words(j, p);
    pyq_parallel(pack_panel, j, panels);
}

static int64_t segment_bytes(const pyq_segment *s) { return s->steps * (s->layout == PYQ_PAIRS16 ? 2 * QUAD : QUAD); }

/* Move the panels together; returns the number of segments. */
static int64_t close_gaps(const job *j, int64_t panels) {
    int64_t count = 0, used = 0, entries = 0;
    for (int64_t p = 0; p < panels; p++) {
        const pyq_segment *s = j->segments + p * MAX_SEGMENTS;
        for (int32_t i = 0; i < j->counts[p]; i++, s++) {
            pyq_segment to = *s;
            const int32_t *order = j->order + p * j->order_room + s->order;
            const size_t order_size = (size_t)s->steps * sizeof *order;
            to.data = used, to.order = (int32_t)entries;
            memmove(j->data + used, j->data + p * j->data_room + s->data, (size_t)segment_bytes(s));
            used += segment_bytes(s);
            if (count && j->segments[count - 1].steps == s->steps &&
                !memcmp(order, j->order + j->segments[count - 1].order, order_size)) {
                to.order = j->segments[count - 1].order; /* the fewer lists, the less a row reads beside its weights */
            } else {
                memmove(j->order + entries, order, order_size);
                entries += s->steps;
            }
            j->segments[count++] = to;
        }
    }
    return count;
}

/* Pack w[4 * quads][columns], folded weights in [-255, 255]; `quads` >= 1. `own_quads`: how many quads of activations a
 * row does not share with its neighbours, as those of a convolution share most. `isa`: of the CPU that is to run it. For
 * each of the ceil(columns / PYQ_NR) panels, segments has room for 4, order for quads + 4 and data for 128 * quads + 256
 * bytes. What is used of them follows each other without gaps. Returns the number of segments, 0 when there is no
 * memory. */
int64_t pyq_pack(const int16_t *w, int64_t quads, int64_t columns, int64_t own_quads, int32_t amax, int32_t isa,
                 pyq_segment *segments, int32_t *order, uint8_t *data) {
    const int64_t panels = (columns + PYQ_NR - 1) / PYQ_NR;
    const int bound = 32767 / amax;
    job j = {.w = w, .quads = quads, .columns = columns, .own_quads = own_quads};
    j.bound = bound < HIGHEST_BOUND ? bound : HIGHEST_BOUND;
    j.adds32 = isa >= PYQ_ISA_AVX512VNNI;
    j.widened = panels * quads * 2 * QUAD <= SMALL ? PYQ_PAIRS16 : PYQ_PAIRS8W;
    j.segments = segments, j.order = order, j.data = data;
    j.order_room = quads + 4, j.data_room = 128 * quads + 256;
    j.counts = malloc((size_t)panels * sizeof *j.counts);
    j.costs = malloc((size_t)panels * sizeof *j.costs);
    int64_t count = 0;
    if (j.counts && j.costs) {
        pack_panels(&j, panels);
        count = close_gaps(&j, panels);
    }
    free(j.counts);
    free(j.costs);
    return count;
}

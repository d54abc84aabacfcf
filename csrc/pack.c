/* Packing: weights to panels, and the proof that 16-bit sums cannot overflow.
 *
 * vpmaddubsw adds two u8 * s8 products in int16 and saturates. With activations up to amax a lane is exact whatever
 * the activations are if amax * (sum of its positive weights) <= 32767 and amax * (sum of |its negative weights|) <=
 * 32767. Weights are constants, so this is decided here, once:
 *   1. a quad with a lane that breaks the bound by itself is widened to 32 bits at once (QUADS32);
 *   2. the other quads are bin-packed, heaviest first, into pairs whose lanes keep the bound together (QUADS8P2), and
 *      pairs into fours (QUADS8P4); who finds no mate stays alone (QUADS8).
 * A panel is then up to four segments, one for each layout. Where many quads widen, it is cheaper to widen the
 * activations beforehand, once for all panels (PAIRS8W); where nearly all do, to widen all quads of the panel. What is
 * cheapest is told by the measured cost of a step. A panel whose folded weights do not fit int8 is PAIRS16. The order of
 * quads costs nothing: each has its offset.
 *
 * Where vpdpbusd adds products of bytes in 32 bits nothing is gained by a proof: all quads are QUADS32.
 */
#include "isa.h"
#include "pyq.h"

#include <stdlib.h>
#include <string.h>

enum {
    LANES = 2 * PYQ_NR,  /* 16-bit lanes of a quad: two pairs of bytes for each column */
    QUAD = 4 * PYQ_NR,   /* weights of a quad */
    WINDOW = 96,         /* open groups that are tried for a quad: bounds the packing time */
    NEAR = 256,          /* quads among which groups are made */
    MAX_SEGMENTS = 4,    /* of a panel */
    HIGHEST_BOUND = 4096 /* above any sum of a group, which is at most 8 * 128; and sums of two loads fit int16 */
};

/* Nanoseconds per row (python -m bench kernels, Zen 3; only ratios matter): a step of each layout; what a segment costs
 * beside its steps, for its accumulators; the widening of a quad of activations; and what it costs a panel that a quad
 * is in the caches in both forms (from products of 512 to 3072 rows). */
static const float STEP[PYQ_LAYOUTS] = {[PYQ_PAIRS16] = 0.82f,  [PYQ_PAIRS8W] = 0.84f,  [PYQ_QUADS32] = 0.94f,
                                        [PYQ_QUADS8] = 0.67f,   [PYQ_QUADS8P2] = 0.53f, [PYQ_QUADS8P4] = 0.49f};
static const float SEGMENT = 1.5f, WIDEN = 0.2f, BOTH = 0.018f;

/* A quad, or the first one of a group. */
typedef struct item {
    struct item *next;       /* of the group */
    int32_t quad, heaviest;  /* the largest load */
    int8_t w[QUAD];
    int16_t load[2 * LANES]; /* per lane: the group's sum of positive weights; then of |negative| ones */
} item;

typedef struct {
    item **items;
    int64_t count;
} list;

/* What becomes of the quads of a panel, by layout. */
typedef struct {
    list of[PYQ_LAYOUTS];
    float cost;
} plan;

static void find_heaviest(item *it) {
    it->heaviest = 0;
    for (int i = 0; i < 2 * LANES; i++)
        if (it->load[i] > it->heaviest) it->heaviest = it->load[i];
}

static void measure(item *it) {
    it->next = NULL;
    for (int lane = 0; lane < LANES; lane++) {
        int a = it->w[2 * lane], b = it->w[2 * lane + 1];
        it->load[lane] = (int16_t)((a > 0 ? a : 0) + (b > 0 ? b : 0));
        it->load[LANES + lane] = (int16_t)((a < 0 ? -a : 0) + (b < 0 ? -b : 0));
    }
    find_heaviest(it);
}

static int fits(const item *a, const item *b, int16_t bound) {
    int16_t over = 0;
    for (int i = 0; i < 2 * LANES; i++) over |= (int16_t)(a->load[i] + b->load[i]) > bound;
    return !over;
}

static void unite(item *a, item *b) {
    for (int i = 0; i < 2 * LANES; i++) a->load[i] = (int16_t)(a->load[i] + b->load[i]);
    find_heaviest(a);
    while (a->next) a = a->next;
    a->next = b;
}

static int heavier(const void *a, const void *b) {
    const item *x = *(item *const *)a, *y = *(item *const *)b;
    return x->heaviest != y->heaviest ? y->heaviest - x->heaviest : x->quad - y->quad;
}

/* First fit, heaviest first: unite groups two by two. `from` keeps those without a mate, `united` receives the rest. */
static void pair_up(list *from, list *united, int bound) {
    int64_t open = 0;
    qsort(from->items, (size_t)from->count, sizeof *from->items, heavier);
    for (int64_t i = 0; i < from->count; i++) {
        item *it = from->items[i];
        int64_t j = open > WINDOW ? open - WINDOW : 0;
        while (j < open && !fits(from->items[j], it, (int16_t)bound)) j++;
        if (j == open) {
            from->items[open++] = it;
            continue;
        }
        unite(from->items[j], it);
        united->items[united->count++] = from->items[j];
        memmove(from->items + j, from->items + j + 1, (size_t)(--open - j) * sizeof *from->items);
    }
    from->count = open;
}

static void move_all(list *from, list *to) {
    memcpy(to->items + to->count, from->items, (size_t)from->count * sizeof *from->items);
    to->count += from->count;
    from->count = 0;
}

static float segment_cost(int layout, int64_t groups, int64_t group_size) {
    return groups ? SEGMENT + STEP[layout] * (float)(groups * group_size) : 0;
}

static void split_fours(list *fours, list *pairs) {
    for (int64_t i = 0; i < fours->count; i++) {
        item *first = fours->items[i], *second = first->next->next;
        first->next->next = NULL;
        pairs->items[pairs->count++] = first;
        pairs->items[pairs->count++] = second;
    }
    fours->count = 0;
}

/* A few groups are not worth a segment of their own. Pairs can stay pairs, and a single quad be paired with zeros. */
static void drop_small_segments(plan *p) {
    list *alone = &p->of[PYQ_QUADS8], *pairs = &p->of[PYQ_QUADS8P2], *wide = &p->of[PYQ_QUADS32];
    list *fours = &p->of[PYQ_QUADS8P4];
    if (pairs->count && 4 * (STEP[PYQ_QUADS8P2] - STEP[PYQ_QUADS8P4]) * (float)fours->count < SEGMENT)
        split_fours(fours, pairs);
    const float own = segment_cost(PYQ_QUADS8, alone->count, 1);
    if (wide->count && STEP[PYQ_QUADS32] * (float)alone->count < own)
        move_all(alone, wide);
    else if (pairs->count && 2 * STEP[PYQ_QUADS8P2] * (float)alone->count < own)
        move_all(alone, pairs);
}

static void set_cost(plan *p) {
    p->cost = segment_cost(PYQ_QUADS32, p->of[PYQ_QUADS32].count, 1) + segment_cost(PYQ_QUADS8, p->of[PYQ_QUADS8].count, 1) +
              segment_cost(PYQ_QUADS8P2, p->of[PYQ_QUADS8P2].count, 2) +
              segment_cost(PYQ_QUADS8P4, p->of[PYQ_QUADS8P4].count, 4);
}

/* A quad of `n` columns, zero padded; returns whether its weights fit int8. */
static int load_quad(const int16_t *w, int64_t columns, int64_t n, int8_t *to) {
    int fits = 1;
    if (n < PYQ_NR) memset(to, 0, QUAD);
    for (int k = 0; k < 4; k++, w += columns)
        for (int64_t c = 0; c < n; c++) {
            fits &= w[c] >= -128 && w[c] <= 127;
            to[4 * c + k] = (int8_t)w[c];
        }
    return fits;
}

static int load_items(item *items, const int16_t *w, int64_t quads, int64_t columns, int64_t n) {
    for (int64_t q = 0; q < quads; q++) {
        items[q].quad = (int32_t)q;
        if (!load_quad(w + 4 * q * columns, columns, n, items[q].w)) return 0;
        measure(&items[q]);
    }
    return 1;
}

/* A list that continues another one, and its end. */
static list rest_of(const list *l) { return (list){l->items + l->count, 0}; }

/* Share out the items of quads [first, last). */
static void share_out(plan *p, item *items, int64_t first, int64_t last, int bound) {
    list *wide = &p->of[PYQ_QUADS32];
    list alone = rest_of(&p->of[PYQ_QUADS8]), pairs = rest_of(&p->of[PYQ_QUADS8P2]), fours = rest_of(&p->of[PYQ_QUADS8P4]);
    for (item *it = items + first; it < items + last; it++) {
        list *to = it->heaviest > bound ? wide : &alone;
        to->items[to->count++] = it;
    }
    pair_up(&alone, &pairs, bound);
    pair_up(&pairs, &fours, bound);
    p->of[PYQ_QUADS8].count += alone.count;
    p->of[PYQ_QUADS8P2].count += pairs.count;
    p->of[PYQ_QUADS8P4].count += fours.count;
}

/* Groups are made of quads that are NEAR each other, so that what a tile reads of its rows for one group after another
 * lies in the first-level cache: 12 rows of 1 KiB. */
static void make_plan(plan *p, item *items, int64_t quads, int bound) {
    for (int64_t first = 0; first < quads; first += NEAR)
        share_out(p, items, first, first + NEAR < quads ? first + NEAR : quads, bound);
    drop_small_segments(p);
    set_cost(p);
}

static void widen_all(plan *p, item *items, int64_t quads) {
    for (int64_t q = 0; q < quads; q++) p->of[PYQ_PAIRS8W].items[p->of[PYQ_PAIRS8W].count++] = &items[q];
    p->cost = segment_cost(PYQ_PAIRS8W, quads, 1);
}

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
        fits = load_quad(w + 4 * q * columns + s->column, columns, s->columns, (int8_t *)data + q * QUAD);
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
    j->costs[panel] = segment_cost(s->layout, j->quads, 1);
}

/* Pack a panel that costs more than `most`: at first every panel does. */
static void pack_panel(void *context, int64_t panel) {
    const job *j = context;
    if (j->costs[panel] <= j->most) return;
    if (j->adds32) {
        store_panel(j, panel, NULL);
        return;
    }
    const size_t quads = (size_t)j->quads;
    const int64_t column = panel * PYQ_NR, left = j->columns - column;
    item *items = malloc(quads * sizeof *items), **lists = malloc(5 * quads * sizeof *lists);
    plan p = {0};
    for (int i = 0; lists && i < 5; i++) p.of[PYQ_PAIRS8W + i].items = lists + (size_t)i * quads;
    /* Too wide for bytes, or no memory for the proof: what is left is PAIRS16. */
    const int fits8 = items && lists && load_items(items, j->w + column, j->quads, j->columns, left < PYQ_NR ? left : PYQ_NR);
    if (fits8 && j->most < 0)
        make_plan(&p, items, j->quads, j->bound);
    else if (fits8)
        widen_all(&p, items, j->quads);
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
    return j->costs[panel] - (STEP[PYQ_QUADS32] - STEP[PYQ_PAIRS8W]) * (float)s->steps + BOTH * (float)j->own_quads;
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
    const float widened = segment_cost(PYQ_PAIRS8W, j->quads, 1);
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
    job j = {.w = w, .quads = quads, .columns = columns, .own_quads = own_quads, .bound = bound < HIGHEST_BOUND ? bound : HIGHEST_BOUND};
    j.adds32 = isa >= PYQ_ISA_AVX512VNNI;
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

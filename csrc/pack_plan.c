/* Which quads of a panel share 16-bit sums: the search, and the costs that it weighs. What is proved stands in pack.c. */
#include "isa.h"
#include "pack_plan.h"

#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 96, /* open groups that are tried for a quad: bounds the packing time */
    NEAR = 256   /* quads among which groups are made */
};

/* Nanoseconds per row (the tallest kernels in turn, data in the first-level cache, Zen 4; only ratios matter): a step of
 * each layout, and what a segment costs beside its steps, for its accumulators. */
static const float STEP[PYQ_LAYOUTS] = {[PYQ_PAIRS16] = 0.675f, [PYQ_PAIRS8W] = 0.72f,   [PYQ_QUADS32] = 0.81f,
                                        [PYQ_QUADS8] = 0.545f,  [PYQ_QUADS8P2] = 0.45f,  [PYQ_QUADS8P4] = 0.415f};
static const float SEGMENT = 1.5f;

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

float pyq_segment_cost(int layout, int64_t groups, int64_t group_size) {
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
    const float own = pyq_segment_cost(PYQ_QUADS8, alone->count, 1);
    if (wide->count && STEP[PYQ_QUADS32] * (float)alone->count < own)
        move_all(alone, wide);
    else if (pairs->count && 2 * STEP[PYQ_QUADS8P2] * (float)alone->count < own)
        move_all(alone, pairs);
}

static void set_cost(plan *p) {
    p->cost = pyq_segment_cost(PYQ_QUADS32, p->of[PYQ_QUADS32].count, 1) +
              pyq_segment_cost(PYQ_QUADS8, p->of[PYQ_QUADS8].count, 1) +
              pyq_segment_cost(PYQ_QUADS8P2, p->of[PYQ_QUADS8P2].count, 2) +
              pyq_segment_cost(PYQ_QUADS8P4, p->of[PYQ_QUADS8P4].count, 4);
}

int pyq_load_quad(const int16_t *w, int64_t columns, int64_t n, int8_t *to) {
    int fits = 1;
    if (n < PYQ_NR) memset(to, 0, QUAD);
    for (int k = 0; k < 4; k++, w += columns)
        for (int64_t c = 0; c < n; c++) {
            fits &= w[c] >= -128 && w[c] <= 127;
            to[4 * c + k] = (int8_t)w[c];
        }
    return fits;
}

int pyq_load_items(item *items, const int16_t *w, int64_t quads, int64_t columns, int64_t n) {
    for (int64_t q = 0; q < quads; q++) {
        items[q].quad = (int32_t)q;
        if (!pyq_load_quad(w + 4 * q * columns, columns, n, items[q].w)) return 0;
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
void pyq_make_plan(plan *p, item *items, int64_t quads, int bound) {
    for (int64_t first = 0; first < quads; first += NEAR)
        share_out(p, items, first, first + NEAR < quads ? first + NEAR : quads, bound);
    drop_small_segments(p);
    set_cost(p);
}

void pyq_widen_all(plan *p, item *items, int64_t quads) {
    for (int64_t q = 0; q < quads; q++) p->of[PYQ_PAIRS8W].items[p->of[PYQ_PAIRS8W].count++] = &items[q];
    p->cost = pyq_segment_cost(PYQ_PAIRS8W, quads, 1);
}

float pyq_saved_by_words(void) { return STEP[PYQ_QUADS32] - STEP[PYQ_PAIRS8W]; }

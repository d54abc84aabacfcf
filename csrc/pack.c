/* Packing: weights to panels, and the proof that 16-bit sums cannot overflow.
 *
 * vpmaddubsw adds two u8 * s8 products in int16 and saturates. With activations up to amax a lane is exact whatever
 * the activations are if amax * (sum of its positive weights) <= 32767 and amax * (sum of |its negative weights|) <=
 * 32767. Weights are constants, so this is decided here, once:
 *   1. a quad with a lane that breaks the bound is split in two with the same offset whose weights add up to it;
 *      only the excess of the lanes that break it moves;
 *   2. quads are bin-packed, heaviest first, into groups of two whose lanes keep the bound together;
 *   3. if the groups cost more than widening every product to 32 bits, the panel is stored as PAIRS16 instead.
 * A panel whose folded weights do not fit int8 is PAIRS16 too. The order of quads costs nothing: each has its offset.
 */
#include "isa.h"
#include "pyq.h"

#include <stdlib.h>
#include <string.h>

enum {
    LANES = 2 * PYQ_NR, /* 16-bit lanes of a quad: two pairs of bytes for each column */
    QUAD = 4 * PYQ_NR,  /* weights of a quad */
    WINDOW = 96,        /* open groups that are tried for a quad: bounds the packing time */
};

/* Nanoseconds per quad and row: one PAIRS16 step, one group of two QUADS8 steps (measured on Zen 3). Only ratios matter. */
static const float PAIRS16_STEP = 0.84f, QUADS8_GROUP = 1.13f;

typedef struct {
    int32_t quad, heaviest;
    int8_t w[QUAD];
    int16_t load[2 * LANES]; /* per lane: sum of positive weights; then of |negative| ones */
} item;

static void measure(item *it) {
    it->heaviest = 0;
    for (int lane = 0; lane < LANES; lane++) {
        int a = it->w[2 * lane], b = it->w[2 * lane + 1];
        it->load[lane] = (int16_t)((a > 0 ? a : 0) + (b > 0 ? b : 0));
        it->load[LANES + lane] = (int16_t)((a < 0 ? -a : 0) + (b < 0 ? -b : 0));
    }
    for (int i = 0; i < 2 * LANES; i++)
        if (it->load[i] > it->heaviest) it->heaviest = it->load[i];
}

/* Move what lane i of `from` has above the bound to `to`. Two weights of one sign, each at most 128: it fits there. */
static void move_excess(item *from, item *to, int i, int bound) {
    int sign = i < LANES ? 1 : -1, excess = from->load[i] - bound;
    int8_t *w = from->w + 2 * (i % LANES), *moved = to->w + 2 * (i % LANES);
    for (int k = 0; k < 2 && excess > 0; k++) {
        int part = sign * w[k] < excess ? sign * w[k] : excess;
        if (part <= 0) continue;
        w[k] = (int8_t)(w[k] - sign * part);
        moved[k] = (int8_t)(moved[k] + sign * part);
        excess -= part;
    }
}

static int split(item *it, item *rest, int bound) {
    if (it->heaviest <= bound) return 0;
    memset(rest, 0, sizeof *rest);
    rest->quad = it->quad;
    for (int i = 0; i < 2 * LANES; i++)
        if (it->load[i] > bound) move_excess(it, rest, i, bound);
    measure(it);
    measure(rest);
    return 1;
}

static int fits(const item *a, const item *b, int bound) {
    int over = 0;
    for (int i = 0; i < 2 * LANES; i++) over |= a->load[i] + b->load[i] > bound;
    return !over;
}

static int heavier(const void *a, const void *b) {
    const item *x = *(item *const *)a, *y = *(item *const *)b;
    return x->heaviest != y->heaviest ? y->heaviest - x->heaviest : x->quad - y->quad;
}

/* First fit, heaviest first. mate[i] is the item grouped with sorted item i, or NULL; returns the number of groups. */
static int64_t pair_up(item **sorted, item **mate, int64_t count, int bound) {
    int64_t groups = 0, open = 0;
    int64_t *open_items = malloc(sizeof *open_items * (size_t)(count + 1));
    if (!open_items) return -1;
    for (int64_t i = 0; i < count; i++) {
        mate[i] = NULL;
        int64_t first = open > WINDOW ? open - WINDOW : 0, j = first;
        while (j < open && !fits(sorted[open_items[j]], sorted[i], bound)) j++;
        if (j == open) {
            open_items[open++] = i;
            groups++;
        } else {
            mate[open_items[j]] = sorted[i];
            sorted[i] = NULL;
            memmove(open_items + j, open_items + j + 1, (size_t)(--open - j) * sizeof *open_items);
        }
    }
    free(open_items);
    return groups;
}

static int load_items(item *items, const int16_t *w, int64_t quads, int64_t columns, int64_t first, int64_t n) {
    for (int64_t q = 0; q < quads; q++) {
        item *it = &items[q];
        it->quad = (int32_t)q;
        memset(it->w, 0, sizeof it->w);
        for (int k = 0; k < 4; k++)
            for (int64_t c = 0; c < n; c++) {
                int16_t value = w[(4 * q + k) * columns + first + c];
                if (value < -128 || value > 127) return 0;
                it->w[4 * c + k] = (int8_t)value;
            }
        measure(it);
    }
    return 1;
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

static int64_t store_pairs16(const int16_t *w, int64_t quads, int64_t columns, pyq_panel *panel, int32_t *order,
                             uint8_t *data) {
    int16_t *to = (int16_t *)data;
    if (panel->columns < PYQ_NR) memset(data, 0, (size_t)quads * 128);
    for (int64_t q = 0; q < quads; q++, to += 4 * PYQ_NR) {
        order[q] = (int32_t)q;
        for (int half = 0; half < 2; half++) {
            const int16_t *first = w + (4 * q + 2 * half) * columns + panel->column, *second = first + columns;
            interleave(first, second, to + half * 2 * PYQ_NR, panel->columns);
        }
    }
    panel->layout = PYQ_PAIRS16;
    panel->steps = (int32_t)quads;
    return quads * 128;
}

static int64_t store_quads8(item **sorted, item **mate, int64_t count, pyq_panel *panel, int32_t *order,
                            uint8_t *data) {
    int32_t steps = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!sorted[i]) continue; /* it went into an earlier group */
        const item *pair[2] = {sorted[i], mate[i]};
        for (int k = 0; k < 2; k++, steps++) {
            order[steps] = pair[k] ? pair[k]->quad : pair[0]->quad;
            if (pair[k])
                memcpy(data + (size_t)steps * QUAD, pair[k]->w, QUAD);
            else
                memset(data + (size_t)steps * QUAD, 0, QUAD);
        }
    }
    panel->layout = PYQ_QUADS8;
    panel->steps = steps;
    return (int64_t)steps * QUAD;
}

/* One panel of bytes b[k][columns], folded on the way; rows behind the last are zero. sums: int32, modulo 2^32. */
ALWAYS_INLINE void fold_panel(const uint8_t *restrict b, int64_t k, int64_t columns, int32_t flip,
                              const int16_t *restrict zero, int16_t *restrict out, int32_t *restrict sums,
                              const int64_t width) {
    for (int64_t row = 0; row < k; row += 2, out += 2 * PYQ_NR, b += 2 * columns)
        for (int64_t c = 0; c < width; c++) {
            const int16_t first = (int16_t)((b[c] ^ flip) - zero[c]);
            const int16_t second = row + 1 < k ? (int16_t)((b[columns + c] ^ flip) - zero[c]) : 0;
            out[2 * c] = first, out[2 * c + 1] = second;
            sums[c] += first + second;
        }
}

#if PYQ_HAVE_AVX2
TARGET_AVX2 static void fold_full_panel_avx2(const uint8_t *b, int64_t k, int64_t columns, int32_t flip,
                                             const int16_t *zero, int16_t *out, int32_t *sums) {
    fold_panel(b, k / 2 * 2, columns, flip, zero, out, sums, PYQ_NR);
    if (k % 2) fold_panel(b + (k - 1) * columns, 1, columns, flip, zero, out + (k - 1) * PYQ_NR, sums, PYQ_NR);
}
#define FOLD_AVX2 (pyq_get_isa() >= PYQ_ISA_AVX2)
#else
#define fold_full_panel_avx2(...) (void)0
#define FOLD_AVX2 0
#endif

/* Pack b[k][columns], uint8 or int8 with a zero point for each column, as PAIRS16 panels that follow each other:
 * 128 * ceil(k / 4) bytes for each 16 columns. No search for exact 16-bit sums: for weights that are used once, this
 * costs less than it could save. `sums` receives the column sums. */
void pyq_pack_bytes(const uint8_t *b, int32_t is_signed, int64_t k, int64_t columns, const int32_t *zero_point,
                    uint8_t *data, int32_t *sums) {
    const int64_t size = (k + 3) / 4 * 4 * PYQ_NR;
    const int32_t flip = is_signed ? 128 : 0; /* (byte ^ 128) - 128 is the int8 */
    int16_t *out = (int16_t *)data;
    memset(sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t column = 0; column < columns; column += PYQ_NR, out += size) {
        const int64_t width = columns - column < PYQ_NR ? columns - column : PYQ_NR;
        int16_t zero[PYQ_NR];
        for (int64_t c = 0; c < width; c++) zero[c] = (int16_t)(zero_point[column + c] + flip);
        if (width < PYQ_NR || k % 4) memset(out, 0, (size_t)size * sizeof *out);
        if (width == PYQ_NR && FOLD_AVX2)
            fold_full_panel_avx2(b + column, k, columns, flip, zero, out, sums + column);
        else
            fold_panel(b + column, k, columns, flip, zero, out, sums + column, width);
    }
}

/* Scratch for one panel: at most every quad is split once. */
typedef struct {
    item *items, **sorted, **mate;
} scratch;

static int64_t pack_panel(const int16_t *w, int64_t quads, int64_t columns, int bound, scratch *s, pyq_panel *panel,
                          int32_t *order, uint8_t *data) {
    if (!s->items || !load_items(s->items, w, quads, columns, panel->column, panel->columns))
        return store_pairs16(w, quads, columns, panel, order, data);
    int64_t count = quads;
    for (int64_t q = 0; q < quads; q++) count += split(&s->items[q], &s->items[count], bound);
    for (int64_t i = 0; i < count; i++) s->sorted[i] = &s->items[i];
    qsort(s->sorted, (size_t)count, sizeof *s->sorted, heavier);
    int64_t groups = pair_up(s->sorted, s->mate, count, bound);
    if (groups < 0 || QUADS8_GROUP * (float)groups >= PAIRS16_STEP * (float)quads)
        return store_pairs16(w, quads, columns, panel, order, data);
    panel->splits = (int32_t)(count - quads);
    return store_quads8(s->sorted, s->mate, count, panel, order, data);
}

/* Pack w[4 * quads][columns], folded weights in [-255, 255]; `quads` >= 1. panels: ceil(columns / PYQ_NR) entries;
 * order: 2 * quads + 1 entries and data: 128 * quads bytes for each of them. The panels' data and order follow each
 * other without gaps. Returns the bytes of data used. */
int64_t pyq_pack(const int16_t *w, int64_t quads, int64_t columns, int32_t amax, int32_t allow_quads8,
                 pyq_panel *panels, int32_t *order, uint8_t *data) {
    scratch s = {0};
    size_t most = (size_t)(2 * quads);
    if (allow_quads8) {
        s.items = malloc(most * sizeof *s.items);
        s.sorted = malloc(most * sizeof *s.sorted);
        s.mate = malloc(most * sizeof *s.mate);
        if (!s.sorted || !s.mate) free(s.items), s.items = NULL; /* no memory for the proof: the panels widen */
    }
    int64_t used = 0, entries = 0;
    for (int64_t column = 0; column < columns; column += PYQ_NR, panels++) {
        memset(panels, 0, sizeof *panels);
        panels->column = (int32_t)column;
        panels->columns = (int32_t)(columns - column < PYQ_NR ? columns - column : PYQ_NR);
        panels->data = used;
        panels->order = entries;
        used += pack_panel(w, quads, columns, 32767 / amax, &s, panels, order + entries, data + used);
        entries += panels->steps;
    }
    free(s.items);
    free(s.sorted);
    free(s.mate);
    return used;
}

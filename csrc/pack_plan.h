/* The plan of a panel: which of its quads are added together in 16 bits, and what that costs. */
#ifndef PYQ_PACK_PLAN_H
#define PYQ_PACK_PLAN_H

#include "pyq.h"

enum {
    LANES = 2 * PYQ_NR, /* 16-bit lanes of a quad: two pairs of bytes for each column */
    QUAD = 4 * PYQ_NR   /* weights of a quad */
};

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

/* A quad of `n` columns of w[4][columns], zero padded; returns whether its weights fit int8. */
int pyq_load_quad(const int16_t *w, int64_t columns, int64_t n, int8_t *to);
/* The quads of w[4 * quads][columns], `n` columns of it; 0 when there is a weight that does not fit int8. */
int pyq_load_items(item *items, const int16_t *w, int64_t quads, int64_t columns, int64_t n);

/* Share out the items by what is proved: amax * (sum of the weights of one sign in a lane) <= amax * bound <= 32767. The
 * lists of the plan have room for all of them each. */
void pyq_make_plan(plan *p, item *items, int64_t quads, int bound);
/* All of them in PAIRS8W. */
void pyq_widen_all(plan *p, item *items, int64_t quads);

/* What `groups` of `group_size` steps cost, and what is saved where a step of QUADS32 becomes one of PAIRS8W. */
float pyq_segment_cost(int layout, int64_t groups, int64_t group_size);
float pyq_saved_by_words(void);

#endif

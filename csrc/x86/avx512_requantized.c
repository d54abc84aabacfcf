/* Products of two panels that are requantized in the registers where they were summed, with AVX-512 VNNI.
 *
 * Of four rows the loop of avx512_gemm.c, then for each 16 sums vpaddd (bias), vcvtdq2ps, vmulps, vminps, vcvtps2dq, and
 * for each 64 vpackssdw, vpaddsw, vpackuswb, vpermd, vpaddb: 60 instructions for 128 outputs. Exact: the operations of
 * avx2_epilogue.h, in its order; where the bounds are 255 apart and packing clamps as well, vminps is left out.
 *
 * vcvt takes one unit for a cycle for eight numbers, so that an epilogue alone takes 8 cycles for 32 outputs, whatever
 * its width. In one function with the products, whose multiplies go to other units, it runs beside those of the rows
 * that follow; and no sum is written to memory and read again. 1x1 layers of 16, 24, 64 and 256 channels are 1.37,
 * 1.18, 1.09 and 1.05 times as fast, 3x3 layers of 64 and 128 1.02 and 1.03. With AVX2, where multiplies and additions
 * of sums keep all units busy, the same gained nothing.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx512_lookup.h"
#include "avx512_quads.h"

enum { ROWS = 4, PANELS = 2 };

typedef struct {
    __m512i bias[PANELS], minus_low, lowest;
    __m512 multiplier[PANELS], high;
} constants;

/* What the rows of a call share. */
typedef struct {
    const pyq_pair *pair;
    constants constants;
    wide_table table;
    __mmask32 columns; /* that exist */
} shared;

ALWAYS_INLINE TARGET_AVX512VNNI void multiply(__m512i *acc, const pyq_pair *p, const uint8_t *const *rows,
                                              int64_t how, const int mr) {
    const uint8_t *row[ROWS];
    UNROLL for (int r = 0; r < mr; r++) row[r] = rows[r];
    UNROLL for (int a = 0; a < PANELS * mr; a++) acc[a] = _mm512_setzero_si512();
    quads(acc, row, p->offsets, p->weights, p->steps * 4 * PYQ_NR, p->steps, how, mr, PANELS);
}

/* Rows r and r + 1, if there is one, as 32 bytes each. */
ALWAYS_INLINE TARGET_AVX512VNNI __m512i requantize(const __m512i *acc, const constants *c, const int r, const int mr,
                                                   const int clamped) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); /* packs: in lanes */
    __m512i words[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const int row = r + i < mr ? r + i : r;
        __m512i integers[PANELS];
        UNROLL for (int p = 0; p < PANELS; p++) {
            const __m512i sum = _mm512_add_epi32(acc[p * mr + row], c->bias[p]);
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), c->multiplier[p]);
            if (!clamped) y = _mm512_min_ps(c->high, y);
            integers[p] = _mm512_cvtps_epi32(y);
        }
        words[i] = _mm512_adds_epi16(_mm512_packs_epi32(integers[0], integers[1]), c->minus_low);
    }
    return _mm512_add_epi8(_mm512_permutexvar_epi32(order, _mm512_packus_epi16(words[0], words[1])), c->lowest);
}

ALWAYS_INLINE TARGET_AVX512VNNI void store_row(uint8_t *out, __m256i bytes, const shared *s, const int whole) {
    if (whole)
        _mm256_storeu_si256((__m256i *)out, bytes);
    else
        _mm256_mask_storeu_epi8(out, s->columns, bytes);
}

#define AS_THEY_ARE(table, bytes) (bytes)
/* `mr` rows, at most ROWS. whole: all columns exist. look_up: what is done to 64 bytes. */
#define DEFINE(name, target, mr, clamped, whole, look_up)                                                      \
    __attribute__((noinline)) target static void name(const shared *s, const uint8_t *const *rows, int64_t how, \
                                                      uint8_t *out) {                                          \
        __m512i acc[PANELS * mr];                                                                              \
        const int64_t stride = s->pair->stride;                                                                \
        multiply(acc, s->pair, rows, how, mr);                                                                 \
        const constants c = s->constants; /* in registers: what is stored might be a part of *s */             \
        UNROLL for (int r = 0; r < mr; r += 2) {                                                               \
            const __m512i y = look_up(&s->table, requantize(acc, &c, r, mr, clamped));                          \
            store_row(out + r * stride, _mm512_castsi512_si256(y), s, whole);                                  \
            if (r + 1 < mr) store_row(out + (r + 1) * stride, _mm512_extracti64x4_epi64(y, 1), s, whole);      \
        }                                                                                                      \
    }
DEFINE(requantized_1, TARGET_AVX512VNNI, 1, 0, 0, AS_THEY_ARE)
DEFINE(requantized_2, TARGET_AVX512VNNI, 2, 0, 0, AS_THEY_ARE)
DEFINE(requantized_3, TARGET_AVX512VNNI, 3, 0, 0, AS_THEY_ARE)
DEFINE(requantized_4, TARGET_AVX512VNNI, 4, 0, 0, AS_THEY_ARE)
DEFINE(requantized_4_whole, TARGET_AVX512VNNI, 4, 0, 1, AS_THEY_ARE)
DEFINE(requantized_4_clamped, TARGET_AVX512VNNI, 4, 1, 1, AS_THEY_ARE)
DEFINE(requantized_1_looked_up, TARGET_AVX512VBMI, 1, 0, 0, lookup_64)
DEFINE(requantized_2_looked_up, TARGET_AVX512VBMI, 2, 0, 0, lookup_64)
DEFINE(requantized_3_looked_up, TARGET_AVX512VBMI, 3, 0, 0, lookup_64)
DEFINE(requantized_4_looked_up, TARGET_AVX512VBMI, 4, 0, 0, lookup_64)
DEFINE(requantized_4_whole_looked_up, TARGET_AVX512VBMI, 4, 0, 1, lookup_64)

typedef void (*rows_fn)(const shared *, const uint8_t *const *, int64_t, uint8_t *);

/* Packing clamps an int32 times a multiplier below 1, which still is an int32. */
ALWAYS_INLINE TARGET_AVX512VNNI int packing_clamps(const pyq_epilogue *e, const constants *c) {
    const __m512 most = _mm512_max_ps(_mm512_abs_ps(c->multiplier[0]), _mm512_abs_ps(c->multiplier[1]));
    return e->high - e->low == 255 && _mm512_cmp_ps_mask(most, _mm512_set1_ps(1), _CMP_LT_OQ) == 0xffff;
}

/* Columns that do not exist get a multiplier of 0. */
ALWAYS_INLINE TARGET_AVX512VNNI constants load_constants(const pyq_epilogue *e, int64_t column, __mmask32 columns) {
    constants c;
    UNROLL for (int p = 0; p < PANELS; p++, column += PYQ_NR, columns >>= PYQ_NR) {
        const __mmask16 here = (__mmask16)columns;
        c.multiplier[p] = _mm512_maskz_loadu_ps(here, e->multiplier + column);
        c.bias[p] = e->bias ? _mm512_maskz_loadu_epi32(here, e->bias + column) : _mm512_setzero_si512();
    }
    c.high = _mm512_set1_ps(e->high);
    c.minus_low = _mm512_set1_epi16((int16_t)-e->low);
    c.lowest = _mm512_set1_epi8((char)((int32_t)e->low + e->zero_point));
    return c;
}

TARGET_AVX512VNNI void pyq_avx512vnni_requantized_4x32(const pyq_pair *pair, const uint8_t *const *rows, int64_t count,
                                                       int64_t how, uint8_t *out) {
    static const rows_fn plain[] = {requantized_1, requantized_2, requantized_3, requantized_4};
    static const rows_fn looked_up[] = {requantized_1_looked_up, requantized_2_looked_up, requantized_3_looked_up,
                                        requantized_4_looked_up};
    const pyq_epilogue *e = pair->epilogue;
    const rows_fn *some = e->table ? looked_up : plain;
    rows_fn all = some[ROWS - 1];
    shared s = {.pair = pair, .columns = (__mmask32)(UINT32_MAX >> (PANELS * PYQ_NR - pair->columns))};
    s.constants = load_constants(e, pair->column, s.columns);
    if (e->table)
        UNROLL for (int i = 0; i < 4; i++) s.table.part[i] = _mm512_loadu_si512(e->table + 64 * i);
    if (pair->columns == PANELS * PYQ_NR)
        all = e->table                          ? requantized_4_whole_looked_up
              : packing_clamps(e, &s.constants) ? requantized_4_clamped
                                                : requantized_4_whole;
    for (; count >= ROWS; count -= ROWS, rows += ROWS, out += ROWS * pair->stride, how = 0) all(&s, rows, how, out);
    if (count > 0) some[count - 1](&s, rows, how, out);
}

#endif

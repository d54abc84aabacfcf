/* Products that are requantized in the registers where they were summed, with AVX-512 VNNI: of two panels, or of one.
 *
 * Of four rows the loop of avx512_gemm.c, then for each 16 sums vpaddd (bias), vcvtdq2ps, vmulps, vminps, vcvtps2dq, and
 * for each 64 vpackssdw, vpaddsw, vpackuswb, vpermd, vpaddb: 60 instructions for 128 outputs. Exact: the operations of
 * avx2_epilogue.h, in its order; where the bounds are 255 apart and packing clamps as well, vminps is left out.
 *
 * Zen 4 multiplies in two of its four vector units, converts and adds in the other two. An epilogue alone, of 256 bits
 * or of 512, takes 8 cycles for 32 outputs; in one function with the products it runs beside those of the rows that
 * follow, and no sum is written to memory and read again. Two sums of 16 columns are packed together: of both panels, or
 * of two rows of one. 1x1 layers of 16, 24, 64 and 256 channels are 1.37, 1.18, 1.09 and 1.05 times as fast, 3x3 layers
 * of 64 and 128 1.02 and 1.03. With AVX2, where multiplies and additions of sums keep all units busy, the same gained
 * nothing.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx512_epilogue.h"
#include "avx512_lookup.h"
#include "avx512_quads.h"

enum { ROWS = 5 }; /* of a tile, at most, times two sums of 16 columns */

/* What the rows of a call share. */
typedef struct {
    const pyq_panels *work;
    constants constants;
    wide_table table;
    __mmask32 columns; /* that exist; of one panel, twice */
} shared;

/* Both parts of r: a row of two panels, or rows r and mr + r of one, of which the last need not exist. */
ALWAYS_INLINE TARGET_AVX512VNNI void store(uint8_t *out, int64_t stride, const shared *s, __m256i bytes, const int r,
                                           const int mr, const int panels, const int whole, int64_t count) {
    const __m128i below = _mm256_extracti128_si256(bytes, 1);
    if (panels == 2 && whole)
        _mm256_storeu_si256((__m256i *)(out + r * stride), bytes);
    else if (panels == 2)
        _mm256_mask_storeu_epi8(out + r * stride, s->columns, bytes);
    else if (whole) {
        _mm_storeu_si128((__m128i *)(out + r * stride), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128((__m128i *)(out + (mr + r) * stride), below);
    } else {
        _mm_mask_storeu_epi8(out + r * stride, (__mmask16)s->columns, _mm256_castsi256_si128(bytes));
        if (mr + r < count) _mm_mask_storeu_epi8(out + (mr + r) * stride, (__mmask16)s->columns, below);
    }
}

#define AS_THEY_ARE(table, bytes) (bytes)
/* `mr` rows of two panels, or twice as many of one, of which `count` exist. whole: all of them do, and all columns.
 * look_up: what is done to 64 bytes. */
#define DEFINE(name, target, panels, mr, clamped, whole, look_up)                                                    \
    __attribute__((noinline)) target static void name(const shared *s, const uint8_t *const *rows, int64_t count,    \
                                                      int64_t how, uint8_t *out) {                                   \
        __m512i acc[PARTS * mr]; /* part p of r: row r of panel p; of one panel row p * mr + r */                    \
        multiply(acc, s->work, rows, how, PARTS / panels * mr, panels);                                              \
        const constants c = s->constants; /* in registers: what is stored might be a part of *s */                   \
        const int64_t stride = s->work->stride;                                                                      \
        UNROLL for (int r = 0; r < mr; r += 2) {                                                                     \
            const __m512i y = look_up(&s->table, requantize(acc, &c, r, mr, clamped));                               \
            store(out, stride, s, _mm512_castsi512_si256(y), r, mr, panels, whole, count);                           \
            if (r + 1 < mr) store(out, stride, s, _mm512_extracti64x4_epi64(y, 1), r + 1, mr, panels, whole, count); \
        }                                                                                                            \
    }
/* A table of them, by panels and mr; the two for whole tiles, without and with a table that is looked up. */
#define DEFINE_ALL(name, target, look_up)                  \
    DEFINE(name##_1x32, target, 2, 1, 0, 0, look_up)       \
    DEFINE(name##_2x32, target, 2, 2, 0, 0, look_up)       \
    DEFINE(name##_3x32, target, 2, 3, 0, 0, look_up)       \
    DEFINE(name##_4x32, target, 2, 4, 0, 0, look_up)       \
    DEFINE(name##_5x32, target, 2, 5, 0, 0, look_up)       \
    DEFINE(name##_2x16, target, 1, 1, 0, 0, look_up)       \
    DEFINE(name##_4x16, target, 1, 2, 0, 0, look_up)       \
    DEFINE(name##_6x16, target, 1, 3, 0, 0, look_up)       \
    DEFINE(name##_8x16, target, 1, 4, 0, 0, look_up)       \
    DEFINE(name##_whole_4x32, target, 2, 4, 0, 1, look_up) \
    DEFINE(name##_whole_8x16, target, 1, 4, 0, 1, look_up)
DEFINE_ALL(requantized, TARGET_AVX512VNNI, AS_THEY_ARE)
DEFINE_ALL(looked_up, TARGET_AVX512VBMI, lookup_64)
DEFINE(requantized_clamped_4x32, TARGET_AVX512VNNI, 2, 4, 1, 1, AS_THEY_ARE)
DEFINE(requantized_clamped_8x16, TARGET_AVX512VNNI, 1, 4, 1, 1, AS_THEY_ARE)

typedef void (*tile_fn)(const shared *, const uint8_t *const *, int64_t, int64_t, uint8_t *);

/* By panels less 1 and mr less 1. */
#define SOME(name)                                               \
    {{name##_2x16, name##_4x16, name##_6x16, name##_8x16, NULL}, \
     {name##_1x32, name##_2x32, name##_3x32, name##_4x32, name##_5x32}}
static const tile_fn plain[2][ROWS] = SOME(requantized), with_table[2][ROWS] = SOME(looked_up);

/* Packing clamps an int32 times a multiplier below 1, which still is an int32. */
ALWAYS_INLINE TARGET_AVX512VNNI int packing_clamps(const pyq_epilogue *e, const constants *c) {
    const __m512 most = _mm512_max_ps(_mm512_abs_ps(c->multiplier[0]), _mm512_abs_ps(c->multiplier[1]));
    return e->high - e->low == 255 && _mm512_cmp_ps_mask(most, _mm512_set1_ps(1), _CMP_LT_OQ) == 0xffff;
}

/* Columns that do not exist get a multiplier of 0. */
ALWAYS_INLINE TARGET_AVX512VNNI constants load_constants(const pyq_panels *p, __mmask32 columns, const int panels) {
    const pyq_epilogue *e = p->epilogue;
    constants c;
    UNROLL for (int i = 0; i < PARTS; i++) {
        const int64_t column = p->column + (panels > 1 ? PYQ_NR * i : 0);
        const __mmask16 here = (__mmask16)(columns >> PYQ_NR * i);
        c.multiplier[i] = _mm512_maskz_loadu_ps(here, e->multiplier + column);
        c.bias[i] = e->bias ? _mm512_maskz_loadu_epi32(here, e->bias + column) : _mm512_setzero_si512();
    }
    c.high = _mm512_set1_ps(e->high);
    c.minus_low = _mm512_set1_epi16((int16_t)-e->low);
    c.lowest = _mm512_set1_epi8((char)((int32_t)e->low + e->zero_point));
    return c;
}

/* The function for tiles of four times two parts. */
ALWAYS_INLINE TARGET_AVX512VNNI tile_fn choose(const shared *s, const int panels) {
    const pyq_epilogue *e = s->work->epilogue;
    if (s->columns != UINT32_MAX) return (e->table ? with_table : plain)[panels - 1][3];
    if (e->table) return panels > 1 ? looked_up_whole_4x32 : looked_up_whole_8x16;
    if (packing_clamps(e, &s->constants)) return panels > 1 ? requantized_clamped_4x32 : requantized_clamped_8x16;
    return panels > 1 ? requantized_whole_4x32 : requantized_whole_8x16;
}

/* Rows in tiles of `height`, before those that are left. Of two panels five rows are faster than four and one. */
ALWAYS_INLINE int64_t in_tiles(int64_t count, int64_t height, const int panels) {
    const int64_t left = count % height;
    return count - left - (panels > 1 && left == 1 && count > 1 ? height : 0);
}

TARGET_AVX512VNNI void pyq_avx512vnni_requantized_4x32(const pyq_panels *p, const uint8_t *const *rows, int64_t count,
                                                       int64_t how, uint8_t *out) {
    const int panels = p->columns > PYQ_NR ? 2 : 1;
    const int64_t height = panels > 1 ? 4 : 8;
    shared s = {.work = p, .columns = UINT32_MAX >> (PARTS * PYQ_NR - p->columns)};
    if (panels == 1) s.columns |= s.columns << PYQ_NR;
    s.constants = load_constants(p, s.columns, panels);
    if (p->epilogue->table) s.table = load_table(p->epilogue->table);
    const tile_fn whole = choose(&s, panels);
    const int64_t end = in_tiles(count, height, panels);
    for (int64_t i = 0; i < end; i += height, rows += height, out += height * p->stride, how = 0)
        whole(&s, rows, height, how, out);
    count -= end;
    if (count == 0) return;
    const int64_t mr = panels > 1 ? count : (count + 1) / 2;
    const uint8_t *last[PARTS * ROWS]; /* of one panel an even number of rows: the last one twice */
    for (int64_t r = 0; r < PARTS * ROWS; r++) last[r] = rows[r < count ? r : count - 1];
    (p->epilogue->table ? with_table : plain)[panels - 1][mr - 1](&s, last, count, how, out);
}

#endif

/* Products whose sums become int32 with a bias, or float32, in the registers where they were made, with AVX-512 VNNI: of
 * two panels, or of one.
 *
 * Of four rows the loop of avx512_gemm.c, then for each 16 sums vpaddd (bias) and a store; to float32 vcvtdq2ps, vmulps,
 * vaddps, vmaxps and vminps between them. Exact: the operations of avx2_epilogue.h, in its order. Peak: as quads32,
 * 64 products a cycle on Zen 4.
 *
 * No sum goes through a tile in memory, and no call is made for every four rows: products of 64 to 1024 cubed take 5 to
 * 11 % less with a zero point or signed activations, which make a bias, and 6 to 8 % less to float32; those of 40 rows
 * by 6625 columns, 120 deep, 13 and 10 %.
 */
#include "../isa.h"
#include "../pyq.h"

#if PYQ_HAVE_AVX512VNNI
#include "avx512_quads.h"

enum { HALVES = 2, SUMS = 8 }; /* of a tile: four rows of two panels, or eight of one */

/* What is done to the sums of each panel; the columns of it that exist. */
typedef struct {
    __m512i bias[HALVES];
    __m512 multiplier[HALVES], offset[HALVES], low, high;
    __mmask16 here[HALVES];
} finish;

ALWAYS_INLINE TARGET_AVX512VNNI finish load_finish(const pyq_panels *p, const int panels) {
    const pyq_epilogue *e = p->epilogue;
    finish f = {.low = _mm512_set1_ps(e->low), .high = _mm512_set1_ps(e->high)};
    UNROLL for (int i = 0; i < panels; i++) {
        const int64_t column = p->column + PYQ_NR * i, left = p->columns - PYQ_NR * i;
        const __mmask16 here = f.here[i] = (__mmask16)(left < PYQ_NR ? (1 << left) - 1 : 0xffff);
        f.bias[i] = e->bias ? _mm512_maskz_loadu_epi32(here, e->bias + column) : _mm512_setzero_si512();
        if (e->type != PYQ_OUT_FLOAT32) continue;
        f.multiplier[i] = _mm512_maskz_loadu_ps(here, e->multiplier + column);
        f.offset[i] = e->offset ? _mm512_maskz_loadu_ps(here, e->offset + column) : _mm512_set1_ps(-0.0f);
    }
    return f;
}

/* To float32 the bounds come first, for the sign of a zero: avx2_epilogue.h. */
ALWAYS_INLINE TARGET_AVX512VNNI __m512i finished(__m512i acc, const finish *f, const int panel, const int type) {
    const __m512i sum = _mm512_add_epi32(acc, f->bias[panel]);
    if (type == PYQ_OUT_INT32) return sum;
    const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), f->multiplier[panel]), f->offset[panel]);
    return _mm512_castps_si512(_mm512_min_ps(f->high, _mm512_max_ps(f->low, y)));
}

/* `mr` rows; their lines of the output arrive meanwhile. whole: all columns exist. */
ALWAYS_INLINE TARGET_AVX512VNNI void tile(const pyq_panels *p, const finish *f, const uint8_t *const *rows, int64_t how,
                                          int32_t *out, const int mr, const int panels, const int type, const int whole) {
    __m512i acc[SUMS];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int i = 0; i < panels; i++) __builtin_prefetch(out + r * p->stride + PYQ_NR * i, 1);
    multiply(acc, p, rows, how, mr, panels);
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int i = 0; i < panels; i++) {
            const __m512i y = finished(acc[i * mr + r], f, i, type);
            int32_t *to = out + r * p->stride + PYQ_NR * i;
            if (whole)
                _mm512_storeu_si512(to, y);
            else
                _mm512_mask_storeu_epi32(to, f->here[i], y);
        }
}

ALWAYS_INLINE TARGET_AVX512VNNI void all_rows(const pyq_panels *p, const uint8_t *const *rows, int64_t count, int64_t how,
                                              int32_t *out, const int panels, const int type) {
    const int mr = SUMS / panels;
    const finish f = load_finish(p, panels);
    const int whole = p->columns == panels * PYQ_NR;
    for (; count >= mr && whole; count -= mr, rows += mr, out += mr * p->stride, how = 0)
        tile(p, &f, rows, how, out, mr, panels, type, 1);
    for (; count >= 4; count -= 4, rows += 4, out += 4 * p->stride, how = 0)
        tile(p, &f, rows, how, out, 4, panels, type, 0);
    if (count == 3) tile(p, &f, rows, how, out, 3, panels, type, 0);
    if (count == 2) tile(p, &f, rows, how, out, 2, panels, type, 0);
    if (count == 1) tile(p, &f, rows, how, out, 1, panels, type, 0);
}

TARGET_AVX512VNNI void pyq_avx512vnni_sums_4x32(const pyq_panels *p, const uint8_t *const *rows, int64_t count,
                                                int64_t how, uint8_t *out) {
    const int is_float = p->epilogue->type == PYQ_OUT_FLOAT32;
    if (p->columns > PYQ_NR && is_float)
        all_rows(p, rows, count, how, (int32_t *)out, 2, PYQ_OUT_FLOAT32);
    else if (p->columns > PYQ_NR)
        all_rows(p, rows, count, how, (int32_t *)out, 2, PYQ_OUT_INT32);
    else if (is_float)
        all_rows(p, rows, count, how, (int32_t *)out, 1, PYQ_OUT_FLOAT32);
    else
        all_rows(p, rows, count, how, (int32_t *)out, 1, PYQ_OUT_INT32);
}

#endif

/* Transposed tiles of 16 x 16 bytes and of 8 x 4 words.
 *
 * Each register holds a row in its low half and the row half a tile further down in its high half: vmovdqu and
 * vinserti128. Unpacking neighbours in pairs (vpunpck bw, wd, dq for bytes, dq, qdq for words) then gives two columns
 * of 8 bytes, or one of 4 words, in each half, and vpermq joins what belongs together. For 256 bytes: 16 loads, 24
 * unpacks, 8 permutes, 16 stores of 16 bytes.
 *
 * The last tile of a row or column overlaps the one before. Tiles follow each other down a strip of 64 columns, so that
 * a cache line that they share is still in the L1 cache. Matrices of bytes of fewer than 16 rows or columns use the same
 * tile: a column is then stored with what does not belong to it behind, and the next column overwrites that; a row is
 * read with the rows behind it. Where that would pass the end, elements go one by one.
 *
 * Three rows or three columns, an image's colours, are permuted 48 bytes at a time, in each half of the registers: 9
 * vpshufb, each for what one of three registers gives to another, and 6 vpor, for 96 bytes.
 */
#include "../isa.h"
#include "../transpose.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>
#include <string.h>

enum { STRIP = 64 };

ALWAYS_INLINE TARGET_AVX2 __m256i two_rows(const uint8_t *x, int64_t first, int64_t second) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(x + first)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)(x + second)), 1);
}

/* The first `columns` columns of 16 rows, of which only `rows` exist: the others repeat the last. In ascending order. */
ALWAYS_INLINE TARGET_AVX2 void byte_tile(const pyq_part *p, int64_t row, int64_t column, const int64_t rows,
                                         const int64_t columns) {
    const uint8_t *x = p->x + row * p->x_stride + column;
    uint8_t *out = p->out + column * p->out_stride + row;
    __m256i a[8], b[8];
    UNROLL for (int64_t i = 0; i < 8; i++) {
        const int64_t first = i < rows ? i : rows - 1, second = i + 8 < rows ? i + 8 : rows - 1;
        a[i] = two_rows(x, first * p->x_stride, second * p->x_stride);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        b[i] = _mm256_unpacklo_epi8(a[2 * i], a[2 * i + 1]);
        b[i + 4] = _mm256_unpackhi_epi8(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        a[4 * (i / 2) + i % 2] = _mm256_unpacklo_epi16(b[2 * i], b[2 * i + 1]);
        a[4 * (i / 2) + i % 2 + 2] = _mm256_unpackhi_epi16(b[2 * i], b[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        const __m256i two = _mm256_permute4x64_epi64(b[i], 0xd8);
        if (2 * i < columns) _mm_storeu_si128((__m128i *)(out + 2 * i * p->out_stride), _mm256_castsi256_si128(two));
        if (2 * i + 1 < columns)
            _mm_storeu_si128((__m128i *)(out + (2 * i + 1) * p->out_stride), _mm256_extracti128_si256(two, 1));
    }
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* from[k][i]: where the bytes of register k that go to register i lie in it, 128 where none does. */
typedef struct {
    __m256i from[3][3];
} permutation;

/* The permutation that makes pixels of three planes, or the other way round; elements of `item` bytes. */
TARGET_AVX2 static permutation of_colours(const int item, const int to_pixels) {
    const int n = 16 / item; /* elements of a plane */
    uint8_t from[3][3][32];
    memset(from, 128, sizeof from);
    for (int e = 0; e < 3 * n; e++) {
        const int in_planes = e % 3 * n + e / 3, source = to_pixels ? in_planes : e, target = to_pixels ? e : in_planes;
        for (int b = 0; b < item; b++) {
            const int byte = target % n * item + b;
            uint8_t *const place = from[source / n][target / n];
            place[byte] = place[16 + byte] = (uint8_t)(source % n * item + b);
        }
    }
    permutation p;
    memcpy(&p, from, sizeof p);
    return p;
}

ALWAYS_INLINE TARGET_AVX2 void permute(__m256i v[3], const permutation *p) {
    __m256i sum[3];
    UNROLL for (int i = 0; i < 3; i++) {
        sum[i] = _mm256_shuffle_epi8(v[0], p->from[0][i]);
        sum[i] = _mm256_or_si256(sum[i], _mm256_shuffle_epi8(v[1], p->from[1][i]));
        sum[i] = _mm256_or_si256(sum[i], _mm256_shuffle_epi8(v[2], p->from[2][i]));
    }
    UNROLL for (int i = 0; i < 3; i++) v[i] = sum[i];
}

/* Three rows that become pixels of three elements. */
ALWAYS_INLINE TARGET_AVX2 void planes_to_pixels(const pyq_part *part, const int item) {
    const pyq_part p = *part;
    const permutation order = of_colours(item, 1);
    const int64_t step = 32 / item;
    for (int64_t column = 0; column < p.columns; column += step) {
        const int64_t c = least(column, p.columns - step);
        uint8_t *out = p.out + 3 * c * item;
        __m256i v[3];
        UNROLL for (int i = 0; i < 3; i++)
            v[i] = _mm256_loadu_si256((const __m256i *)(p.x + (i * p.x_stride + c) * item));
        permute(v, &order);
        UNROLL for (int i = 0; i < 3; i++) _mm_storeu_si128((__m128i *)out + i, _mm256_castsi256_si128(v[i]));
        UNROLL for (int i = 0; i < 3; i++) _mm_storeu_si128((__m128i *)out + 3 + i, _mm256_extracti128_si256(v[i], 1));
    }
}

/* Pixels of three elements that become three rows. */
ALWAYS_INLINE TARGET_AVX2 void pixels_to_planes(const pyq_part *part, const int item) {
    const pyq_part p = *part;
    const permutation order = of_colours(item, 0);
    const int64_t step = 32 / item;
    for (int64_t row = 0; row < p.rows; row += step) {
        const int64_t r = least(row, p.rows - step);
        __m256i v[3];
        UNROLL for (int i = 0; i < 3; i++) v[i] = two_rows(p.x + 3 * r * item, 16 * i, 48 + 16 * i);
        permute(v, &order);
        UNROLL for (int i = 0; i < 3; i++)
            _mm256_storeu_si256((__m256i *)(p.out + (i * p.out_stride + r) * item), v[i]);
    }
}

/* Whether the part is of three whole rows or columns, and has been transposed. */
ALWAYS_INLINE TARGET_AVX2 int transposed_colours(const pyq_part *p, const int item) {
    const int64_t step = 32 / item;
    if (p->rows == 3 && p->out_stride == 3 && p->columns >= step)
        planes_to_pixels(p, item);
    else if (p->columns == 3 && p->x_stride == 3 && p->rows >= step)
        pixels_to_planes(p, item);
    else
        return 0;
    return 1;
}

TARGET_AVX2 void pyq_avx2_transpose_bytes(const pyq_part *p) {
    const int64_t rows = p->rows, columns = p->columns;
    if (transposed_colours(p, 1)) return;
    if (rows >= 16 && columns >= 16) {
        for (int64_t strip = 0; strip < columns; strip += STRIP)
            for (int64_t r = 0; r < rows; r += 16)
                for (int64_t c = strip; c < least(strip + STRIP, columns); c += 16)
                    byte_tile(p, least(r, rows - 16), least(c, columns - 16), 16, 16);
        return;
    }
    int64_t r = 0, c = 0;
    if (rows < 16) /* as many columns as can be stored with 16 rows, and read with 16 columns */
        for (; c + 16 <= columns && (columns - c - 15) * rows >= 16; c += 16) byte_tile(p, 0, c, rows, 16);
    else
        for (; r + 16 <= rows && (rows - r - 15) * columns >= 16; r += 16) byte_tile(p, r, 0, 16, columns);
    pyq_transpose_bytes(p, r, c);
}

ALWAYS_INLINE TARGET_AVX2 void word_tile(const pyq_part *p, int64_t row, int64_t column) {
    const uint8_t *x = p->x + 4 * (row * p->x_stride + column);
    uint8_t *out = p->out + 4 * (column * p->out_stride + row);
    const int64_t line = 4 * p->x_stride;
    __m256i a[4], b[4];
    UNROLL for (int i = 0; i < 4; i++) a[i] = two_rows(x, i * line, (i + 4) * line);
    UNROLL for (int i = 0; i < 2; i++) {
        b[i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[i + 2] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        a[2 * i] = _mm256_unpacklo_epi64(b[2 * i], b[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi64(b[2 * i], b[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(out + 4 * i * p->out_stride), a[i]);
}

TARGET_AVX2 void pyq_avx2_transpose_words(const pyq_part *p) {
    const int64_t rows = p->rows, columns = p->columns;
    if (transposed_colours(p, 4)) return;
    if (rows < 8 || columns < 4) {
        pyq_transpose_words(p, 0, 0);
        return;
    }
    for (int64_t strip = 0; strip < columns; strip += STRIP)
        for (int64_t r = 0; r < rows; r += 8)
            for (int64_t c = strip; c < least(strip + STRIP, columns); c += 4)
                word_tile(p, least(r, rows - 8), least(c, columns - 4));
}

#endif

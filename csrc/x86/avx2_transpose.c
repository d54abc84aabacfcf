/* Transposed tiles of 16 x 16 bytes and of 8 x 4 words.
 *
 * Each register holds a row in its low half and the row half a tile further down in its high half: vmovdqu and
 * vinserti128. Unpacking neighbours in pairs (vpunpck bw, wd, dq for bytes, dq, qdq for words) then gives two columns
 * of 8 bytes, or one of 4 words, in each half, and vpermq joins what belongs together. For 256 bytes: 16 loads, 24
 * unpacks, 8 permutes, 16 stores of 16 bytes.
 *
 * The last tile of a row or column overlaps the one before. Matrices of fewer than 16 rows or columns, such as an
 * image's 3 channels, use the same tile: a column is then stored with what does not belong to it behind, and the next
 * column overwrites that; a row is read with the rows behind it. Where that would pass the end, elements go one by one.
 */
#include "../isa.h"
#include "../transpose.h"

#if PYQ_HAVE_AVX2
#include <immintrin.h>

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

TARGET_AVX2 void pyq_avx2_transpose_bytes(const pyq_part *p) {
    const int64_t rows = p->rows, columns = p->columns;
    if (rows >= 16 && columns >= 16) {
        for (int64_t r = 0; r < rows; r += 16)
            for (int64_t c = 0; c < columns; c += 16) byte_tile(p, least(r, rows - 16), least(c, columns - 16), 16, 16);
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
    if (rows < 8 || columns < 4) {
        pyq_transpose_words(p, 0, 0);
        return;
    }
    for (int64_t r = 0; r < rows; r += 8)
        for (int64_t c = 0; c < columns; c += 4) word_tile(p, least(r, rows - 8), least(c, columns - 4));
}

#endif

/* A part of a resized image, with the pixels that Pillow's resize gives.
 *
 * Pillow resizes in two passes, first along the rows and then along the columns, and rounds to a byte after each. A
 * pass gives each of its pixels a weighted sum of some neighbours; the weights are whole numbers of 2^-22. This does
 * the same sums, but only for the part that is wanted, and on x86 with AVX2 eight products at a time. Integers are
 * exact: the order of a sum does not matter.
 *
 * Nothing here checks its arguments: resample.py does, which is the only caller.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22
#define HALF (1 << (WEIGHT_BITS - 1))
/* Of a source pixel, as Pillow stores RGB: the fourth byte means nothing. */
#define SOURCE_BYTES 4
#define BYTES 3

/* One direction of a resize: pixel i is the sum of weights[i * taps + t] * source[starts[i] + t], t below taps.
 * Starts never fall, and none reaches beyond the source. */
typedef struct {
    const int32_t *starts;
    const int32_t *weights;
    int32_t taps;
    int32_t count;
} axis;

static inline uint8_t to_byte(int32_t sum) {
    int32_t level = sum >> WEIGHT_BITS;
    return level < 0 ? 0 : level > 255 ? 255 : (uint8_t)level;
}

static void across(const uint8_t *source, const axis *x, uint8_t *row) {
    const int32_t *weights = x->weights;
    for (int32_t i = 0; i < x->count; i++, weights += x->taps, row += BYTES) {
        const uint8_t *pixel = source + SOURCE_BYTES * (ptrdiff_t)x->starts[i];
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int32_t t = 0; t < x->taps; t++, pixel += SOURCE_BYTES) {
            red += pixel[0] * weights[t];
            green += pixel[1] * weights[t];
            blue += pixel[2] * weights[t];
        }
        row[0] = to_byte(red);
        row[1] = to_byte(green);
        row[2] = to_byte(blue);
    }
}

/* Bytes first to count of one row, out of those of taps rows. */
static void down(const uint8_t *const *rows, const int32_t *weights, int32_t taps, uint8_t *row, ptrdiff_t first,
                 ptrdiff_t count) {
    for (ptrdiff_t i = first; i < count; i++) {
        int32_t sum = HALF;
        for (int32_t t = 0; t < taps; t++)
            sum += rows[t][i] * weights[t];
        row[i] = to_byte(sum);
    }
}

static void down_all(const uint8_t *const *rows, const int32_t *weights, int32_t taps, uint8_t *row,
                     ptrdiff_t count) {
    down(rows, weights, taps, row, 0, count);
}

typedef void (*across_pass)(const uint8_t *, const axis *, uint8_t *);
typedef void (*down_pass)(const uint8_t *const *, const int32_t *, int32_t, uint8_t *, ptrdiff_t);

/* Rows that were resized across are kept in a ring until no row of the result needs them: one image of any size takes
 * as much memory as its resize has taps. */
static int passes(const uint8_t *source, ptrdiff_t stride, const axis *x, const axis *y, uint8_t *result,
                  across_pass go_across, down_pass go_down) {
    ptrdiff_t count = BYTES * (ptrdiff_t)x->count;
    ptrdiff_t slot = count + 1; /* `across_avx2` writes a byte more */
    const uint8_t **rows = malloc((size_t)y->taps * (sizeof *rows + (size_t)slot));
    if (rows == NULL)
        return -1;
    uint8_t *ring = (uint8_t *)(rows + y->taps);
    const int32_t *weights = y->weights;
    int32_t next = 0;
    for (int32_t i = 0; i < y->count; i++, weights += y->taps, result += count) {
        int32_t start = y->starts[i];
        if (next < start)
            next = start;
        for (; next < start + y->taps; next++)
            go_across(source + next * stride, x, ring + next % y->taps * slot);
        for (int32_t t = 0; t < y->taps; t++)
            rows[t] = ring + (start + t) % y->taps * slot;
        go_down(rows, weights, y->taps, result, count);
    }
    free(rows);
    return 0;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* Not `_mm_loadu_si32`, which GCC has only from 11 on. */
AVX2 static inline __m128i four_bytes(const uint8_t *bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm_cvtsi32_si128(four);
}

/* Two neighbours at a time, four channels each. */
AVX2 static void across_avx2(const uint8_t *source, const axis *x, uint8_t *row) {
    const __m256i each_for_four = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const int32_t *weights = x->weights;
    for (int32_t i = 0; i < x->count; i++, weights += x->taps, row += BYTES) {
        const uint8_t *pixel = source + SOURCE_BYTES * (ptrdiff_t)x->starts[i];
        __m256i sums = _mm256_setzero_si256();
        int32_t t = 0;
        for (; t + 2 <= x->taps; t += 2, pixel += 2 * SOURCE_BYTES) {
            __m256i pair = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(weights + t)));
            __m256i levels = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)pixel));
            __m256i products = _mm256_mullo_epi32(levels, _mm256_permutevar8x32_epi32(pair, each_for_four));
            sums = _mm256_add_epi32(sums, products);
        }
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        if (t < x->taps) {
            __m128i levels = _mm_cvtepu8_epi32(four_bytes(pixel));
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(levels, _mm_set1_epi32(weights[t])));
        }
        sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), WEIGHT_BITS);
        sum = _mm_packs_epi32(sum, sum);
        int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
        /* The fourth byte is where the next pixel comes, or behind the row. */
        memcpy(row, &four, sizeof four);
    }
}

AVX2 static inline __m256i weighted(const uint8_t *bytes, __m256i weight) {
    return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes)), weight);
}

AVX2 static inline __m128i eight_bytes(__m256i sums) {
    __m256i levels = _mm256_srai_epi32(sums, WEIGHT_BITS);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1));
    return _mm_packus_epi16(words, words);
}

AVX2 static void down_avx2(const uint8_t *const *rows, const int32_t *weights, int32_t taps, uint8_t *row,
                           ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m256i left = _mm256_set1_epi32(HALF), right = left;
        for (int32_t t = 0; t < taps; t++) {
            __m256i weight = _mm256_set1_epi32(weights[t]);
            left = _mm256_add_epi32(left, weighted(rows[t] + i, weight));
            right = _mm256_add_epi32(right, weighted(rows[t] + i + 8, weight));
        }
        _mm_storeu_si128((__m128i *)(row + i), _mm_unpacklo_epi64(eight_bytes(left), eight_bytes(right)));
    }
    down(rows, weights, taps, row, i, count);
}
#endif

/* `result` is y.count rows of x.count RGB pixels of 3 bytes; `source`, rows of 4-byte pixels, `stride` bytes apart. 0,
 * or -1 where there is no memory. */
int resample_portable(const uint8_t *source, ptrdiff_t stride, const axis *x, const axis *y, uint8_t *result) {
    return passes(source, stride, x, y, result, across, down_all);
}

int resample(const uint8_t *source, ptrdiff_t stride, const axis *x, const axis *y, uint8_t *result) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return passes(source, stride, x, y, result, across_avx2, down_avx2);
#endif
    return resample_portable(source, stride, x, y, result);
}

/* The matrix product: a tile of up to TILE_ROWS rows by up to 4 vectors, summed in registers. */
#ifndef ELSTM_PRODUCT_H
#define ELSTM_PRODUCT_H

#include "vector.h"

#define LINE (64 / (long)sizeof(real))

/* C = (or +=) sum over segments s of A_s B_s. A segment is a run of the summed index that both
   operands lay out evenly: a slice's gates, or a step's rows. */
struct product {
    const real *a;                    /* element (r, k) of A_s: a[s * a_segment + r * a_row + k * a_k] */
    long a_row, a_k, a_segment;
    const real *b;                    /* row k of B_s: b[s * b_segment + k * vectors * LANES] */
    long b_segment;
    long segments, length;            /* `length` rows each */
    real *c;                          /* vector v of row r: c[r * c_row + v * c_vector] */
    long c_row, c_vector;
    int accumulate;
    /* What will be read next and lies far away: another core's results, or what the cache has not. From
       ahead + r * ahead_row + s * ahead_segment on, a line at every ahead_k is fetched, one in each inner step. */
    const real *ahead;
    long ahead_row, ahead_k, ahead_segment;
};

INLINE void tile(const int rows, const int vectors, const struct product *p, const long r_0) {
    const real *a = p->a + r_0 * p->a_row;
    real *c = p->c + r_0 * p->c_row;
    vec sum[TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = (vec){0};
    const long a_row = p->a_row, a_k = p->a_k;
    for (long s = 0; s < p->segments; s++) {
        const real *a_s = a + s * p->a_segment, *b_s = p->b + s * p->b_segment;
        const real *ahead = p->ahead ? p->ahead + r_0 * p->ahead_row + s * p->ahead_segment : a_s;
        const long ahead_k = p->ahead ? p->ahead_k : 0;
        for (long k = 0; k < p->length; k++) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += ahead_k;
            vec b[4];
            UNROLL for (int v = 0; v < vectors; v++) b[v] = *(const vec *)(b_s + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const vec a_rk = splat(a_s[r * a_row]);
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += a_rk * b[v];
            }
            a_s += a_k;
            b_s += vectors * LANES;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            unaligned_vec *to = (unaligned_vec *)(c + r * p->c_row + v * p->c_vector);
            *to = p->accumulate ? *to + sum[r][v] : sum[r][v];
        }
}

INLINE void tile_rows(int rows, const int vectors, const struct product *p, long r_0) {
    switch (rows) {
    case 1: tile(1, vectors, p, r_0); break;
    case 2: tile(2, vectors, p, r_0); break;
    case 3: tile(3, vectors, p, r_0); break;
#if TILE_ROWS > 3
    case 4: tile(4, vectors, p, r_0); break;
    case 5: tile(5, vectors, p, r_0); break;
    case 6: tile(6, vectors, p, r_0); break;
#endif
    }
}

static void tile_1(int rows, const struct product *p, long r_0) { tile_rows(rows, 1, p, r_0); }
static void tile_2(int rows, const struct product *p, long r_0) { tile_rows(rows, 2, p, r_0); }
static void tile_3(int rows, const struct product *p, long r_0) { tile_rows(rows, 3, p, r_0); }
static void tile_4(int rows, const struct product *p, long r_0) { tile_rows(rows, 4, p, r_0); }

/* `rows` rows of C, `vectors` vectors wide, in tiles of nearly equal height. */
static void multiply(const struct product *p, long rows, int vectors) {
    const long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    long r = 0;
    for (long i = 0; i < tiles; i++) {
        const int height = (int)((rows - r + (tiles - i) - 1) / (tiles - i));
        switch (vectors) {
        case 1: tile_1(height, p, r); break;
        case 2: tile_2(height, p, r); break;
        case 3: tile_3(height, p, r); break;
        default: tile_4(height, p, r); break;
        }
        r += height;
    }
}

#endif

/* One call as Python lays it out (the order of fields is shared with structs.py), and what the threads share.

   Units are cut into slices of LANES, and a thread owns whole slices: all four gates of its units, for
   every row, so that the statistics of the batch need nothing from other threads. Per step only h
   (forward) or the gradient of z (backward) crosses threads: one barrier. Where the statistics are the
   population's, rows do not meet, and a thread may own rows of the forward pass instead: no barrier.

   Layouts with a slice in them are padded to LANES; the lanes past H hold finite numbers that meet
   zero weights. GATES = 4 LANES is a slice's row of z: i, f, g, o. */
#ifndef ELSTM_CALL_H
#define ELSTM_CALL_H

#include <stddef.h>

#include "product.h"
#include "team.h"

#define GATES (4 * LANES)
#ifndef BY_ROWS_BYTES
#define BY_ROWS_BYTES (1 << 20)
#endif

enum cell { CELL_NONE, CELL_OUTPUT, CELL_UPDATE, CELL_CENTER, CELL_LAYER /* layer_norm.h */ };

struct norm {
    const real *gamma, *beta;            /* (F,); beta: the cell's alone. Both null: no normalisation here;
                                            gamma null: centring alone, without any var */
    const real *mean, *var;              /* (T, F) of the population, read at steps >= batch_steps */
    real *batch_mean, *batch_var;        /* (batch_steps, F): written forward, read backward */
    real *d_gamma, *d_beta;              /* (F,) */
    double eps;
    int64_t batch_steps;                 /* steps < batch_steps use the statistics of the batch */
};

struct call {
    int64_t steps, rows, inputs, units;  /* T, B, I, H */
    int64_t batch_steps, cell, threads;  /* batch_steps: the most of any norm */
    const int64_t *batch_sizes;          /* (T,) or null: all rows at every step */
    const real *x, *h_0, *c_0;           /* (T, B, I), (B, H), (B, H) */
    const real *w_x, *w_h, *bias;        /* (4H, I), (4H, H), (4H,) or null */
    struct norm norm_x, norm_h, norm_c;
    real *output, *h_n, *c_n;            /* (T, B, H), (B, H), (B, H) */
    real *saved_zh, *saved_zx;           /* (slices, T, B, GATES): W_h h and W_x x; null: not kept */
    real *saved_c;                       /* (slices, T, B, LANES): f c' + i g, before its norm; or null */
    const real *d_output, *d_h_n, *d_c_n; /* gradients of the results; null: zero */
    real *d_x, *d_h_0, *d_c_0;           /* null: not needed */
    real *d_w_x, *d_w_h, *d_bias;
    char *workspace;                     /* elstm_workspace bytes, aligned to 128 */
    struct pool pool;
};

static inline long min_long(long a, long b) { return a < b ? a : b; }
static inline long slices_of(const struct call *q) { return (q->units + LANES - 1) / LANES; }
static inline long lanes_of(const struct call *q, long s) { return min_long(LANES, q->units - s * LANES); }
static inline long active(const struct call *q, long t) { return q->batch_sizes ? q->batch_sizes[t] : q->rows; }
/* No normalisation of either projection: z = W_x x + W_h h is one sum, kept in saved_zh. */
static inline int is_joint(const struct call *q) { return !q->norm_x.gamma && !q->norm_h.gamma; }

/* Whether threads own rows of the forward pass. Each then reads all weights at every step: they must
   fit in its second-level cache. */
static inline int by_rows(const struct call *q) {
    const long weights = (q->inputs + q->units) * slices_of(q) * GATES * (long)sizeof(real);
    return !q->batch_steps && q->rows >= q->threads * TILE_ROWS && weights <= BY_ROWS_BYTES;
}

/* The first row of a thread, so that all have as many steps of sequences between t_0 and t_1. */
static inline long first_row(const struct call *q, long thread, long threads, long t_0, long t_1) {
    if (!q->batch_sizes) return q->rows * thread / threads;
    int64_t all = 0, before = 0;
    for (long t = t_0; t < t_1; t++) all += q->batch_sizes[t];
    long r = 0;
    for (long end = t_1; r < q->rows && before * threads < all * thread; r++) {
        while (q->batch_sizes[end - 1] <= r) end--;
        before += end - t_0;
    }
    return r;
}

/* One normalisation at one step for one vector of units: (z - mean) * rstd * gamma + beta. Centring alone
   has rstd and gamma 1. */
struct affine {
    vec mean, rstd, gamma, beta;
};

INLINE struct affine load_affine(const struct norm *norm, long t, long features, long at, long count) {
    struct affine y = {(vec){0}, splat(1), splat(1), (vec){0}};
    if (!norm->gamma && !norm->beta) return y;
    const int batch = t < norm->batch_steps;
    y.mean = load((batch ? norm->batch_mean : norm->mean) + t * features + at, count, 0);
    if (norm->beta) y.beta = load(norm->beta + at, count, 0);
    if (!norm->gamma) return y;
    const vec var = load((batch ? norm->batch_var : norm->var) + t * features + at, count, 1);
    y.rstd = 1 / square_root(var + (real)norm->eps);
    y.gamma = load(norm->gamma + at, count, 0);
    return y;
}

/* Cuts pieces off one block. With block null it only counts. */
struct arena {
    char *block;
    size_t used;
};

static real *take(struct arena *arena, long count) {
    real *piece = arena->block ? (real *)(arena->block + arena->used) : 0;
    arena->used += (((size_t)count * sizeof(real) + 127) & ~(size_t)127);
    return piece;
}

#endif

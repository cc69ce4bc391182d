/* The recurrence with layer normalisation (CELL_LAYER): what both directions share, and forward.

   z_t = LN(W_h h_{t-1}; gamma_h) + LN(W_x x_t; gamma_x) + b,  c = f c' + i g,  h = o tanh(LN(c; gamma_c, beta_c))

   Mean and variance are over the units of one row, so that rows never meet: a thread owns rows, and
   forward needs no barrier after the weights are packed. The mean of W x over its 4H features is that
   of W's rows times x. So the rows' mean is taken off the weights, once a call: the products then have
   mean zero, and a row's variance is the mean of their squares. Backward likewise leaves the mean out
   of the gradient of the products and takes it off the gradient of the weights at the end.

   Of struct call, saved_zh and saved_zx are (T, B, slices, GATES) here and saved_c is (T, B, slices,
   LANES), with zero in the lanes past H; batch_mean and batch_var of the norms are (T, B): the mean, of
   norm_c alone, and 1 / sqrt(var + eps). All are null where there is no backward pass. */
#ifndef ELSTM_LAYER_NORM_H
#define ELSTM_LAYER_NORM_H

#include "backward.h"

INLINE real sum_of_lanes(vec x) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64 && REAL_BITS == 32
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX512F__) && VECTOR_BYTES == 64
    return _mm512_reduce_add_pd((__m512d)x);
#else
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    *(vec *)lanes = x;
    for (long width = LANES / 2; width; width /= 2)
        for (long u = 0; u < width; u++) lanes[u] += lanes[u + width];
    return lanes[0];
#endif
}

/* x in the first `count` lanes, zero in the others. */
INLINE vec first_lanes(vec x, long count) {
    if (count == LANES) return x;
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    *(vec *)lanes = x;
    for (long u = count; u < LANES; u++) lanes[u] = 0;
    return *(const vec *)lanes;
}

INLINE real one_over_root(real var, double eps) {
    const real root = var + (real)eps;
    return 1 / (sizeof(real) == 8 ? (real)__builtin_sqrt(root) : __builtin_sqrtf((float)root));
}

struct layer_norm {
    const struct call *q;
    long chunk;                     /* steps whose W_x x is computed together: several where W_x is large */
    real *w_x, *w_h;                /* (slices, I, GATES), (slices, H, GATES), without the rows' mean */
    real *mean_x, *mean_h;          /* (I,), (H,): of the rows */
    real *gamma_x, *gamma_h, *bias; /* (slices, GATES); the bias times EXPONENT */
    real *gamma_c, *beta_c;         /* (slices, LANES) */
    real *zx, *zh;                  /* (chunk, B, slices, GATES), (B, slices, GATES), where they are not kept */
    real *c;                        /* (B, slices, LANES) */
};

static void lay_out_layer_norm(struct layer_norm *w, struct arena *arena, int backward) {
    const struct call *q = w->q;
    const long slices = slices_of(q), B = q->rows, I = q->inputs, H = q->units;
    w->w_x = take(arena, backward && !recomputes_zx(q) ? 0 : slices * I * GATES);
    w->w_h = take(arena, backward ? 0 : slices * H * GATES);
    w->mean_x = take(arena, I), w->mean_h = take(arena, H);
    w->gamma_x = take(arena, slices * GATES), w->gamma_h = take(arena, slices * GATES);
    w->bias = take(arena, slices * GATES);
    w->gamma_c = take(arena, slices * LANES), w->beta_c = take(arena, slices * LANES);
    w->zx = take(arena, recomputes_zx(q) ? w->chunk * B * slices * GATES : 0);
    w->zh = take(arena, q->saved_zh ? 0 : B * slices * GATES);
    w->c = take(arena, backward ? 0 : B * slices * LANES);
}

/* The mean of each column of weights (4H, columns), for the columns [from, to). */
static void column_means(const struct call *q, const real *weight, long columns, long from, long to, real *mean) {
    const long rows = 4 * q->units;
    for (long column = from; column < to; column += LINE) {
        const long width = min_long(LINE, to - column);
        double sum[LINE] = {0};
        for (long r = 0; r < rows; r++)
            for (long j = 0; j < width; j++) sum[j] += weight[r * columns + column + j];
        for (long j = 0; j < width; j++) mean[column + j] = (real)(sum[j] / (double)rows);
    }
}

static void thread_means(const struct layer_norm *w, int thread, int threads) {
    const long I = w->q->inputs, H = w->q->units;
    column_means(w->q, w->q->w_x, I, I * thread / threads, I * (thread + 1) / threads, w->mean_x);
    column_means(w->q, w->q->w_h, H, H * thread / threads, H * (thread + 1) / threads, w->mean_h);
}

/* As pack_slice, without the rows' mean. */
static void pack_centred(const struct call *q, const real *weight, const real *mean, long columns, long s, real *to) {
    const long count = lanes_of(q, s);
    pack_slice(q, weight, columns, s, to);
    for (long k = 0; k < columns; k++)
        for (long gate = 0; gate < 4; gate++) {
            vec *at = (vec *)(to + k * GATES + gate * LANES);
            *at = first_lanes(*at - mean[k], count);
        }
}

/* The vectors of slice s, padded with zeros. */
static void pack_vectors(const struct layer_norm *w, long s) {
    const struct call *q = w->q;
    const long H = q->units, at = s * LANES, count = lanes_of(q, s);
    for (long k = 0; k < 4; k++) {
        const long to = s * GATES + k * LANES;
        *(vec *)(w->gamma_x + to) = load(q->norm_x.gamma + k * H + at, count, 0);
        *(vec *)(w->gamma_h + to) = load(q->norm_h.gamma + k * H + at, count, 0);
        *(vec *)(w->bias + to) = load(q->bias + k * H + at, count, 0) * EXPONENT[k];
    }
    *(vec *)(w->gamma_c + at) = load(q->norm_c.gamma + at, count, 0);
    *(vec *)(w->beta_c + at) = load(q->norm_c.beta + at, count, 0);
}

/* z (n, slices, GATES) of slice s = a (n, columns) times packed weights. Fetches the next slice's meanwhile. */
static void project_rows(const struct call *q, const real *a, long columns, long n, const real *packed, long s, real *z) {
    const long wide = slices_of(q) * GATES;
    const struct product product = {.a = a, .a_row = columns, .a_k = 1, .b = packed + s * columns * GATES, .segments = 1,
                                    .length = columns, .c = z + s * GATES, .c_row = wide, .c_vector = LANES,
                                    .ahead = (s + 1) * GATES < wide ? packed + (s + 1) * columns * GATES : 0,
                                    .ahead_row = columns * GATES / n, .ahead_k = LINE};
    multiply(&product, n, 4);
}

/* What normalises one row at one step. */
struct row_norms {
    vec h[4], x[4]; /* 1 / sqrt(var + eps) times EXPONENT, for each gate */
    real rstd_h, rstd_x;
};

INLINE void set_row_norms(struct row_norms *y, real rstd_h, real rstd_x) {
    y->rstd_h = rstd_h, y->rstd_x = rstd_x;
    UNROLL for (int k = 0; k < 4; k++) y->h[k] = splat(rstd_h * EXPONENT[k]), y->x[k] = splat(rstd_x * EXPONENT[k]);
}

/* Of gate k of a slice, in units of the exponents of vector.h; `at` is its place in a row (slices, GATES). */
INLINE vec layer_norm_exponent(const struct layer_norm *w, const struct row_norms *y, const real *zh, const real *zx,
                               long at, const int k) {
    const vec x = (*(const vec *)(zx + at) * y->x[k]) * *(const vec *)(w->gamma_x + at) + *(const vec *)(w->bias + at);
    return (*(const vec *)(zh + at) * y->h[k]) * *(const vec *)(w->gamma_h + at) + x;
}

INLINE real mean_of_all(const vec *x, real features) {
    return sum_of_lanes((x[0] + x[1]) + (x[2] + x[3])) / features;
}

/* One row at step t: from its projections to its cell c (slices, LANES) and h (H,). */
static void layer_norm_row_forward(const struct layer_norm *w, long t, long r, const real *zh, const real *zx, real *c_r,
                                   real *h) {
    const struct call *q = w->q;
    const long slices = slices_of(q), row = t * q->rows + r, whole = q->units / LANES;
    const real features = (real)q->units;
    vec square_h[4], square_x[4], sum = {0}, square = {0}, error = {0};
    UNROLL for (int k = 0; k < 4; k++) square_h[k] = square_x[k] = (vec){0};
    for (long at = 0; at < slices * GATES; at += GATES)
        UNROLL for (int k = 0; k < 4; k++) {
            const vec z_h = *(const vec *)(zh + at + k * LANES), z_x = *(const vec *)(zx + at + k * LANES);
            square_h[k] += z_h * z_h, square_x[k] += z_x * z_x;
        }
    struct row_norms y;
    set_row_norms(&y, one_over_root(mean_of_all(square_h, 4 * features), q->norm_h.eps),
                  one_over_root(mean_of_all(square_x, 4 * features), q->norm_x.eps));
    for (long s = 0; s < slices; s++) {
        const long at = s * GATES;
        const vec i = one_plus_exp2(layer_norm_exponent(w, &y, zh, zx, at, 0)); /* 1 / i, and so on */
        const vec f = one_plus_exp2(layer_norm_exponent(w, &y, zh, zx, at + LANES, 1));
        const vec g = exp2_minus_one(layer_norm_exponent(w, &y, zh, zx, at + 2 * LANES, 2)); /* g = this / (this + 2) */
        const vec ig = i * (g + 2);
        vec *c = (vec *)(c_r + s * LANES);
        *c = (*c * ig + g * f) / (f * ig); /* f c' + i g; zero past H, because g is */
        sum += *c;
    }
    const real rounded = sum_of_lanes(sum) / features;
    for (long s = 0; s < slices; s++) {
        vec centred = *(const vec *)(c_r + s * LANES) - rounded;
        if (s == whole) centred = first_lanes(centred, q->units % LANES);
        error += centred, square += centred * centred;
    }
    const real shift = sum_of_lanes(error) / features; /* what rounding the mean was off by */
    const real var = sum_of_lanes(square) / features - shift * shift, mean = rounded + shift;
    const real rstd = one_over_root(var < 0 ? 0 : var, q->norm_c.eps); /* NaN stays */
    for (long s = 0; s < slices; s++) {
        const long at = s * LANES;
        const vec hat = (*(const vec *)(c_r + at) - mean) * rstd;
        const vec e = exp2_minus_one((hat * *(const vec *)(w->gamma_c + at) + *(const vec *)(w->beta_c + at)) * (2 * LOG2_E));
        const vec o = one_plus_exp2(layer_norm_exponent(w, &y, zh, zx, s * GATES + 3 * LANES, 3));
        store(h + at, e / (o * (e + 2)), lanes_of(q, s)); /* o tanh(LN(c)) */
    }
    if (!q->saved_c) return;
    memcpy(q->saved_c + row * slices * LANES, c_r, (size_t)(slices * LANES) * sizeof(real));
    q->norm_h.batch_var[row] = y.rstd_h, q->norm_x.batch_var[row] = y.rstd_x;
    q->norm_c.batch_mean[row] = mean, q->norm_c.batch_var[row] = rstd;
}

static void layer_norm_forward_thread(void *data, int thread, struct team *team) {
    const struct layer_norm *w = data;
    const struct call *q = w->q;
    const long T = q->steps, B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q), wide = slices * GATES;
    const long row_0 = first_row(q, thread, team->threads, 0, T), row_1 = first_row(q, thread + 1, team->threads, 0, T);
    int64_t passed = 0;

    thread_means(w, thread, team->threads);
    barrier(team, &passed);
    for (long s = slices * thread / team->threads; s < slices * (thread + 1) / team->threads; s++) {
        pack_centred(q, q->w_x, w->mean_x, I, s, w->w_x + s * I * GATES);
        pack_centred(q, q->w_h, w->mean_h, H, s, w->w_h + s * H * GATES);
        pack_vectors(w, s);
    }
    barrier(team, &passed); /* all weights are packed */
    for (long r = row_0; r < row_1; r++)
        for (long s = 0; s < slices; s++)
            *(vec *)(w->c + (r * slices + s) * LANES) = load(q->c_0 + r * H + s * LANES, lanes_of(q, s), 0);
    for (long t = 0; t < T; t++) {
        const long end = min_long(row_1, active(q, t)), n = end - row_0;
        const real *h_prev = t ? q->output + (t - 1) * B * H : q->h_0;
        real *zh = q->saved_zh ? q->saved_zh + t * B * wide : w->zh;
        real *zx = q->saved_zx ? q->saved_zx + t * B * wide : w->zx + t % w->chunk * B * wide;
        for (long s = 0; s < slices && t % w->chunk == 0; s++)
            for (long j = 0; j < min_long(w->chunk, T - t); j++) {
                const long count = min_long(row_1, active(q, t + j)) - row_0;
                if (count > 0) project_rows(q, q->x + ((t + j) * B + row_0) * I, I, count, w->w_x, s, zx + (j * B + row_0) * wide);
            }
        for (long s = 0; s < slices && n > 0; s++)
            project_rows(q, h_prev + row_0 * H, H, n, w->w_h, s, zh + row_0 * wide);
        for (long r = row_0; r < end; r++)
            layer_norm_row_forward(w, t, r, zh + r * wide, zx + r * wide, w->c + r * slices * LANES,
                                   q->output + (t * B + r) * H);
        for (long r = n > 0 ? end : row_0; r < row_1; r++)
            memset(q->output + (t * B + r) * H, 0, (size_t)H * sizeof(real));
    }
    long t = T - 1;
    for (long r = row_0; r < row_1; r++) { /* the state after each row's last step */
        while (active(q, t) <= r) t--;
        memcpy(q->h_n + r * H, q->output + (t * B + r) * H, (size_t)H * sizeof(real));
        memcpy(q->c_n + r * H, w->c + r * slices * LANES, (size_t)H * sizeof(real));
    }
}

#endif

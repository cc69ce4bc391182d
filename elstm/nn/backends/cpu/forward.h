/* Forward: z_t = BN(W_h h_{t-1}) + BN(W_x x_t) + b, (i, f, g, o), the cell. */
#ifndef ELSTM_FORWARD_H
#define ELSTM_FORWARD_H

#include "call.h"

/* Weights (4H, K) -> (K, GATES) for slice s: row k holds the slice's units of all four gates. */
static void pack_slice(const struct call *q, const real *weight, long columns, long s, real *to) {
    const long count = lanes_of(q, s);
    memset(to, 0, (size_t)(columns * GATES) * sizeof(real));
    for (long gate = 0; gate < 4; gate++)
        for (long u = 0; u < count; u++) {
            const real *from = weight + (gate * q->units + s * LANES + u) * columns;
            for (long k = 0; k < columns; k++) to[k * GATES + gate * LANES + u] = from[k];
        }
}

/* z (n, GATES) (+)= a (n, columns from `from` to `to`) times packed weights (columns, GATES). */
static void project(const real *a, long columns, long from, long to, const real *packed, long n, real *z,
                    int accumulate, const real *ahead, long ahead_row) {
    const struct product product = {.a = a + from, .a_row = columns, .a_k = 1, .b = packed + from * GATES,
                                    .segments = 1, .length = to - from, .c = z, .c_row = GATES, .c_vector = LANES,
                                    .accumulate = accumulate, .ahead = ahead, .ahead_row = ahead_row,
                                    .ahead_k = LINE};
    if (to > from) multiply(&product, n, 4);
}

/* The mean of squares less the square of what the mean was off by. An overflow stays infinite. */
INLINE vec corrected_variance(vec square, vec shift) {
    const vec var = square - shift * shift;
    const ivec negative = var < 0, overflow = square > splat(LARGEST);
    return (vec)(((ivec)square & overflow) | ((ivec)var & ~(negative | overflow)));
}

/* Mean and biased variance over the rows of z (n, vectors * LANES), corrected for the rounding of the
   mean; sums by blocks of rows. Without gamma the mean alone. Written for `count` units from `at` on, gate by gate. */
INLINE void batch_statistics(const real *z, const int vectors, long n, const struct norm *norm, long t, long units,
                             long at, long count) {
    vec mean[4], square[4], error[4];
    UNROLL for (int v = 0; v < vectors; v++) mean[v] = square[v] = error[v] = (vec){0};
    for (long start = 0; start < n; start += 16) {
        vec sum[4];
        UNROLL for (int v = 0; v < vectors; v++) sum[v] = (vec){0};
        for (long r = start; r < min_long(start + 16, n); r++)
            UNROLL for (int v = 0; v < vectors; v++) sum[v] += *(const vec *)(z + (r * vectors + v) * LANES);
        UNROLL for (int v = 0; v < vectors; v++) mean[v] += sum[v];
    }
    UNROLL for (int v = 0; v < vectors; v++) mean[v] /= (real)n;
    if (!norm->gamma) {
        UNROLL for (int v = 0; v < vectors; v++)
            store(norm->batch_mean + t * vectors * units + v * units + at, mean[v], count);
        return;
    }
    for (long start = 0; start < n; start += 16) {
        vec squares[4], errors[4];
        UNROLL for (int v = 0; v < vectors; v++) squares[v] = errors[v] = (vec){0};
        for (long r = start; r < min_long(start + 16, n); r++)
            UNROLL for (int v = 0; v < vectors; v++) {
                const vec centred = *(const vec *)(z + (r * vectors + v) * LANES) - mean[v];
                errors[v] += centred;
                squares[v] += centred * centred;
            }
        UNROLL for (int v = 0; v < vectors; v++) error[v] += errors[v], square[v] += squares[v];
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        const vec shift = error[v] / (real)n;
        const long where = t * vectors * units + v * units + at;
        store(norm->batch_mean + where, mean[v] + shift, count);
        store(norm->batch_var + where, corrected_variance(square[v] / (real)n, shift), count);
    }
}

/* Equation (1) for the four gates of a slice at one step, in units of the exponents of vector.h:
   y_k = ((z_h - mean_h) scale_h + (z_x - mean_x) scale_x + bias) * EXPONENT[k]. */
static const real EXPONENT[4] = {-LOG2_E, -LOG2_E, 2 * LOG2_E, -LOG2_E}; /* i, f, g, o */

struct gates {
    struct affine h[4], x[4];
    vec scale_h[4], scale_x[4], bias[4];
};

INLINE void load_gates(struct gates *p, const struct call *q, long t, long s) {
    const long H = q->units, at = s * LANES, count = lanes_of(q, s);
    UNROLL for (int k = 0; k < 4; k++) {
        p->h[k] = load_affine(&q->norm_h, t, 4 * H, k * H + at, count);
        p->x[k] = load_affine(&q->norm_x, t, 4 * H, k * H + at, count);
        p->scale_h[k] = p->h[k].gamma * p->h[k].rstd * EXPONENT[k];
        p->scale_x[k] = p->x[k].gamma * p->x[k].rstd * EXPONENT[k];
        const vec bias = q->bias ? load(q->bias + k * H + at, count, 0) : (vec){0};
        p->bias[k] = (bias + p->h[k].beta + p->x[k].beta) * EXPONENT[k];
    }
}

INLINE vec exponent(const struct gates *p, const int joint, const real *zh, const real *zx, const int k) {
    const vec z_h = *(const vec *)(zh + k * LANES);
    if (joint) return z_h * EXPONENT[k] + p->bias[k];
    const vec z_x = *(const vec *)(zx + k * LANES);
    return (z_h - p->h[k].mean) * p->scale_h[k] + ((z_x - p->x[k].mean) * p->scale_x[k] + p->bias[k]);
}

/* One step of one slice for n rows, from the projections to h (n, H). `carried` (n, LANES) holds the
   carried cell and is replaced by the new one; `raw` (n, LANES) takes f c' + i g; `one_over_o` is scratch. */
INLINE void cell_forward(const enum cell cell, const int joint, const struct call *q, long t, long s, long n,
                         const real *zh, const real *zx, real *carried, real *raw, real *one_over_o, real *h_t) {
    const long H = q->units, at = s * LANES, count = lanes_of(q, s);
    struct gates p;
    load_gates(&p, q, t, s);
    for (long r = 0; r < n; r++) {
        const real *zh_r = zh + r * GATES, *zx_r = zx + r * GATES;
        const vec i = one_plus_exp2(exponent(&p, joint, zh_r, zx_r, 0)); /* 1 / i, and so on */
        const vec f = one_plus_exp2(exponent(&p, joint, zh_r, zx_r, 1));
        const vec g = exp2_minus_one(exponent(&p, joint, zh_r, zx_r, 2)); /* g = this / (this + 2) */
        const vec o = one_plus_exp2(exponent(&p, joint, zh_r, zx_r, 3));
        const vec ig = i * (g + 2);
        const vec c = (*(vec *)(carried + r * LANES) * ig + g * f) / (f * ig); /* f c' + i g */
        *(vec *)(raw + r * LANES) = c;
        if (cell == CELL_NONE) {
            const vec e = exp2_minus_one(c * (2 * LOG2_E));
            *(vec *)(carried + r * LANES) = c;
            store(h_t + r * H, e / (o * (e + 2)), count); /* o tanh(c) */
        } else
            *(vec *)(one_over_o + r * LANES) = o;
    }
    if (cell == CELL_NONE) return;
    if (t < q->norm_c.batch_steps) batch_statistics(raw, 1, n, &q->norm_c, t, H, at, count);
    const struct affine c_norm = load_affine(&q->norm_c, t, H, at, count);
    const vec scale = c_norm.gamma * c_norm.rstd;
    for (long r = 0; r < n; r++) {
        const vec c = *(vec *)(raw + r * LANES);
        const vec y = (c - c_norm.mean) * scale + c_norm.beta; /* BN(c) */
        const vec e = exp2_minus_one(y * (2 * LOG2_E));
        *(vec *)(carried + r * LANES) = cell == CELL_OUTPUT ? c : y;
        store(h_t + r * H, e / (*(vec *)(one_over_o + r * LANES) * (e + 2)), count); /* o tanh(BN(c)) */
    }
}

static void cell_forward_by_kind(const struct call *q, long t, long s, long n, const real *zh, const real *zx,
                                 real *carried, real *raw, real *one_over_o, real *h_t) {
    const int joint = is_joint(q);
    switch (q->cell * 2 + joint) {
    case CELL_NONE * 2: cell_forward(CELL_NONE, 0, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_NONE * 2 + 1: cell_forward(CELL_NONE, 1, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_OUTPUT * 2: cell_forward(CELL_OUTPUT, 0, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_OUTPUT * 2 + 1: cell_forward(CELL_OUTPUT, 1, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_UPDATE * 2: cell_forward(CELL_UPDATE, 0, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_CENTER * 2: cell_forward(CELL_CENTER, 0, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    case CELL_CENTER * 2 + 1: cell_forward(CELL_CENTER, 1, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    default: cell_forward(CELL_UPDATE, 1, q, t, s, n, zh, zx, carried, raw, one_over_o, h_t); break;
    }
}

struct forward {
    const struct call *q;
    long chunk;                 /* steps whose W_x x is computed together: several where W_x is large */
    real *w_x, *w_h;            /* (slices, I, GATES), (slices, H, GATES) */
    real *carried;              /* (slices, B, LANES) */
    real *zx;                   /* (slices, chunk, B, GATES) where it is not kept */
    real *scratch;              /* per thread: zh (B, GATES), raw and 1/o (B, LANES) */
};

static void lay_out_forward(struct forward *w, struct arena *arena) {
    const struct call *q = w->q;
    const long slices = slices_of(q);
    w->w_x = take(arena, slices * q->inputs * GATES);
    w->w_h = take(arena, slices * q->units * GATES);
    w->carried = take(arena, slices * q->rows * LANES);
    w->zx = take(arena, slices * w->chunk * q->rows * GATES);
    w->scratch = take(arena, q->threads * q->rows * (GATES + 2 * LANES));
}

/* W_h h_{t-1} for slice s. The thread's first slice sums over the thread's own units first and fetches
   the others' meanwhile; later slices fetch the weights of their successor. */
static void project_hidden(const struct call *q, const real *h, long n, long s, long first, long last,
                           const real *packed, real *zh, int accumulate) {
    const long H = q->units, from = first * LANES, to = min_long(last * LANES, H);
    if (!n) return;
    if (s > first) {
        project(h, H, 0, H, packed, n, zh, accumulate, s + 1 < last ? packed + H * GATES : 0, H * GATES / n);
        return;
    }
    project(h, H, from, to, packed, n, zh, accumulate, h, H);
    project(h, H, 0, from, packed, n, zh, 1, 0, 0);
    project(h, H, to, H, packed, n, zh, 1, 0, 0);
}

static void forward_thread(void *data, int thread, struct team *team) {
    const struct forward *w = data;
    const struct call *q = w->q;
    const long T = q->steps, B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q);
    long first = slices * thread / team->threads, last = slices * (thread + 1) / team->threads, row_0 = 0, row_1 = B;
    const int joint = is_joint(q);
    real *zh_scratch = w->scratch + thread * B * (GATES + 2 * LANES);
    real *raw_scratch = zh_scratch + B * GATES, *one_over_o = raw_scratch + B * LANES;
    real *kept_zx = joint ? q->saved_zh : q->saved_zx;
    int64_t passed = 0;

    for (long s = first; s < last; s++) {
        pack_slice(q, q->w_x, I, s, w->w_x + s * I * GATES);
        pack_slice(q, q->w_h, H, s, w->w_h + s * H * GATES);
    }
    if (by_rows(q)) {
        barrier(team, &passed); /* all weights are packed */
        first = 0, last = slices;
        row_0 = first_row(q, thread, team->threads, 0, T), row_1 = first_row(q, thread + 1, team->threads, 0, T);
    }
    for (long s = first; s < last; s++)
        for (long r = row_0; r < row_1; r++)
            *(vec *)(w->carried + (s * B + r) * LANES) = load(q->c_0 + r * H + s * LANES, lanes_of(q, s), 0);
    for (long t = 0; t < T; t++) {
        const long end = min_long(row_1, active(q, t)), n = end > row_0 ? end - row_0 : 0;
        const real *h_prev = (t ? q->output + (t - 1) * B * H : q->h_0) + row_0 * H;
        for (long s = first; s < last; s++) {
            const long at = (s * T + t) * B + row_0, from = s * LANES, count = lanes_of(q, s);
            real *zx = kept_zx ? kept_zx + at * GATES : w->zx + ((s * w->chunk + t % w->chunk) * B + row_0) * GATES;
            real *zh = joint ? zx : q->saved_zh ? q->saved_zh + at * GATES : zh_scratch;
            real *h_t = q->output + (t * B + row_0) * H + from;
            if (t % w->chunk == 0) {
                const long rows = w->chunk == 1 ? n : min_long(w->chunk, T - t) * B;
                project(q->x + (t * B + row_0) * I, I, 0, I, w->w_x + s * I * GATES, rows, zx, 0, 0, 0);
            }
            if (q->norm_x.gamma && t < q->norm_x.batch_steps)
                batch_statistics(zx, 4, n, &q->norm_x, t, H, from, count);
            project_hidden(q, h_prev, n, s, first, last, w->w_h + s * H * GATES, zh, joint);
            if (q->norm_h.gamma && t < q->norm_h.batch_steps)
                batch_statistics(zh, 4, n, &q->norm_h, t, H, from, count);
            cell_forward_by_kind(q, t, s, n, zh, zx, w->carried + (s * B + row_0) * LANES,
                                 q->saved_c ? q->saved_c + at * LANES : raw_scratch, one_over_o, h_t);
            for (long r = n; r < row_1 - row_0; r++) store(h_t + r * H, (vec){0}, count);
        }
        if (!by_rows(q)) barrier(team, &passed); /* h_t is complete */
    }
    long t = T - 1;
    for (long r = row_0; r < row_1; r++) { /* the state after each row's last step */
        while (active(q, t) <= r) t--;
        for (long s = first; s < last; s++) {
            const long at = r * H + s * LANES, count = lanes_of(q, s);
            store(q->h_n + at, load(q->output + t * B * H + at, count, 0), count);
            store(q->c_n + at, *(vec *)(w->carried + (s * B + r) * LANES), count);
        }
    }
}

#endif

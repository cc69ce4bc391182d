/* Backward through time. Per step and slice: the gradient of h by the product dz_{t+1} W_h, then of the
   cell, the gates and the projections. dz is kept for a chunk of steps, after which its products
   give the gradients of the weights (each thread its slices) and of x (each thread its rows). */
#ifndef ELSTM_BACKWARD_H
#define ELSTM_BACKWARD_H

#include "forward.h"

struct backward {
    const struct call *q;
    long chunk;                       /* steps whose dz are kept together */
    long slot;                        /* numbers from a slice's dz to the next one's: chunk * B * GATES at least */
    real *w_x, *w_h;                  /* as forward; only where a projection is computed again */
    real *w_x_back, *w_h_back;        /* (column blocks of up to 4 slices, 4H, width of the block) */
    real *d_zh, *d_zx;                /* (2 halves, slices, chunk, B, GATES), used in turns; one if joint */
    real *d_h, *d_c;                  /* (slices, B, LANES): flowing back into step t */
    real *d_w_x, *d_w_h;              /* (slices, I, GATES), (slices, H, GATES): sums */
    real *sums;                       /* (slices, 3, GATES) of bias, gamma_h, gamma_x; then (slices, 2, LANES) of the cell's */
    real *scratch;                    /* per thread: zh, zx (B, GATES); d_y, f, c' (B, LANES) */
};

/* Where thread-owned sums of slice s lie. */
static inline vec *projection_sums(const struct backward *w, long s) { return (vec *)(w->sums + s * 14 * LANES); }

/* One step of one slice: dz from d_h, d_c and what was kept. Reads and replaces d_c. */
INLINE void cell_backward(const enum cell cell, const int joint, const struct backward *w, long t, long s,
                          const real *zh, const real *zx, const real *c_prev, real *d_zh, real *d_zx, real *d_y,
                          real *gate_f) {
    const struct call *q = w->q;
    const long n = active(q, t), B = q->rows, H = q->units, at = s * LANES, count = lanes_of(q, s);
    const real *raw = q->saved_c + (s * q->steps + t) * B * LANES;
    real *d_h = w->d_h + s * B * LANES, *d_c = w->d_c + s * B * LANES;
    vec *sums = projection_sums(w, s);
    const struct affine c_norm = load_affine(&q->norm_c, t, H, at, count);
    const vec c_scale = c_norm.gamma * c_norm.rstd;
    struct gates p;
    load_gates(&p, q, t, s);
    vec sum_dy = {0}, sum_dy_c = {0};

    /* h = o tanh(y), y = BN(c) or c. d_zx takes what dz is when c's gradient is 1, and dz_o itself.
       With a = 1 / sigma: sigma (1 - sigma) = (a - 1) sigma^2; with e = e^2x - 1: tanh(x) = e / (e + 2) and
       1 - tanh^2 = 4 (e + 1) / (e + 2)^2. Both stay exact where 1 - sigma and 1 - tanh vanish. */
    for (long r = 0; r < n; r++) {
        const real *zh_r = zh + r * GATES, *zx_r = zx + r * GATES;
        const vec c_hat = (*(const vec *)(raw + r * LANES) - c_norm.mean) * c_norm.rstd; /* without a norm: c */
        const vec y = c_hat * c_norm.gamma + c_norm.beta;
        const vec z_i = exponent(&p, joint, zh_r, zx_r, 0), z_f = exponent(&p, joint, zh_r, zx_r, 1);
        const vec z_g = exponent(&p, joint, zh_r, zx_r, 2), z_o = exponent(&p, joint, zh_r, zx_r, 3);
        const vec z_y = y * (2 * LOG2_E);
        const vec a_i = one_plus_exp2(z_i), a_f = one_plus_exp2(z_f), a_o = one_plus_exp2(z_o);
        const vec e_g = exp2_minus_one(z_g), e_y = exp2_minus_one(z_y);
        const vec a_if = a_i * a_f, ifo = 1 / (a_if * a_o), fo = ifo * a_i; /* a division costs ten products */
        const vec i = ifo * (a_f * a_o), f = fo * a_o, o = ifo * a_if;
        const vec both = 1 / ((e_g + 2) * (e_y + 2)), r_g = (e_y + 2) * both, r_y = (e_g + 2) * both;
        vec dh = *(vec *)(d_h + r * LANES);
        if (q->d_output) dh += load(q->d_output + (t * B + r) * H + at, count, 0);
        const vec dh_o = dh * o;
        vec dy = dh_o * unless_flat(4 * (e_y + 1) * (r_y * r_y), z_y);
        if (cell != CELL_OUTPUT) dy += *(vec *)(d_c + r * LANES); /* y itself is carried */
        sum_dy += dy;
        sum_dy_c += dy * c_hat;
        real *dz = d_zx + r * GATES;
        *(vec *)(d_y + r * LANES) = dy;
        *(vec *)(gate_f + r * LANES) = f;
        *(vec *)dz = unless_flat((a_i - 1) * (i * i), z_i) * (e_g * r_g);
        *(vec *)(dz + LANES) = unless_flat((a_f - 1) * (f * f), z_f) * *(const vec *)(c_prev + r * LANES);
        *(vec *)(dz + 2 * LANES) = i * unless_flat(4 * (e_g + 1) * (r_g * r_g), z_g);
        *(vec *)(dz + 3 * LANES) = unless_flat((a_o - 1) * o, z_o) * dh_o * (e_y * r_y);
    }
    /* Population statistics are constants: no mean, not even of a NaN in another row. */
    const int by_batch = t < q->norm_c.batch_steps;
    const vec mean_dy = by_batch ? sum_dy / (real)n : (vec){0}, mean_dy_c = by_batch ? sum_dy_c / (real)n : (vec){0};
    sums[12] += sum_dy_c;
    sums[13] += sum_dy;

    /* c = f c' + i g; through BN: dc = gamma rstd (dy - mean(dy) - c_hat mean(dy c_hat)); through centring
       alone: dc = dy - mean(dy). */
    vec sum_dz[4], sum_dz_h[4], sum_dz_x[4];
    UNROLL for (int k = 0; k < 4; k++) sum_dz[k] = sum_dz_h[k] = sum_dz_x[k] = (vec){0};
    for (long r = 0; r < n; r++) {
        vec dc = *(vec *)(d_y + r * LANES);
        if (cell == CELL_CENTER)
            dc -= mean_dy;
        else if (cell != CELL_NONE) {
            const vec c_hat = (*(const vec *)(raw + r * LANES) - c_norm.mean) * c_norm.rstd;
            dc = c_scale * (dc - mean_dy - c_hat * mean_dy_c);
        }
        if (cell == CELL_OUTPUT) dc += *(vec *)(d_c + r * LANES); /* c is carried */
        *(vec *)(d_c + r * LANES) = dc * *(vec *)(gate_f + r * LANES);
        UNROLL for (int k = 0; k < 4; k++) {
            vec *at_k = (vec *)(d_zx + r * GATES + k * LANES);
            const vec dz = k < 3 ? *at_k * dc : *at_k;
            *at_k = dz;
            sum_dz[k] += dz;
            if (joint) continue;
            sum_dz_h[k] += dz * (*(const vec *)(zh + r * GATES + k * LANES) - p.h[k].mean);
            sum_dz_x[k] += dz * (*(const vec *)(zx + r * GATES + k * LANES) - p.x[k].mean);
        }
    }
    UNROLL for (int k = 0; k < 4; k++) {
        sums[k] += sum_dz[k];
        sum_dz_h[k] *= p.h[k].rstd, sum_dz_x[k] *= p.x[k].rstd;
        sums[4 + k] += sum_dz_h[k];
        sums[8 + k] += sum_dz_x[k];
    }
    if (joint) return;

    /* Through the norms of the projections, likewise: dz_h = gamma rstd (dz - mean(dz) - z_hat mean(dz z_hat)). */
    const int by_batch_h = q->norm_h.gamma && t < q->norm_h.batch_steps;
    const int by_batch_x = q->norm_x.gamma && t < q->norm_x.batch_steps;
    vec scale_h[4], scale_x[4], mean_h[4], mean_x[4], slope_h[4], slope_x[4];
    UNROLL for (int k = 0; k < 4; k++) {
        scale_h[k] = p.h[k].gamma * p.h[k].rstd;
        scale_x[k] = p.x[k].gamma * p.x[k].rstd;
        mean_h[k] = slope_h[k] = mean_x[k] = slope_x[k] = (vec){0};
        if (by_batch_h) mean_h[k] = scale_h[k] * sum_dz[k] / (real)n, slope_h[k] = scale_h[k] * p.h[k].rstd * sum_dz_h[k] / (real)n;
        if (by_batch_x) mean_x[k] = scale_x[k] * sum_dz[k] / (real)n, slope_x[k] = scale_x[k] * p.x[k].rstd * sum_dz_x[k] / (real)n;
    }
    UNROLL for (int k = 0; k < 4; k++)
        for (long r = 0; r < n; r++) {
            const long cell_at = r * GATES + k * LANES;
            const vec dz = *(vec *)(d_zx + cell_at);
            const vec h = *(const vec *)(zh + cell_at) - p.h[k].mean, x = *(const vec *)(zx + cell_at) - p.x[k].mean;
            *(vec *)(d_zh + cell_at) = scale_h[k] * dz - mean_h[k] - slope_h[k] * h;
            *(vec *)(d_zx + cell_at) = scale_x[k] * dz - mean_x[k] - slope_x[k] * x;
        }
}

static void cell_backward_by_kind(const struct backward *w, long t, long s, const real *zh, const real *zx,
                                  const real *c_prev, real *d_zh, real *d_zx, real *d_y,
                          real *gate_f) {
    switch (w->q->cell * 2 + is_joint(w->q)) {
    case CELL_NONE * 2: cell_backward(CELL_NONE, 0, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_NONE * 2 + 1: cell_backward(CELL_NONE, 1, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_OUTPUT * 2: cell_backward(CELL_OUTPUT, 0, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_OUTPUT * 2 + 1: cell_backward(CELL_OUTPUT, 1, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_UPDATE * 2: cell_backward(CELL_UPDATE, 0, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_CENTER * 2: cell_backward(CELL_CENTER, 0, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    case CELL_CENTER * 2 + 1: cell_backward(CELL_CENTER, 1, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    default: cell_backward(CELL_UPDATE, 1, w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f); break;
    }
}

/* Columns [from, from + width) of weights (4H, columns) -> (4H, vectors * LANES), rows in the order in
   which dz lays its units out (slice, gate, unit), without the padding. */
static void pack_columns(const struct call *q, const real *weight, long columns, long from, long vectors, real *to) {
    const long width = min_long(vectors * LANES, columns - from);
    for (long s = 0; s < slices_of(q); s++)
        for (long gate = 0; gate < 4; gate++)
            for (long u = 0; u < lanes_of(q, s); u++, to += vectors * LANES) {
                memcpy(to, weight + (gate * q->units + s * LANES + u) * columns + from, (size_t)width * sizeof(real));
                memset(to + width, 0, (size_t)(vectors * LANES - width) * sizeof(real));
            }
}

/* C (n, vectors * LANES) (+)= dz of the slices [first, last) times packed columns. While it runs, dz of
   as many slices from `ahead` on is fetched. */
static void multiply_slices(const struct backward *w, const real *d_z, long n, const real *packed, long vectors,
                            long first, long last, real *c, long c_row, long c_vector, int accumulate, long ahead) {
    const struct call *q = w->q;
    const long whole = min_long(last, q->units / LANES), rest = last > whole ? q->units % LANES : 0;
    const long step = w->slot;
    struct product product = {.a = d_z + first * step, .a_row = GATES, .a_k = 1, .a_segment = step,
                              .b = packed + first * GATES * vectors * LANES, .b_segment = GATES * vectors * LANES,
                              .segments = whole - first, .length = GATES, .c = c, .c_row = c_row,
                              .c_vector = c_vector, .accumulate = accumulate,
                              .ahead = ahead < 0 ? 0 : d_z + ahead * step, .ahead_row = GATES, .ahead_k = LINE,
                              .ahead_segment = step};
    if (whole > first) multiply(&product, n, (int)vectors);
    if (!rest) return;
    product.a = d_z + whole * step; /* the last slice's four gates, without the padding */
    product.b = packed + whole * GATES * vectors * LANES;
    product.a_segment = LANES, product.b_segment = rest * vectors * LANES;
    product.segments = 4, product.length = rest, product.accumulate = accumulate || whole > first;
    product.ahead = 0;
    multiply(&product, n, (int)vectors);
}

/* The same for all slices, in groups whose weights fit in the cache beside dz; a thread's own first. */
#define GROUP 8

static void multiply_back(const struct backward *w, const real *d_z, long n, const real *packed, long vectors,
                          long first, long last, real *c, long c_row, long c_vector) {
    const long slices = slices_of(w->q);
    int accumulate = 0;
    for (long turn = 0; turn < 3; turn++) { /* own slices, those before, those after */
        const long from = turn == 0 ? first : turn == 1 ? 0 : last, to = turn == 0 ? last : turn == 1 ? first : slices;
        for (long s = from; s < to; s += GROUP) {
            const long end = min_long(s + GROUP, to), other = turn ? -1 : s - first + (first ? 0 : last);
            multiply_slices(w, d_z, n, packed, vectors, s, end, c, c_row, c_vector, accumulate,
                            other + end - s <= slices ? other : -1);
            accumulate = 1;
        }
    }
}

/* d_w (K, GATES) += a^T dz over `rows` rows (of several steps); dz is zero at rows that are not active. */
static void multiply_weights(const real *a, long columns, const real *d_z, long rows, real *d_w) {
    const struct product product = {.a = a, .a_row = 1, .a_k = columns, .b = d_z, .segments = 1, .length = rows,
                                    .c = d_w, .c_row = GATES, .c_vector = LANES, .accumulate = 1,
                                    .ahead = a + 2 * TILE_ROWS, .ahead_row = 1, .ahead_k = columns};
    if (rows) multiply(&product, columns, 4);
}

static inline int recomputes_zx(const struct call *q) { return is_joint(q) ? !q->saved_zh : !q->saved_zx; }

static void lay_out_backward(struct backward *w, struct arena *arena) {
    const struct call *q = w->q;
    const long slices = slices_of(q), B = q->rows, I = q->inputs, H = q->units;
    w->slot = w->chunk * B * GATES;
    const long dz = 2 * slices * w->slot;
    w->w_x = take(arena, recomputes_zx(q) ? slices * I * GATES : 0);
    w->w_h = take(arena, q->saved_zh ? 0 : slices * H * GATES);
    w->w_x_back = take(arena, q->d_x ? (I + GATES) * 4 * H : 0);
    w->w_h_back = take(arena, slices * LANES * 4 * H);
    w->d_zh = take(arena, dz);
    w->d_zx = is_joint(q) ? w->d_zh : take(arena, dz);
    w->d_h = take(arena, slices * B * LANES);
    w->d_c = take(arena, slices * B * LANES);
    w->d_w_x = take(arena, slices * I * GATES);
    w->d_w_h = take(arena, slices * H * GATES);
    w->sums = take(arena, slices * 14 * LANES);
    w->scratch = take(arena, q->threads * B * (2 * GATES + 3 * LANES));
}

/* dx = dzx W_x for `rows` rows from row `from` of the chunk on. */
static void input_gradient(const struct backward *w, const real *d_zx, long from, long rows, real *d_x) {
    const long I = w->q->inputs, slices = slices_of(w->q);
    d_zx += from * GATES;
    for (long column = 0; column < I; column += GATES) {
        const long width = min_long(GATES, I - column), vectors = (width + LANES - 1) / LANES;
        const real *packed = w->w_x_back + column * 4 * w->q->units;
        if (width == vectors * LANES) {
            multiply_back(w, d_zx, rows, packed, vectors, 0, slices, d_x + from * I + column, I, LANES);
            continue;
        }
        for (long r = 0; r < rows; r += 8 * TILE_ROWS) { /* by way of a padded block */
            real block[8 * TILE_ROWS * GATES] __attribute__((aligned(VECTOR_BYTES)));
            const long n = min_long(8 * TILE_ROWS, rows - r);
            multiply_back(w, d_zx + r * GATES, n, packed, vectors, 0, slices, block, GATES, LANES);
            for (long j = 0; j < n; j++)
                memcpy(d_x + (from + r + j) * I + column, block + j * GATES, (size_t)width * sizeof(real));
        }
    }
}

/* (slices, columns, GATES) -> rows of (4H, columns), for the slices [first, last). */
static void unpack_weights(const struct call *q, const real *packed, long columns, long first, long last, real *to) {
    for (long s = first; s < last; s++)
        for (long gate = 0; gate < 4; gate++)
            for (long u = 0; u < lanes_of(q, s); u++) {
                real *row = to + (gate * q->units + s * LANES + u) * columns;
                for (long k = 0; k < columns; k++) row[k] = packed[(s * columns + k) * GATES + gate * LANES + u];
            }
}

static void copy_in(const struct call *q, const real *from, long s, real *to) { /* (B, H), null: zero -> (B, LANES) */
    for (long r = 0; r < q->rows; r++)
        *(vec *)(to + r * LANES) = from ? load(from + r * q->units + s * LANES, lanes_of(q, s), 0) : (vec){0};
}

static void copy_out(const struct call *q, const real *from, long s, real *to) {
    for (long r = 0; r < q->rows; r++)
        store(to + r * q->units + s * LANES, *(const vec *)(from + r * LANES), lanes_of(q, s));
}

/* d_h of the thread's units = dzh_t W_h, for the rows active at t. */
static void hidden_gradient(const struct backward *w, long t, const real *d_zh, long first, long last) {
    const struct call *q = w->q;
    for (long s = first; s < last; s += 4)
        multiply_back(w, d_zh, active(q, t), w->w_h_back + s * LANES * 4 * q->units, min_long(4, last - s), first, last,
                      w->d_h + s * q->rows * LANES, LANES, q->rows * LANES);
}

/* One step of slice s: what was not kept is computed again, then dz. */
static void step_backward(const struct backward *w, long t, long s, long first, long last, real *scratch, real *d_zh,
                          real *d_zx) {
    const struct call *q = w->q;
    const long B = q->rows, I = q->inputs, H = q->units, n = active(q, t), at = (s * q->steps + t) * B;
    const int joint = is_joint(q);
    real *zh_scratch = scratch, *zx_scratch = zh_scratch + B * GATES;
    real *d_y = zx_scratch + B * GATES, *gate_f = d_y + B * LANES, *c_scratch = gate_f + B * LANES;
    const real *zh = q->saved_zh ? q->saved_zh + at * GATES : zh_scratch;
    const real *zx = q->saved_zx ? q->saved_zx + at * GATES : zx_scratch;
    if (recomputes_zx(q))
        project(q->x + t * B * I, I, 0, I, w->w_x + s * I * GATES, n, joint ? zh_scratch : zx_scratch, 0, 0, 0);
    if (!q->saved_zh)
        project_hidden(q, t ? q->output + (t - 1) * B * H : q->h_0, n, s, by_rows(q) ? 0 : first,
                       by_rows(q) ? slices_of(q) : last, w->w_h + s * H * GATES, zh_scratch, joint);
    const real *c_prev = c_scratch, *raw_prev = q->saved_c + (at - B) * LANES;
    if (!t)
        copy_in(q, q->c_0, s, c_scratch);
    else if (q->cell == CELL_NONE || q->cell == CELL_OUTPUT)
        c_prev = raw_prev;
    else {
        const struct affine y = load_affine(&q->norm_c, t - 1, H, s * LANES, lanes_of(q, s));
        for (long r = 0; r < n * LANES; r += LANES)
            *(vec *)(c_scratch + r) = (*(const vec *)(raw_prev + r) - y.mean) * (y.rstd * y.gamma) + y.beta;
    }
    cell_backward_by_kind(w, t, s, zh, zx, c_prev, d_zh, d_zx, d_y, gate_f);
    memset(d_zh + n * GATES, 0, (size_t)((B - n) * GATES) * sizeof(real));
    if (!joint) memset(d_zx + n * GATES, 0, (size_t)((B - n) * GATES) * sizeof(real));
}

static void backward_thread(void *data, int thread, struct team *team) {
    const struct backward *w = data;
    const struct call *q = w->q;
    const long T = q->steps, B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q);
    const long first = slices * thread / team->threads, last = slices * (thread + 1) / team->threads;
    const long slot = w->slot;
    real *scratch = w->scratch + thread * B * (2 * GATES + 3 * LANES);
    int64_t passed = 0;

    for (long s = first; s < last; s++) {
        if (recomputes_zx(q)) pack_slice(q, q->w_x, I, s, w->w_x + s * I * GATES);
        if (!q->saved_zh) pack_slice(q, q->w_h, H, s, w->w_h + s * H * GATES);
        copy_in(q, q->d_h_n, s, w->d_h + s * B * LANES);
        copy_in(q, q->d_c_n, s, w->d_c + s * B * LANES);
        memset(w->d_w_x + s * I * GATES, 0, (size_t)(I * GATES) * sizeof(real));
        memset(w->d_w_h + s * H * GATES, 0, (size_t)(H * GATES) * sizeof(real));
        memset(projection_sums(w, s), 0, 14 * sizeof(vec));
    }
    for (long s = first; s < last; s += 4)
        pack_columns(q, q->w_h, H, s * LANES, min_long(4, last - s), w->w_h_back + s * LANES * 4 * H);
    for (long column = thread * GATES; q->d_x && column < I; column += team->threads * GATES)
        pack_columns(q, q->w_x, I, column, (min_long(GATES, I - column) + LANES - 1) / LANES,
                     w->w_x_back + column * 4 * H);

    const real *next = 0; /* dzh of step t + 1 */
    long half = 0;
    for (long t_1 = T; t_1 > 0; t_1 -= w->chunk, half ^= 1) {
        const long t_0 = t_1 > w->chunk ? t_1 - w->chunk : 0;
        real *d_zh = w->d_zh + half * slices * slot, *d_zx = w->d_zx + half * slices * slot;
        for (long t = t_1 - 1; t >= t_0; t--) {
            const long at = (t - t_0) * B * GATES;
            if (next) hidden_gradient(w, t + 1, next, first, last);
            for (long s = first; s < last; s++)
                step_backward(w, t, s, first, last, scratch, d_zh + s * slot + at, d_zx + s * slot + at);
            next = d_zh + at;
            barrier(team, &passed); /* dz_t is complete */
        }
        const long rows = (t_1 - t_0) * B, none = t_0 ? 0 : B; /* h_0 lies apart */
        for (long s = first; s < last; s++) {
            real *d_w_h = w->d_w_h + s * H * GATES;
            multiply_weights(q->x + t_0 * B * I, I, d_zx + s * slot, rows, w->d_w_x + s * I * GATES);
            multiply_weights(q->h_0, H, d_zh + s * slot, none, d_w_h);
            multiply_weights(q->output + (t_0 * B + none - B) * H, H, d_zh + s * slot + none * GATES, rows - none, d_w_h);
        }
        const long from = rows * thread / team->threads;
        if (q->d_x)
            input_gradient(w, d_zx, from, rows * (thread + 1) / team->threads - from, q->d_x + t_0 * B * I);
    }
    if (q->d_h_0) hidden_gradient(w, 0, next, first, last);
    unpack_weights(q, w->d_w_x, I, first, last, q->d_w_x);
    unpack_weights(q, w->d_w_h, H, first, last, q->d_w_h);
    for (long s = first; s < last; s++) {
        const long at = s * LANES, count = lanes_of(q, s);
        const vec *sums = projection_sums(w, s);
        if (q->d_h_0) copy_out(q, w->d_h + s * B * LANES, s, q->d_h_0);
        if (q->d_c_0) copy_out(q, w->d_c + s * B * LANES, s, q->d_c_0);
        UNROLL for (int k = 0; k < 4; k++) {
            if (q->bias) store(q->d_bias + k * H + at, sums[k], count);
            if (q->norm_h.gamma) store(q->norm_h.d_gamma + k * H + at, sums[4 + k], count);
            if (q->norm_x.gamma) store(q->norm_x.d_gamma + k * H + at, sums[8 + k], count);
        }
        if (q->norm_c.gamma) store(q->norm_c.d_gamma + at, sums[12], count);
        if (q->norm_c.beta) store(q->norm_c.d_beta + at, sums[13], count);
    }
}

#endif

/* Backward of layer_norm.h. A thread owns rows for a chunk of steps, by as many steps of sequences as
   the others; after a barrier it adds the chunk's gradients of its slices of the weights. */
#ifndef ELSTM_LAYER_NORM_BACKWARD_H
#define ELSTM_LAYER_NORM_BACKWARD_H

#include "layer_norm.h"

#define ROW_SUMS 14 /* per slice: of bias, gamma_h, gamma_x for each gate; of gamma_c and beta_c */

struct layer_norm_backward {
    struct backward base;   /* for the products; what it says of d_h, d_c, sums and scratch does not hold here */
    struct layer_norm norms;
    real *d_h, *d_c;        /* (B, slices, LANES): flowing back into step t */
    real *sums;             /* per thread: (slices, ROW_SUMS, LANES) */
    real *scratch;          /* per thread: (slices, GATES + 2 LANES) */
};

static void lay_out_layer_norm_backward(struct layer_norm_backward *w, struct arena *arena) {
    struct backward *base = &w->base;
    const struct call *q = base->q;
    const long slices = slices_of(q), B = q->rows, I = q->inputs, H = q->units;
    /* A row between the slices: at a power of two from each other, they would share cache sets. */
    base->slot = (base->chunk * B + 1) * GATES;
    base->w_x_back = take(arena, q->d_x ? (I + GATES) * 4 * H : 0);
    base->w_h_back = take(arena, slices * LANES * 4 * H);
    base->d_zh = take(arena, 2 * slices * base->slot);
    base->d_zx = take(arena, 2 * slices * base->slot);
    base->d_w_x = take(arena, slices * I * GATES);
    base->d_w_h = take(arena, slices * H * GATES);
    w->norms.q = q, w->norms.chunk = 1;
    lay_out_layer_norm(&w->norms, arena, 1);
    w->d_h = take(arena, B * slices * LANES);
    w->d_c = take(arena, B * slices * LANES);
    w->sums = take(arena, q->threads * slices * ROW_SUMS * LANES);
    w->scratch = take(arena, q->threads * slices * (GATES + 2 * LANES));
}

/* One row at one step: reads d_h and d_c; writes d_c and, a slice every `slot`, the gradients of the
   projections but for their mean. */
static void layer_norm_row_backward(const struct layer_norm_backward *w, long t, long r, const real *zx, real *sums,
                                    real *scratch, real *d_zh, real *d_zx) {
    const struct layer_norm *norms = &w->norms;
    const struct call *q = norms->q;
    const long B = q->rows, H = q->units, slices = slices_of(q), row = t * B + r, slot = w->base.slot;
    const real *zh = q->saved_zh + row * slices * GATES, *c = q->saved_c + row * slices * LANES;
    const real *d_h = w->d_h + r * slices * LANES;
    real *d_c = w->d_c + r * slices * LANES, *dz = scratch, *gate_f = dz + slices * GATES, *scaled = gate_f + slices * LANES;
    const real mean_c = q->norm_c.batch_mean[row], rstd_c = q->norm_c.batch_var[row], features = (real)H;
    struct row_norms y;
    set_row_norms(&y, q->norm_h.batch_var[row], q->norm_x.batch_var[row]);

    /* h = o tanh(y), y = LN(c). `dz` takes what dz is where c's gradient is 1, and dz_o itself; see
       cell_backward for the forms. `scaled` takes u = dy gamma_c. */
    vec sum = {0}, sum_hat = {0};
    for (long s = 0; s < slices; s++) {
        const long at = s * LANES, count = lanes_of(q, s), gates = s * GATES;
        const vec gamma = *(const vec *)(norms->gamma_c + at), hat = (*(const vec *)(c + at) - mean_c) * rstd_c;
        const vec z_y = (hat * gamma + *(const vec *)(norms->beta_c + at)) * (2 * LOG2_E);
        const vec z_i = layer_norm_exponent(norms, &y, zh, zx, gates, 0);
        const vec z_f = layer_norm_exponent(norms, &y, zh, zx, gates + LANES, 1);
        const vec z_g = layer_norm_exponent(norms, &y, zh, zx, gates + 2 * LANES, 2);
        const vec z_o = layer_norm_exponent(norms, &y, zh, zx, gates + 3 * LANES, 3);
        const vec a_i = one_plus_exp2(z_i), a_f = one_plus_exp2(z_f), a_o = one_plus_exp2(z_o);
        const vec e_g = exp2_minus_one(z_g), e_y = exp2_minus_one(z_y);
        const vec a_if = a_i * a_f, ifo = 1 / (a_if * a_o), fo = ifo * a_i;
        const vec i = ifo * (a_f * a_o), f = fo * a_o, o = ifo * a_if;
        const vec both = 1 / ((e_g + 2) * (e_y + 2)), r_g = (e_y + 2) * both, r_y = (e_g + 2) * both;
        const vec c_prev = t ? *(const vec *)(c - B * slices * LANES + at) : load(q->c_0 + r * H + at, count, 0);
        vec dh = *(const vec *)(d_h + at), *to = (vec *)(dz + gates), *of_c = (vec *)(sums + (s * ROW_SUMS + 12) * LANES);
        if (q->d_output) dh += load(q->d_output + row * H + at, count, 0);
        const vec dh_o = dh * o, dy = dh_o * unless_flat(4 * (e_y + 1) * (r_y * r_y), z_y), u = dy * gamma;
        of_c[0] += dy * hat, of_c[1] += dy;
        sum += u, sum_hat += u * hat;
        *(vec *)(scaled + at) = u;
        *(vec *)(gate_f + at) = f;
        to[0] = unless_flat((a_i - 1) * (i * i), z_i) * (e_g * r_g);
        to[1] = unless_flat((a_f - 1) * (f * f), z_f) * c_prev;
        to[2] = i * unless_flat(4 * (e_g + 1) * (r_g * r_g), z_g);
        to[3] = unless_flat((a_o - 1) * o, z_o) * dh_o * (e_y * r_y);
    }
    /* Through LN: dc = rstd (u - mean(u) - c_hat mean(u c_hat)); c itself is carried. */
    const real mean_u = sum_of_lanes(sum) / features, mean_u_hat = sum_of_lanes(sum_hat) / features;
    vec sum_h[4], sum_x[4];
    UNROLL for (int k = 0; k < 4; k++) sum_h[k] = sum_x[k] = (vec){0};
    for (long s = 0; s < slices; s++) {
        const long at = s * LANES;
        const vec hat = (*(const vec *)(c + at) - mean_c) * rstd_c;
        const vec dc = first_lanes(rstd_c * (*(const vec *)(scaled + at) - mean_u - hat * mean_u_hat) + *(const vec *)(d_c + at),
                                   lanes_of(q, s));
        vec *of = (vec *)(sums + s * ROW_SUMS * LANES);
        *(vec *)(d_c + at) = dc * *(const vec *)(gate_f + at);
        UNROLL for (int k = 0; k < 4; k++) {
            const long gate = s * GATES + k * LANES;
            vec d = *(const vec *)(dz + gate);
            if (k < 3) d *= dc;
            const vec d_h_hat = d * (*(const vec *)(zh + gate) * y.rstd_h), d_x_hat = d * (*(const vec *)(zx + gate) * y.rstd_x);
            *(vec *)(dz + gate) = d;
            of[k] += d, of[4 + k] += d_h_hat, of[8 + k] += d_x_hat;
            sum_h[k] += d_h_hat * *(const vec *)(norms->gamma_h + gate);
            sum_x[k] += d_x_hat * *(const vec *)(norms->gamma_x + gate);
        }
    }
    /* The same through the norms of the projections, without the mean: rstd (u - z_hat mean(u z_hat)). */
    const real slope_h = y.rstd_h * mean_of_all(sum_h, 4 * features), slope_x = y.rstd_x * mean_of_all(sum_x, 4 * features);
    for (long s = 0; s < slices; s++)
        UNROLL for (int k = 0; k < 4; k++) {
            const long gate = s * GATES + k * LANES, to = s * slot + k * LANES;
            const vec d = *(const vec *)(dz + gate);
            *(vec *)(d_zh + to) = (d * *(const vec *)(norms->gamma_h + gate) - *(const vec *)(zh + gate) * slope_h) * y.rstd_h;
            *(vec *)(d_zx + to) = (d * *(const vec *)(norms->gamma_x + gate) - *(const vec *)(zx + gate) * slope_x) * y.rstd_x;
        }
}

/* Takes the rows' mean off blocks of columns as pack_columns writes them. */
static void centre_columns(const struct call *q, const real *mean, long columns, long from, long vectors, real *packed) {
    const long width = min_long(vectors * LANES, columns - from);
    for (long row = 0; row < 4 * q->units; row++, packed += vectors * LANES)
        for (long j = 0; j < width; j++) packed[j] -= mean[from + j];
}

/* Takes the mean of each column off the gradient of weights (4H, columns), for a thread's columns. */
static void centre_gradient(const struct call *q, real *gradient, real *mean, long columns, long thread, long threads) {
    const long from = columns * thread / threads, to = columns * (thread + 1) / threads;
    column_means(q, gradient, columns, from, to, mean);
    for (long row = 0; row < 4 * q->units; row++)
        for (long j = from; j < to; j++) gradient[row * columns + j] -= mean[j];
}

static void prepare_layer_norm_backward(const struct layer_norm_backward *w, int thread, struct team *team, int64_t *passed) {
    const struct backward *base = &w->base;
    const struct call *q = base->q;
    const long B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q), threads = team->threads;
    thread_means(&w->norms, thread, team->threads);
    barrier(team, passed);
    for (long s = slices * thread / threads; s < slices * (thread + 1) / threads; s++) {
        if (recomputes_zx(q)) pack_centred(q, q->w_x, w->norms.mean_x, I, s, w->norms.w_x + s * I * GATES);
        pack_vectors(&w->norms, s);
        memset(base->d_w_x + s * I * GATES, 0, (size_t)(I * GATES) * sizeof(real));
        memset(base->d_w_h + s * H * GATES, 0, (size_t)(H * GATES) * sizeof(real));
    }
    for (long column = thread * GATES; column < H; column += threads * GATES) {
        const long vectors = (min_long(GATES, H - column) + LANES - 1) / LANES;
        pack_columns(q, q->w_h, H, column, vectors, base->w_h_back + column * 4 * H);
        centre_columns(q, w->norms.mean_h, H, column, vectors, base->w_h_back + column * 4 * H);
    }
    for (long column = thread * GATES; q->d_x && column < I; column += threads * GATES) {
        const long vectors = (min_long(GATES, I - column) + LANES - 1) / LANES;
        pack_columns(q, q->w_x, I, column, vectors, base->w_x_back + column * 4 * H);
        centre_columns(q, w->norms.mean_x, I, column, vectors, base->w_x_back + column * 4 * H);
    }
    for (long r = B * thread / threads; r < B * (thread + 1) / threads; r++)
        for (long s = 0; s < slices; s++) {
            const long at = r * H + s * LANES, to = (r * slices + s) * LANES, count = lanes_of(q, s);
            *(vec *)(w->d_h + to) = q->d_h_n ? load(q->d_h_n + at, count, 0) : (vec){0};
            *(vec *)(w->d_c + to) = q->d_c_n ? load(q->d_c_n + at, count, 0) : (vec){0};
        }
    barrier(team, passed); /* all weights are packed */
}

/* One step for the rows [row_0, row_1) of a thread. */
static void layer_norm_step_backward(const struct layer_norm_backward *w, long t, long row_0, long row_1, int thread,
                                     real *d_zh, real *d_zx) {
    const struct backward *base = &w->base;
    const struct call *q = base->q;
    const long B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q), wide = slices * GATES;
    const long end = min_long(row_1, active(q, t)), n = end - row_0;
    const real *zx = recomputes_zx(q) ? w->norms.zx : q->saved_zx + t * B * wide;
    real *sums = w->sums + thread * slices * ROW_SUMS * LANES, *scratch = w->scratch + thread * slices * (GATES + 2 * LANES);
    for (long s = 0; s < slices; s++)
        for (long r = n > 0 ? end : row_0; r < row_1; r++) {
            memset(d_zh + s * base->slot + r * GATES, 0, (size_t)GATES * sizeof(real));
            memset(d_zx + s * base->slot + r * GATES, 0, (size_t)GATES * sizeof(real));
        }
    if (n <= 0) return;
    for (long s = 0; s < slices && recomputes_zx(q); s++)
        project_rows(q, q->x + (t * B + row_0) * I, I, n, w->norms.w_x, s, w->norms.zx + row_0 * wide);
    for (long r = row_0; r < end; r++)
        layer_norm_row_backward(w, t, r, zx + r * wide, sums, scratch, d_zh + r * GATES, d_zx + r * GATES);
    for (long s = 0; s < slices && (t || q->d_h_0); s += 4) /* the gradient of h_{t-1} */
        multiply_back(base, d_zh + row_0 * GATES, n, base->w_h_back + s * LANES * 4 * H, min_long(4, slices - s), 0, slices,
                      w->d_h + (row_0 * slices + s) * LANES, slices * LANES, LANES);
}

static void layer_norm_backward_thread(void *data, int thread, struct team *team) {
    const struct layer_norm_backward *w = data;
    const struct backward *base = &w->base;
    const struct call *q = base->q;
    const long T = q->steps, B = q->rows, I = q->inputs, H = q->units, slices = slices_of(q), slot = base->slot;
    const long threads = team->threads, first = slices * thread / threads, last = slices * (thread + 1) / threads;
    long half = 0, row_0 = 0, row_1 = 0;
    int64_t passed = 0;

    prepare_layer_norm_backward(w, thread, team, &passed);
    for (long t_1 = T; t_1 > 0; t_1 -= base->chunk, half ^= 1) {
        const long t_0 = t_1 > base->chunk ? t_1 - base->chunk : 0;
        real *d_zh = base->d_zh + half * slices * slot, *d_zx = base->d_zx + half * slices * slot;
        row_0 = first_row(q, thread, threads, t_0, t_1);
        row_1 = thread + 1 == threads ? B : first_row(q, thread + 1, threads, t_0, t_1);
        for (long t = t_1 - 1; t >= t_0; t--) {
            const long at = (t - t_0) * B * GATES;
            layer_norm_step_backward(w, t, row_0, row_1, thread, d_zh + at, d_zx + at);
        }
        barrier(team, &passed); /* the chunk's dz are complete; the half before them is no longer read */
        const long rows = (t_1 - t_0) * B, none = t_0 ? 0 : B; /* h_0 lies apart */
        for (long s = first; s < last; s++) {
            real *d_w_h = base->d_w_h + s * H * GATES;
            multiply_weights(q->x + t_0 * B * I, I, d_zx + s * slot, rows, base->d_w_x + s * I * GATES);
            multiply_weights(q->h_0, H, d_zh + s * slot, none, d_w_h);
            multiply_weights(q->output + (t_0 * B + none - B) * H, H, d_zh + s * slot + none * GATES, rows - none, d_w_h);
        }
        const long from = rows * thread / threads;
        if (q->d_x) input_gradient(base, d_zx, from, rows * (thread + 1) / threads - from, q->d_x + t_0 * B * I);
    }
    for (long r = row_0; r < row_1; r++) {
        if (q->d_h_0) memcpy(q->d_h_0 + r * H, w->d_h + r * slices * LANES, (size_t)H * sizeof(real));
        if (q->d_c_0) memcpy(q->d_c_0 + r * H, w->d_c + r * slices * LANES, (size_t)H * sizeof(real));
    }
    unpack_weights(q, base->d_w_x, I, first, last, q->d_w_x);
    unpack_weights(q, base->d_w_h, H, first, last, q->d_w_h);
    barrier(team, &passed);
    centre_gradient(q, q->d_w_x, w->norms.mean_x, I, thread, threads);
    centre_gradient(q, q->d_w_h, w->norms.mean_h, H, thread, threads);
}

static void layer_norm_backward(struct layer_norm_backward *w) {
    const struct call *q = w->base.q;
    const long slices = slices_of(q), H = q->units, all = slices * ROW_SUMS * LANES;
    memset(w->sums, 0, (size_t)(q->threads * all) * sizeof(real));
    run_team(&q->pool, (int)q->threads, layer_norm_backward_thread, w);
    for (long s = 0; s < slices; s++)
        for (int k = 0; k < ROW_SUMS; k++) {
            vec sum = {0}; /* over the threads, in their order */
            for (long i = 0; i < q->threads; i++) sum += *(const vec *)(w->sums + i * all + (s * ROW_SUMS + k) * LANES);
            real *to[] = {q->d_bias, q->norm_h.d_gamma, q->norm_x.d_gamma};
            store((k < 12 ? to[k / 4] + k % 4 * H : k == 12 ? q->norm_c.d_gamma : q->norm_c.d_beta) + s * LANES, sum, lanes_of(q, s));
        }
}

#endif

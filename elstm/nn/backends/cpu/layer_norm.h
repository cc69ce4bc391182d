/* The recurrence with layer normalisation, forward and backward in time.

   z_t = LN(W_h h_{t-1}; gamma_h, 0) + x_t,  c = f c' + i g,  h = o tanh(LN(c; gamma_c, beta_c))

   Mean and variance are over the units of one row, so that rows never meet: a thread owns rows, and no
   barrier is needed within a pass over time. Of struct call this uses x (T, B, 4H), which holds
   LN(W_x x_t) and all biases, and in the backward pass saved_zx (T, B, 4H), which takes the gradient of
   W_h h_{t-1}. saved_zh is (T, B, slices, GATES) here and saved_c (T, B, slices, LANES); lanes past H
   are zero. Products over all steps are left to the caller. */
#ifndef ELSTM_LAYER_NORM_H
#define ELSTM_LAYER_NORM_H

#include "backward.h"

INLINE real sum_of_lanes(vec x) {
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES))), sum = 0;
    *(vec *)lanes = x;
    for (long u = 0; u < LANES; u++) sum += lanes[u];
    return sum;
}

/* x in the first `count` lanes, zero in the others. */
INLINE vec first_lanes(vec x, long count) {
    if (count == LANES) return x;
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    *(vec *)lanes = x;
    for (long u = count; u < LANES; u++) lanes[u] = 0;
    return *(const vec *)lanes;
}

struct moments {
    real mean, rstd;
};

/* Mean and 1 / sqrt(var + eps) of a row (slices, vectors, LANES). */
INLINE struct moments row_moments(const struct call *q, const real *row, const int vectors, double eps) {
    const long slices = slices_of(q);
    const real features = (real)(vectors * q->units);
    vec sum = {0}, square = {0}, error = {0};
    for (long s = 0; s < slices; s++)
        UNROLL for (int v = 0; v < vectors; v++) sum += *(const vec *)(row + (s * vectors + v) * LANES);
    const real mean = sum_of_lanes(sum) / features;
    for (long s = 0; s < slices; s++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const vec centred = first_lanes(*(const vec *)(row + (s * vectors + v) * LANES) - mean, lanes_of(q, s));
            error += centred, square += centred * centred;
        }
    const real shift = sum_of_lanes(error) / features; /* what rounding the mean was off by */
    const real var = sum_of_lanes(square) / features - shift * shift;
    const real root = (var < 0 ? 0 : var) + (real)eps; /* NaN stays */
    return (struct moments){mean + shift, 1 / (sizeof(real) == 8 ? (real)__builtin_sqrt(root) : __builtin_sqrtf((float)root))};
}

struct layer_norm {
    const struct call *q;
    real *w_h;       /* (slices, H, GATES) forward; column blocks of (4H, up to GATES) backward */
    real *zh, *c;    /* (B, slices, GATES) and (B, slices, LANES), where they are not kept */
    real *d_h, *d_c; /* (B, slices, LANES): flowing back into step t */
    real *sums;      /* per thread: (slices, 6, LANES) of gamma_h, gamma_c, beta_c */
    real *scratch;   /* per thread: (slices, 2 GATES + LANES) */
};

static struct layer_norm plan_layer_norm(const struct call *q, int backward, struct arena *arena) {
    const long slices = slices_of(q), B = q->rows;
    struct layer_norm w = {.q = q};
    w.w_h = take(arena, slices * LANES * 4 * (backward ? q->units : slices * LANES));
    w.zh = take(arena, q->saved_zh ? 0 : B * slices * GATES);
    w.c = take(arena, B * slices * LANES);
    w.d_h = take(arena, backward ? B * slices * LANES : 0);
    w.d_c = take(arena, backward ? B * slices * LANES : 0);
    w.sums = take(arena, backward ? q->threads * slices * 6 * LANES : 0);
    w.scratch = take(arena, backward ? q->threads * slices * (2 * GATES + LANES) : 0);
    return w;
}

/* z of one gate of one slice: the normalised product plus what is given. */
INLINE vec gate_input(const struct call *q, const real *zh, const real *x, struct moments m, long s, int k) {
    const long H = q->units, at = k * H + s * LANES, count = lanes_of(q, s);
    const vec scale = load(q->norm_h.gamma + at, count, 0) * m.rstd;
    return (*(const vec *)(zh + s * GATES + k * LANES) - m.mean) * scale + load(x + at, count, 0);
}

static void layer_norm_forward_thread(void *data, int thread, struct team *team) {
    const struct layer_norm *w = data;
    const struct call *q = w->q;
    const long T = q->steps, B = q->rows, H = q->units, slices = slices_of(q), wide = slices * GATES;
    const long row_0 = first_row(q, thread, team->threads), row_1 = first_row(q, thread + 1, team->threads);
    int64_t passed = 0;

    for (long s = slices * thread / team->threads; s < slices * (thread + 1) / team->threads; s++)
        pack_slice(q, q->w_h, H, s, w->w_h + s * H * GATES);
    barrier(team, &passed); /* all weights are packed */
    for (long r = row_0; r < row_1; r++)
        for (long s = 0; s < slices; s++)
            *(vec *)(w->c + (r * slices + s) * LANES) = load(q->c_0 + r * H + s * LANES, lanes_of(q, s), 0);
    for (long t = 0; t < T; t++) {
        const long end = min_long(row_1, active(q, t));
        const real *h_prev = t ? q->output + (t - 1) * B * H : q->h_0;
        real *zh = q->saved_zh ? q->saved_zh + t * B * wide : w->zh;
        for (long s = 0; s < slices && end > row_0; s++) {
            const struct product product = {.a = h_prev + row_0 * H, .a_row = H, .a_k = 1, .b = w->w_h + s * H * GATES,
                                            .segments = 1, .length = H, .c = zh + row_0 * wide + s * GATES,
                                            .c_row = wide, .c_vector = LANES};
            multiply(&product, end - row_0, 4);
        }
        for (long r = row_0; r < end; r++) {
            const real *zh_r = zh + r * wide, *x = q->x + (t * B + r) * 4 * H;
            real *c_r = w->c + r * slices * LANES, *h = q->output + (t * B + r) * H;
            const struct moments m = row_moments(q, zh_r, 4, q->norm_h.eps);
            for (long s = 0; s < slices; s++) {
                const vec i = one_plus_exp2(gate_input(q, zh_r, x, m, s, 0) * -LOG2_E); /* 1 / i, and so on */
                const vec f = one_plus_exp2(gate_input(q, zh_r, x, m, s, 1) * -LOG2_E);
                const vec g = exp2_minus_one(gate_input(q, zh_r, x, m, s, 2) * (2 * LOG2_E)); /* g = this / (this + 2) */
                const vec ig = i * (g + 2);
                const vec c = (*(vec *)(c_r + s * LANES) * ig + g * f) / (f * ig); /* f c' + i g */
                *(vec *)(c_r + s * LANES) = first_lanes(c, lanes_of(q, s));
            }
            const struct moments m_c = row_moments(q, c_r, 1, q->norm_c.eps);
            for (long s = 0; s < slices; s++) {
                const long at = s * LANES, count = lanes_of(q, s);
                const vec scale = load(q->norm_c.gamma + at, count, 0) * m_c.rstd, beta = load(q->norm_c.beta + at, count, 0);
                const vec e = exp2_minus_one(((*(vec *)(c_r + at) - m_c.mean) * scale + beta) * (2 * LOG2_E));
                const vec o = one_plus_exp2(gate_input(q, zh_r, x, m, s, 3) * -LOG2_E);
                store(h + at, e / (o * (e + 2)), count); /* o tanh(LN(c)) */
            }
            if (q->saved_c)
                memcpy(q->saved_c + (t * B + r) * slices * LANES, c_r, (size_t)(slices * LANES) * sizeof(real));
        }
        for (long r = end > row_0 ? end : row_0; r < row_1; r++)
            memset(q->output + (t * B + r) * H, 0, (size_t)H * sizeof(real));
    }
    long t = T - 1;
    for (long r = row_0; r < row_1; r++) { /* the state after each row's last step */
        while (active(q, t) <= r) t--;
        memcpy(q->h_n + r * H, q->output + (t * B + r) * H, (size_t)H * sizeof(real));
        memcpy(q->c_n + r * H, w->c + r * slices * LANES, (size_t)H * sizeof(real));
    }
}

/* One row at one step: reads d_h and d_c; writes d_c, and the gradients of x and of W_h h. */
static void layer_norm_row_backward(const struct layer_norm *w, long t, long r, real *sums, real *scratch) {
    const struct call *q = w->q;
    const long B = q->rows, H = q->units, slices = slices_of(q), row = t * B + r;
    const real *zh = q->saved_zh + row * slices * GATES, *x = q->x + row * 4 * H, *c = q->saved_c + row * slices * LANES;
    const real *d_h = w->d_h + r * slices * LANES;
    real *d_c = w->d_c + r * slices * LANES, *d_x = q->d_x + row * 4 * H, *d_zh = q->saved_zx + row * 4 * H;
    real *slope = scratch, *gate_f = scratch + slices * GATES, *scaled = gate_f + slices * LANES;
    const struct moments m = row_moments(q, zh, 4, q->norm_h.eps), m_c = row_moments(q, c, 1, q->norm_c.eps);
    const real features = (real)H;
    vec sum = {0}, sum_hat = {0};

    /* h = o tanh(y), y = LN(c). `slope` takes what dz is where c's gradient is 1, and dz_o itself; see
       cell_backward for the forms that stay exact. `scaled` takes dy gamma_c. */
    for (long s = 0; s < slices; s++) {
        const long at = s * LANES, count = lanes_of(q, s);
        const vec gamma = load(q->norm_c.gamma + at, count, 0), hat = (*(const vec *)(c + at) - m_c.mean) * m_c.rstd;
        const vec z_y = (hat * gamma + load(q->norm_c.beta + at, count, 0)) * (2 * LOG2_E);
        const vec z_i = gate_input(q, zh, x, m, s, 0) * -LOG2_E, z_f = gate_input(q, zh, x, m, s, 1) * -LOG2_E;
        const vec z_g = gate_input(q, zh, x, m, s, 2) * (2 * LOG2_E), z_o = gate_input(q, zh, x, m, s, 3) * -LOG2_E;
        const vec a_i = one_plus_exp2(z_i), a_f = one_plus_exp2(z_f), a_o = one_plus_exp2(z_o);
        const vec e_g = exp2_minus_one(z_g), e_y = exp2_minus_one(z_y);
        const vec i = 1 / a_i, f = 1 / a_f, o = 1 / a_o, r_g = 1 / (e_g + 2), r_y = 1 / (e_y + 2);
        const vec c_prev = t ? *(const vec *)(c - B * slices * LANES + at) : load(q->c_0 + r * H + at, count, 0);
        vec dh = *(const vec *)(d_h + at);
        if (q->d_output) dh += load(q->d_output + row * H + at, count, 0);
        const vec dy = dh * o * unless_flat(4 * (e_y + 1) * (r_y * r_y), z_y);
        *(vec *)(sums + (s * 6 + 4) * LANES) += dy * hat;
        *(vec *)(sums + (s * 6 + 5) * LANES) += dy;
        *(vec *)(scaled + s * LANES) = dy * gamma;
        sum += dy * gamma, sum_hat += dy * gamma * hat;
        *(vec *)(gate_f + at) = f;
        *(vec *)(slope + s * GATES) = unless_flat((a_i - 1) * (i * i), z_i) * (e_g * r_g);
        *(vec *)(slope + s * GATES + LANES) = unless_flat((a_f - 1) * (f * f), z_f) * c_prev;
        *(vec *)(slope + s * GATES + 2 * LANES) = i * unless_flat(4 * (e_g + 1) * (r_g * r_g), z_g);
        *(vec *)(slope + s * GATES + 3 * LANES) = unless_flat((a_o - 1) * (o * o), z_o) * dh * (e_y * r_y);
    }
    /* Through LN: dc = rstd (u - mean(u) - c_hat mean(u c_hat)) with u = dy gamma; c itself is carried. */
    const real mean = sum_of_lanes(sum) / features, mean_hat = sum_of_lanes(sum_hat) / features;
    sum = sum_hat = (vec){0};
    for (long s = 0; s < slices; s++) {
        const long at = s * LANES, count = lanes_of(q, s);
        const vec hat = (*(const vec *)(c + at) - m_c.mean) * m_c.rstd;
        vec dc = m_c.rstd * (*(const vec *)(scaled + at) - mean - hat * mean_hat) + *(const vec *)(d_c + at);
        dc = first_lanes(dc, count);
        *(vec *)(d_c + at) = dc * *(const vec *)(gate_f + at);
        UNROLL for (int k = 0; k < 4; k++) {
            vec *slope_k = (vec *)(slope + s * GATES + k * LANES);
            const vec dz = k < 3 ? *slope_k * dc : *slope_k;
            const vec z_hat = (*(const vec *)(zh + s * GATES + k * LANES) - m.mean) * m.rstd;
            const vec u = dz * load(q->norm_h.gamma + k * H + at, count, 0);
            store(d_x + k * H + at, dz, count);
            *(vec *)(sums + (s * 6 + k) * LANES) += dz * z_hat;
            *slope_k = u;
            sum += u, sum_hat += u * z_hat;
        }
    }
    const real mean_u = sum_of_lanes(sum) / (4 * features), mean_u_hat = sum_of_lanes(sum_hat) / (4 * features);
    for (long s = 0; s < slices; s++)
        UNROLL for (int k = 0; k < 4; k++) {
            const vec z_hat = (*(const vec *)(zh + s * GATES + k * LANES) - m.mean) * m.rstd;
            const vec u = *(const vec *)(slope + s * GATES + k * LANES);
            store(d_zh + k * H + s * LANES, m.rstd * (u - mean_u - z_hat * mean_u_hat), lanes_of(q, s));
        }
}

static void layer_norm_backward_thread(void *data, int thread, struct team *team) {
    const struct layer_norm *w = data;
    const struct call *q = w->q;
    const long T = q->steps, B = q->rows, H = q->units, slices = slices_of(q);
    const long row_0 = first_row(q, thread, team->threads), row_1 = first_row(q, thread + 1, team->threads);
    real *sums = w->sums + thread * slices * 6 * LANES;
    real *scratch = w->scratch + thread * slices * (2 * GATES + LANES);
    int64_t passed = 0;

    /* Columns of W_h, in blocks of up to 4 vectors: (4H, vectors * LANES) each. */
    for (long s = 4 * thread; s < slices; s += 4 * team->threads) {
        const long vectors = min_long(4, slices - s), width = min_long(vectors * LANES, H - s * LANES);
        real *to = w->w_h + s * LANES * 4 * H;
        for (long k = 0; k < 4 * H; k++, to += vectors * LANES) {
            memcpy(to, q->w_h + k * H + s * LANES, (size_t)width * sizeof(real));
            memset(to + width, 0, (size_t)(vectors * LANES - width) * sizeof(real));
        }
    }
    for (long r = row_0; r < row_1; r++)
        for (long s = 0; s < slices; s++) {
            const long at = r * H + s * LANES, count = lanes_of(q, s);
            *(vec *)(w->d_h + (r * slices + s) * LANES) = q->d_h_n ? load(q->d_h_n + at, count, 0) : (vec){0};
            *(vec *)(w->d_c + (r * slices + s) * LANES) = q->d_c_n ? load(q->d_c_n + at, count, 0) : (vec){0};
        }
    barrier(team, &passed); /* all weights are packed */
    for (long t = T - 1; t >= 0; t--) {
        const long end = min_long(row_1, active(q, t)), n = end - row_0;
        for (long r = row_0; r < end; r++) layer_norm_row_backward(w, t, r, sums, scratch);
        for (long r = end > row_0 ? end : row_0; r < row_1; r++) {
            memset(q->d_x + (t * B + r) * 4 * H, 0, (size_t)(4 * H) * sizeof(real));
            memset(q->saved_zx + (t * B + r) * 4 * H, 0, (size_t)(4 * H) * sizeof(real));
        }
        for (long s = 0; s < slices && n > 0; s += 4) { /* the gradient of h_{t-1} */
            const struct product product = {.a = q->saved_zx + (t * B + row_0) * 4 * H, .a_row = 4 * H, .a_k = 1,
                                            .b = w->w_h + s * LANES * 4 * H, .segments = 1, .length = 4 * H,
                                            .c = w->d_h + (row_0 * slices + s) * LANES, .c_row = slices * LANES,
                                            .c_vector = LANES};
            multiply(&product, n, (int)min_long(4, slices - s));
        }
    }
    for (long r = row_0; r < row_1; r++) {
        if (q->d_h_0) memcpy(q->d_h_0 + r * H, w->d_h + r * slices * LANES, (size_t)H * sizeof(real));
        if (q->d_c_0) memcpy(q->d_c_0 + r * H, w->d_c + r * slices * LANES, (size_t)H * sizeof(real));
    }
}

int64_t elstm_layer_norm_workspace(const struct call *q, int64_t backward) {
    struct arena counted = {0, 0};
    plan_layer_norm(q, (int)backward, &counted);
    return (int64_t)counted.used;
}

void elstm_layer_norm_forward(const struct call *q) {
    struct arena arena = {q->workspace, 0};
    struct layer_norm w = plan_layer_norm(q, 0, &arena);
    run_team(&q->pool, (int)q->threads, layer_norm_forward_thread, &w);
}

void elstm_layer_norm_backward(const struct call *q) {
    struct arena arena = {q->workspace, 0};
    struct layer_norm w = plan_layer_norm(q, 1, &arena);
    const long slices = slices_of(q), H = q->units;
    memset(w.sums, 0, (size_t)(q->threads * slices * 6 * LANES) * sizeof(real));
    run_team(&q->pool, (int)q->threads, layer_norm_backward_thread, &w);
    for (long s = 0; s < slices; s++)
        for (int k = 0; k < 6; k++) {
            vec sum = {0}; /* over the threads, in their order */
            for (long i = 0; i < q->threads; i++) sum += *(const vec *)(w.sums + ((i * slices + s) * 6 + k) * LANES);
            real *to = k < 4 ? q->norm_h.d_gamma + k * H : k == 4 ? q->norm_c.d_gamma : q->norm_c.d_beta;
            store(to + s * LANES, sum, lanes_of(q, s));
        }
}

#endif

/* The recurrence of an LSTM layer, plain or batch-normalised, forward and backward in time on the CPU.

   z_t = BN(W_h h_{t-1}; gamma_h) + BN(W_x x_t; gamma_x) + b,  (i, f, g, o) = (sigma, sigma, tanh, sigma)(z_t)
   none:    c = f c' + i g,      h = o tanh(c)
   output:  c = f c' + i g,      h = o tanh(BN(c))
   update:  c = BN(f c' + i g),  h = o tanh(c)
   center:  c = f c' + i g - mean + beta,  h = o tanh(c)

   Compiled once for float (REAL_BITS 32) and once for double (64). */
#include "backward.h"
#include "layer_norm.h"

#ifndef CHUNK
#define CHUNK 512
#endif

static struct forward plan_forward(const struct call *q, struct arena *arena) {
    /* Weights that would fill the second-level cache are read once for about 512 rows. */
    const long large = q->inputs * q->units * 4 * (long)sizeof(real) > (1 << 20);
    const long chunk = large && !by_rows(q) ? 512 / q->rows : 1;
    struct forward w = {.q = q, .chunk = chunk < 1 ? 1 : chunk < q->steps ? chunk : q->steps};
    lay_out_forward(&w, arena);
    return w;
}

static struct backward plan_backward(const struct call *q, struct arena *arena) {
    struct backward w = {.q = q, .chunk = CHUNK / q->rows};
    if (w.chunk < 1) w.chunk = 1;
    if (w.chunk > q->steps) w.chunk = q->steps;
    lay_out_backward(&w, arena);
    return w;
}

int64_t elstm_workspace(const struct call *q, int64_t backward) {
    struct arena counted = {0, 0};
    if (backward)
        plan_backward(q, &counted);
    else
        plan_forward(q, &counted);
    return (int64_t)counted.used;
}

void elstm_forward(const struct call *q) {
    struct arena arena = {q->workspace, 0};
    struct forward w = plan_forward(q, &arena);
    run_team(&q->pool, (int)q->threads, forward_thread, &w);
}

void elstm_backward(const struct call *q) {
    struct arena arena = {q->workspace, 0};
    struct backward w = plan_backward(q, &arena);
    run_team(&q->pool, (int)q->threads, backward_thread, &w);
}

/* What Python needs to lay out the saved tensors, and to check that both sides see the same struct. */
int64_t elstm_lanes(void) { return LANES; }
int64_t elstm_call_size(void) { return (int64_t)sizeof(struct call); }

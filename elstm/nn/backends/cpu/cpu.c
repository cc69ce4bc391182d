/* The recurrence of an LSTM layer, plain or batch-normalised, forward and backward in time on the CPU.

   z_t = BN(W_h h_{t-1}; gamma_h) + BN(W_x x_t; gamma_x) + b,  (i, f, g, o) = (sigma, sigma, tanh, sigma)(z_t)
   none:    c = f c' + i g,      h = o tanh(c)
   output:  c = f c' + i g,      h = o tanh(BN(c))
   update:  c = BN(f c' + i g),  h = o tanh(c)
   center:  c = f c' + i g - mean + beta,  h = o tanh(c)
   layer:   as output, with layer normalisation in the place of BN

   Compiled once for float (REAL_BITS 32) and once for double (64). */
#include "backward.h"
#include "layer_norm_backward.h"

#ifndef CHUNK
#define CHUNK 512
#endif

/* Steps whose W_x x is computed together. Weights that would fill the second-level cache are read once
   for about 512 rows. */
static long forward_chunk(const struct call *q) {
    const long large = q->inputs * q->units * 4 * (long)sizeof(real) > (1 << 20);
    const long chunk = large && (q->cell == CELL_LAYER || !by_rows(q)) ? 512 / q->rows : 1;
    return chunk < 1 ? 1 : min_long(chunk, q->steps);
}

static long backward_chunk(const struct call *q) {
    const long chunk = CHUNK / q->rows;
    return chunk < 1 ? 1 : min_long(chunk, q->steps);
}

/* Lays out the workspace and, unless it is to be counted only, runs. Returns its size. */
static size_t forward(const struct call *q, char *workspace) {
    struct arena arena = {workspace, 0};
    if (q->cell == CELL_LAYER) {
        struct layer_norm w = {.q = q, .chunk = forward_chunk(q)};
        lay_out_layer_norm(&w, &arena, 0);
        if (workspace) run_team(&q->pool, (int)q->threads, layer_norm_forward_thread, &w);
    } else {
        struct forward w = {.q = q, .chunk = forward_chunk(q)};
        lay_out_forward(&w, &arena);
        if (workspace) run_team(&q->pool, (int)q->threads, forward_thread, &w);
    }
    return arena.used;
}

static size_t backward(const struct call *q, char *workspace) {
    struct arena arena = {workspace, 0};
    if (q->cell == CELL_LAYER) {
        struct layer_norm_backward w = {.base = {.q = q, .chunk = backward_chunk(q)}};
        lay_out_layer_norm_backward(&w, &arena);
        if (workspace) layer_norm_backward(&w);
    } else {
        struct backward w = {.q = q, .chunk = backward_chunk(q)};
        lay_out_backward(&w, &arena);
        if (workspace) run_team(&q->pool, (int)q->threads, backward_thread, &w);
    }
    return arena.used;
}

int64_t elstm_workspace(const struct call *q, int64_t of_backward) {
    return (int64_t)(of_backward ? backward(q, 0) : forward(q, 0));
}

void elstm_forward(const struct call *q) { forward(q, q->workspace); }

void elstm_backward(const struct call *q) { backward(q, q->workspace); }

/* What Python needs to lay out the saved tensors, and to check that both sides see the same struct. */
int64_t elstm_lanes(void) { return LANES; }
int64_t elstm_call_size(void) { return (int64_t)sizeof(struct call); }

/* The recurrence of an LSTM layer, plain or batch-normalised, forward and backward in time on the CPU.

   z_t = BN(W_h h_{t-1}; gamma_h) + BN(W_x x_t; gamma_x) + b,  (i, f, g, o) = (sigma, sigma, tanh, sigma)(z_t)
   none:    c = f c' + i g,      h = o tanh(c)
   output:  c = f c' + i g,      h = o tanh(BN(c))
   update:  c = BN(f c' + i g),  h = o tanh(c)

   Compiled once for float (REAL_BITS 32) and once for double (64). Returns 0, or 1 without memory. */
#include "cpu_backward.h"

#ifndef CHUNK
#define CHUNK 512
#endif

static char *reserve(size_t bytes) {
    void *block = 0;
    if (posix_memalign(&block, 128, bytes ? bytes : 1)) return 0;
    prefer_large_pages(block, bytes);
    return block;
}

int elstm_forward(const struct call *q) {
    /* Weights that would fill the second-level cache are read once for about 512 rows. */
    const long large = q->inputs * q->units * 4 * (long)sizeof(real) > (1 << 20);
    const long chunk = large && !by_rows(q) ? 512 / q->rows : 1;
    struct forward w = {.q = q, .chunk = chunk < 1 ? 1 : chunk < q->steps ? chunk : q->steps};
    struct arena arena = {0, 0};
    const size_t step = (size_t)(q->steps * slices_of(q) * q->rows) * sizeof(real);
    if (q->saved_zh) prefer_large_pages(q->saved_zh, step * GATES);
    if (q->saved_zx) prefer_large_pages(q->saved_zx, step * GATES);
    if (q->saved_c) prefer_large_pages(q->saved_c, step * LANES);
    lay_out_forward(&w, &arena);
    if (!(arena.block = reserve(arena.used))) return 1;
    arena.used = 0;
    lay_out_forward(&w, &arena);
    run_team(&q->pool, (int)q->threads, forward_thread, &w);
    free(arena.block);
    return 0;
}

int elstm_backward(const struct call *q) {
    struct backward w = {.q = q, .chunk = CHUNK / q->rows};
    struct arena arena = {0, 0};
    if (w.chunk < 1) w.chunk = 1;
    if (w.chunk > q->steps) w.chunk = q->steps;
    lay_out_backward(&w, &arena);
    if (!(arena.block = reserve(arena.used))) return 1;
    arena.used = 0;
    lay_out_backward(&w, &arena);
    run_team(&q->pool, (int)q->threads, backward_thread, &w);
    free(arena.block);
    return 0;
}

/* What Python needs to lay out the saved tensors, and to check that both sides see the same struct. */
int64_t elstm_lanes(void) { return LANES; }
int64_t elstm_call_size(void) { return (int64_t)sizeof(struct call); }

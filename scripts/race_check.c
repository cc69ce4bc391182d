/* Drives cpu.c outside of Python, by its own POSIX threads, for the sanitizers of race_check.py.

   At each shape the same call by 1, 2 and 4 threads, in each of the modes below: prints the number of
   calls and the largest difference of any result from that of one thread, relative to the largest
   number, and fails above a bound of rounding. -DPLANTED_RACE takes the barrier away. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "team.h"
#ifdef PLANTED_RACE
static inline void no_barrier(struct team *team, int64_t *passed) { (void)team, (void)passed; }
#define barrier no_barrier
#endif
#include "cpu.c"

/* Batch statistics with all kept or computed again; population statistics with gradients, or without:
   in the last two threads share out rows where there are enough. */
enum mode { TRAIN, TRAIN_RECOMPUTE, POPULATION, EVAL, MODES };

static unsigned long long state = 1;

static real *draw(long count, real scale, real shift) { /* null where there is nothing */
    real *to = count ? malloc((size_t)count * sizeof(real)) : 0;
    for (long i = 0; i < count; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        to[i] = shift + scale * ((real)(state >> 40) / (1 << 23) - 1);
    }
    return to;
}

static real *zero(long count) { return draw(count, 0, 0); }

static real *aligned(long count) { /* not a byte more, for AddressSanitizer */
    void *block = 0;
    if (posix_memalign(&block, 128, (size_t)count * sizeof(real))) exit(3);
    return block;
}

struct results {
    int count;
    real *part[32];
    long size[32];
};

static real *result(struct results *all, long count) {
    all->size[all->count] = count;
    return all->part[all->count++] = zero(count);
}

static struct norm norm(struct results *all, long T, long batch_steps, long F, int gamma, int beta) {
    struct norm n = {.mean = draw(T * F, 1, 0), .eps = 0.1, .batch_steps = batch_steps};
    if (beta) n.beta = draw(F, 1, 0), n.d_beta = result(all, F);
    n.batch_mean = result(all, batch_steps * F);
    if (!gamma) return n; /* centring alone */
    n.gamma = draw(F, 0.5, 1), n.var = draw(T * F, 0.4, 1);
    n.batch_var = result(all, batch_steps * F), n.d_gamma = result(all, F);
    return n;
}

static void run(int cell, int joint, const long *shape, int packed, enum mode mode, int threads, struct results *all) {
    const long T = shape[0], B = shape[1], I = shape[2], H = shape[3];
    const long batch_steps = mode >= POPULATION ? 0 : packed ? T - 1 : T; /* packed: the last by the population's */
    int64_t *sizes = malloc((size_t)T * sizeof(int64_t));
    struct call q = {.steps = T, .rows = B, .inputs = I, .units = H, .batch_steps = batch_steps, .cell = cell, .threads = threads};
    const long saved = slices_of(&q) * T * B * LANES;
    memset(all, 0, sizeof *all);
    state = 1;
    for (long t = 0; t < T; t++) sizes[t] = B - t > 2 ? B - t : B < 2 ? B : 2;
    if (packed) q.batch_sizes = sizes;
    q.x = draw(T * B * I, 1, 0), q.h_0 = draw(B * H, 1, 0), q.c_0 = draw(B * H, 1, 0);
    q.w_x = draw(4 * H * I, 0.3, 0), q.w_h = draw(4 * H * H, 0.3, 0), q.bias = draw(4 * H, 1, 0);
    if (cell == CELL_LAYER) {
        struct norm *norms[] = {&q.norm_x, &q.norm_h, &q.norm_c};
        for (int i = 0; i < 3; i++) {
            *norms[i] = norm(all, T, 0, i < 2 ? 4 * H : H, 1, i == 2);
            norms[i]->batch_mean = mode == EVAL ? 0 : zero(T * B), norms[i]->batch_var = mode == EVAL ? 0 : zero(T * B);
        }
    } else {
        if (!joint) q.norm_x = norm(all, T, batch_steps, 4 * H, 1, 0), q.norm_h = norm(all, T, batch_steps, 4 * H, 1, 0);
        if (cell != CELL_NONE) q.norm_c = norm(all, T, batch_steps, H, cell != CELL_CENTER, 1);
    }
    q.output = result(all, T * B * H), q.h_n = result(all, B * H), q.c_n = result(all, B * H);
    if (mode != EVAL) q.saved_c = aligned(saved);
    if (mode == TRAIN) q.saved_zh = aligned(4 * saved);
    if (mode == TRAIN && !joint) q.saved_zx = aligned(4 * saved);
    q.d_output = draw(T * B * H, 1, 0), q.d_h_n = draw(B * H, 1, 0), q.d_c_n = draw(B * H, 1, 0);
    q.d_x = result(all, T * B * I), q.d_h_0 = result(all, B * H), q.d_c_0 = result(all, B * H);
    q.d_w_x = result(all, 4 * H * I), q.d_w_h = result(all, 4 * H * H), q.d_bias = result(all, 4 * H);
    for (int backward = 0; backward <= (mode != EVAL); backward++) {
        q.workspace = (char *)aligned(elstm_workspace(&q, backward) / (long)sizeof(real));
        backward ? elstm_backward(&q) : elstm_forward(&q);
        free(q.workspace);
    }
    const void *given[] = {q.x, q.h_0, q.c_0, q.w_x, q.w_h, q.bias, q.saved_c, q.saved_zh, q.saved_zx, q.d_output,
                           q.d_h_n, q.d_c_n, sizes};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) free((void *)given[i]);
    const struct norm norms[] = {q.norm_x, q.norm_h, q.norm_c};
    for (int i = 0; i < 3; i++)
        if (cell == CELL_LAYER) free(norms[i].batch_mean), free(norms[i].batch_var);
    for (int i = 0; i < 3; i++)
        free((void *)norms[i].gamma), free((void *)norms[i].beta), free((void *)norms[i].mean),
            free((void *)norms[i].var);
}

static void release(struct results *all) {
    for (int i = 0; i < all->count; i++) free(all->part[i]);
}

int main(void) {
    const long shapes[][4] = {{1, 2, 1, 1}, {4, 7, 3, 33}, {3, 26, 19, 50}, {3, 9, 70, 66}};
    const int threads[] = {2, 4};
    double worst = 0;
    int calls = 0, shared_rows = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int kind = 0; kind < 20 * MODES; kind++) {
            const int cell = kind % 5, joint = kind / 5 % 2, packed = kind / 10 % 2;
            const enum mode mode = kind / 20;
            if (cell == CELL_LAYER && (joint || mode == TRAIN_RECOMPUTE || mode == POPULATION)) continue; /* it has none */
            struct results one, several;
            run(cell, joint, shapes[s], packed, mode, 1, &one);
            for (int n = 0; n < 2; n++, calls++) {
                run(cell, joint, shapes[s], packed, mode, threads[n], &several);
                for (int i = 0; i < one.count; i++) {
                    double difference = 0, largest = 1e-30;
                    for (long j = 0; j < one.size[i]; j++) {
                        const double a = one.part[i][j], b = several.part[i][j];
                        if (!(fabs(a - b) <= difference)) difference = isfinite(a - b) ? fabs(a - b) : INFINITY;
                        if (fabs(a) > largest) largest = fabs(a);
                    }
                    if (!(difference / largest <= worst)) worst = difference / largest;
                }
                release(&several);
                shared_rows += mode >= POPULATION && shapes[s][1] >= threads[n] * TILE_ROWS;
            }
            release(&one);
        }
    printf("%d calls, rows shared out in %d; largest difference between 1 thread and 2 or 4: %.1e\n", calls, shared_rows, worst);
    return worst <= (sizeof(real) == 4 ? 1e-4 : 1e-12) && shared_rows ? 0 : 4;
}

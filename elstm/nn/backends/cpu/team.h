/* A team of threads with a barrier: torch's own OpenMP pool where Python found its entry points
   (so that no second one is loaded), else POSIX threads started for the call. */
#ifndef ELSTM_TEAM_H
#define ELSTM_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdint.h>

struct pool { /* of libgomp and its equals; null: POSIX threads */
    void (*parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
    int (*thread)(void);
    int (*threads)(void);
};

struct team {
    int threads;
    int64_t arrived; /* at barriers, over all of them: never reset */
    char apart[64];  /* the next fields are read all the time, the counter above is written */
    void (*body)(void *data, int thread, struct team *team);
    void *data;
    const struct pool *pool;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits for the whole team; `passed` counts this thread's barriers. Spins for some microseconds, then
   lets others run: with more threads than cores the one that is awaited may be among them. */
static inline void barrier(struct team *team, int64_t *passed) {
    const int64_t all = ++*passed * team->threads;
    __atomic_fetch_add(&team->arrived, 1, __ATOMIC_ACQ_REL);
    for (int spins = 0; __atomic_load_n(&team->arrived, __ATOMIC_ACQUIRE) < all; spins++) {
        if (spins < 2000)
            relax();
        else
            sched_yield();
    }
}

static void pool_body(void *data) {
    struct team *team = data;
    const int thread = team->pool->thread(), threads = team->pool->threads();
    if (thread == 0) __atomic_store_n(&team->threads, threads, __ATOMIC_RELEASE);
    while (__atomic_load_n(&team->threads, __ATOMIC_ACQUIRE) == 0) relax(); /* it may be fewer than asked */
    team->body(team->data, thread, team);
}

#define MAX_THREADS 256

struct member {
    struct team *team;
    int thread;
};

static void *member_body(void *data) {
    struct member *member = data;
    while (__atomic_load_n(&member->team->threads, __ATOMIC_ACQUIRE) == 0) sched_yield();
    if (member->thread < member->team->threads)
        member->team->body(member->team->data, member->thread, member->team);
    return 0;
}

static void run_team(const struct pool *pool, int threads, void (*body)(void *, int, struct team *), void *data) {
    struct team team = {.threads = 1, .body = body, .data = data, .pool = pool};
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads <= 1) {
        body(data, 0, &team);
        return;
    }
    team.threads = 0;
    if (pool->parallel) {
        pool->parallel(pool_body, &team, (unsigned)threads, 0);
        return;
    }
    pthread_t handles[MAX_THREADS];
    struct member members[MAX_THREADS];
    int started = 1; /* this thread is number 0 */
    for (; started < threads; started++) {
        members[started] = (struct member){&team, started};
        if (pthread_create(&handles[started], 0, member_body, &members[started])) break;
    }
    __atomic_store_n(&team.threads, started, __ATOMIC_RELEASE);
    body(data, 0, &team);
    for (int i = 1; i < started; i++) pthread_join(handles[i], 0);
}

#endif

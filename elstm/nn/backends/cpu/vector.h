/* Vectors of reals by the compiler's vector extensions (gcc, clang), and the two squashing functions. */
#ifndef ELSTM_VECTOR_H
#define ELSTM_VECTOR_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef REAL_BITS
#define REAL_BITS 32
#endif
#if REAL_BITS == 64
typedef double real;
typedef int64_t integer;
#else
typedef float real;
typedef int32_t integer;
#endif

/* The widest registers of the target. TILE_ROWS rows of 4 vectors are the sums that a product keeps
   in registers: 24 of 32, or 8 of 16. */
#if defined(VECTOR_BYTES)
#define TILE_ROWS 6
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 6
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 3
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 3
#endif

#define LANES ((long)(VECTOR_BYTES / sizeof(real)))
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real unaligned_vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real))));
typedef integer ivec __attribute__((vector_size(VECTOR_BYTES)));

INLINE vec splat(real x) { return x - (vec){0}; }

/* The first `count` lanes from memory, the others `fill`. */
INLINE vec load(const real *from, long count, real fill) {
    if (count == LANES) return *(const unaligned_vec *)from;
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    for (long u = 0; u < LANES; u++) lanes[u] = u < count ? from[u] : fill;
    return *(const vec *)lanes;
}

INLINE void store(real *to, vec x, long count) {
    if (count == LANES) {
        *(unaligned_vec *)to = x;
        return;
    }
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    *(vec *)lanes = x;
    for (long u = 0; u < count; u++) to[u] = lanes[u];
}

INLINE vec square_root(vec x) {
    real lanes[LANES] __attribute__((aligned(VECTOR_BYTES)));
    *(vec *)lanes = x;
    for (long u = 0; u < LANES; u++)
        lanes[u] = sizeof(real) == 8 ? (real)__builtin_sqrt(lanes[u]) : __builtin_sqrtf((float)lanes[u]);
    return *(const vec *)lanes;
}

/* Within [low, high]; NaN stays NaN. By name where compilers miss the instruction. */
INLINE vec clamp(vec x, real low, real high) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64 && REAL_BITS == 32
    return (vec)_mm512_min_ps((__m512)splat(high), _mm512_max_ps((__m512)splat(low), (__m512)x));
#elif defined(__AVX__) && VECTOR_BYTES == 32 && REAL_BITS == 32
    return (vec)_mm256_min_ps((__m256)splat(high), _mm256_max_ps((__m256)splat(low), (__m256)x));
#else
    const ivec below = x < splat(low), above = x > splat(high);
    return (vec)(((ivec)splat(low) & below) | ((ivec)splat(high) & above) | ((ivec)x & ~(below | above)));
#endif
}

/* Exponentials are to base 2; their callers fold log2(e) into numbers that they multiply by anyway:
   sigma(z) = 1 / (1 + 2^y) with y = -LOG2_E z, tanh(z) = E / (E + 2) with E = 2^y - 1, y = 2 LOG2_E z.
   y is kept within LIMIT, where both are flat, so that three such numbers can be multiplied. */
#if REAL_BITS == 64
#define LOG2_E 1.4426950408889634
#define LIMIT 300
#define MANTISSA 52
#define LARGEST __DBL_MAX__
#define ROUNDING 6755399441055744.0 /* 1.5 * 2^52: adding it rounds, and leaves n in the low bits */
#else
#define LOG2_E 1.44269504f
#define LIMIT 32
#define MANTISSA 23
#define LARGEST __FLT_MAX__
#define ROUNDING 12582912.0f
#endif

/* 2^y = 2^n (1 + q), n = round(y), q = 2^r - 1 for r = y - n in [-1/2, 1/2]. Returns q; *power is n
   shifted into the exponent's place. float: minimax, relative error 1e-8 before rounding; double:
   Taylor, log(2)^k / k!, 1e-17. */
INLINE vec exp2_parts(vec y, ivec *power) {
#if REAL_BITS == 64
    static const real term[] = {6.77872635482254254e-14, 1.36914888539041241e-12, 2.56784359934881958e-11,
                                4.44553827187081007e-10, 7.05491162080112088e-09, 1.01780860092396960e-07,
                                1.32154867901443053e-06, 1.52527338040598377e-05, 1.54035303933816061e-04,
                                1.33335581464284411e-03, 9.61812910762847688e-03, 5.55041086648215762e-02,
                                2.40226506959100694e-01, 6.93147180559945286e-01};
#else
    static const real term[] = {1.540351223e-04f, 1.339073526e-03f, 9.618237615e-03f,
                                5.550357327e-02f, 2.402264923e-01f, 6.931471825e-01f};
#endif
    y = clamp(y, -LIMIT, LIMIT);
    const vec shifted = y + ROUNDING;
    const vec r = y - (shifted - ROUNDING);
    vec p = splat(term[0]);
    UNROLL for (unsigned j = 1; j < sizeof term / sizeof *term; j++) p = p * r + term[j];
    *power = (ivec)shifted << MANTISSA;
    return p * r;
}

/* A slope at y: zero where y is cut off. What is left of it there would count beside large factors. */
INLINE vec unless_flat(vec slope, vec y) {
    const ivec flat = (y <= -splat(LIMIT)) | (y >= splat(LIMIT)); /* NaN is not flat: it stays */
    return (vec)((ivec)slope & ~flat);
}

INLINE vec one_plus_exp2(vec y) {
    ivec power;
    const vec q = exp2_parts(y, &power);
    return 1 + (vec)((ivec)(1 + q) + power);
}

INLINE vec exp2_minus_one(vec y) { /* 2^n q + (2^n - 1): exact near zero */
    ivec power;
    const vec q = exp2_parts(y, &power), two_n = (vec)(power + (ivec)splat(1));
    return two_n * q + (two_n - 1);
}

#endif

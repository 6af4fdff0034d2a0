// What attention_prefill.cu and attention_single.cu have in common: how keys and values lie in
// shared memory, and what becomes of scores. A row has the same bits by either.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM, X_INT4, OUT_STRIDE, PREFILL_KEYS (keys of a tile), THREADS (of
// a block), RING; where a family asks for it, SCORES_BITS and SOFT_CAP_BITS; in pages also KV_CODE
// and what it may be (kv_codes.cuh; attention_codes.cuh has tiles of codes).
#pragma once
#include "common.cuh"
#include "kv_codes.cuh"

#ifndef PREFILL_KEYS
#define PREFILL_KEYS 64
#endif
#ifndef OUT_STRIDE
#define OUT_STRIDE (X_INT4 ? (HEADS * HEAD_DIM + 127) / 128 * 128 : HEADS * HEAD_DIM)
#endif

constexpr int GROUP = HEADS / KV_HEADS;
constexpr int KV_PANEL = 64 * PREFILL_KEYS, KV_BYTES = HEAD_DIM / 32 * KV_PANEL; // bytes

// ---- tiles ----

DEVICE void copy_async(u32 to, const void *from, bool valid) { // 16 bytes; zeros if not `valid`
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Where a thread's first 16 bytes of a tile lie, four lanes a row and panel. The swizzle: address
// bits 4 and 5 are xored with bits 7 and 8, that is the piece with row / 2.
DEVICE u32 place_in_tile() {
    return threadIdx.x / 4 * 64 + (threadIdx.x % 4 ^ threadIdx.x / 8 % 4) * 16;
}
// And of where it comes from, in elements.
DEVICE int piece_of_tile(int stride) { return threadIdx.x / 4 * stride + threadIdx.x % 4 * 8; }

// COUNT rows of HEAD_DIM elements, `stride` elements apart, as panels: `to` and `from` are the
// thread's own. Of the rows from the thread's first on there are `present`; the others are not read
// and become zeros, since what lies there must not meet a weight of 0. Row `skipped`, so counted,
// is left to whoever else writes it.
template <int COUNT>
DEVICE void copy_pieces(u32 to, const u16 *from, int stride, int present, int skipped = -1) {
    constexpr int PASS_ROWS = THREADS / 4;
#pragma unroll
    for (int pass = 0; pass * PASS_ROWS < COUNT; ++pass) {
        const int row = pass * PASS_ROWS;
        if (COUNT % PASS_ROWS != 0 && row + threadIdx.x / 4 >= COUNT) break;
        if (row == skipped) continue;
#pragma unroll
        for (int panel = 0; panel < HEAD_DIM / 32; ++panel)
            copy_async(to + row * 64 + panel * (64 * COUNT), from + row * stride + panel * 32,
                       row < present);
    }
}

// The same of whole tiles, whose rows end at `end`.
template <int COUNT>
DEVICE void copy_tile(u32 to, const u16 *from, int stride, int end, int skipped = -1) {
    const int row = threadIdx.x / 4;
    copy_pieces<COUNT>(to + place_in_tile(), from + piece_of_tile(stride), stride, end - row,
                       skipped - row);
}

// Where piece `piece` (8 elements) of a row of such a tile lies, bytes from the tile's first, with
// panels of `panel` bytes.
DEVICE int piece_offset(int row, int piece, int panel = KV_PANEL) {
    return piece / 4 * panel + row * 64 + (piece % 4 ^ row / 2 % 4) * 16;
}

// Four 8 x 8 matrices, a row of one from each lane: the fragments of keys; transposed: of values.
DEVICE void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}
DEVICE void load_transposed(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// ---- scores ----

#ifdef SOFT_CAP_BITS
// c tanh(x / c) of a scaled score, as c (1 - 2 / (1 + exp(2 x / c))): absolute errors are of c
// 2^-22, where bf16 queries and keys leave more of any score. Before the mask, which is no score.
DEVICE float capped(float s) {
    const float cap = __uint_as_float(SOFT_CAP_BITS);
#ifdef SCORES_BITS
    const float scaled = __uint_as_float(SCORES_BITS);
#else
    const float scaled = 1.0f / sqrtf((float)HEAD_DIM);
#endif
    const float inner = 2.0f * 1.4426950408889634f * scaled / cap;
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(fminf(s * inner, 100.0f)));
}
#endif

// A row's scores of a tile -> weights, relative to the new running maximum; returns what older
// weights are worth now. Four lanes share the row: s[STRIDE n], s[STRIDE n + 1] are columns 8 n + 2
// t, 8 n + 2 t + 1. The running sum is the lane's own.
template <int STRIDE> DEVICE float softmax_row(float *s, float &running_max, float &running_sum) {
#if defined SOFT_CAP_BITS
    const float scale = 1.4426950408889634f; // `capped` has done the rest
#elif defined SCORES_BITS
    const float scale = 1.4426950408889634f * __uint_as_float(SCORES_BITS);
#else
    const float scale = 1.4426950408889634f / sqrtf((float)HEAD_DIM);
#endif
    float max = running_max;
#pragma unroll
    for (int n = 0; n < PREFILL_KEYS / 8; ++n)
        max = fmaxf(max, fmaxf(s[STRIDE * n], s[STRIDE * n + 1]));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    const float rescale = exp2_fast((running_max - max) * scale);
    running_max = max;
    const float offset = max * scale;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < PREFILL_KEYS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float &v = s[STRIDE * n + e];
            v = exp2_fast(__fmaf_rn(v, scale, -offset));
            sum += v;
        }
    running_sum = __fmaf_rn(running_sum, rescale, sum);
    return rescale;
}

// ---- output ----

// Word (pair of bf16) of an output row that holds pair `pair` (0 .. 15) of the 32 columns from 32
// segment on. In int4 order pair 4 u + i is columns 8 u + i and 8 u + i + 4 (see int4_order).
DEVICE int output_word(int segment, int pair) {
    return X_INT4 ? segment / 4 * 64 + pair * 4 + segment % 4 : segment * 16 + pair;
}

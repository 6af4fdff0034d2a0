// Rotation of a prompt's queries and keys: `rows` new tokens in cache rows past .. past + rows - 1.
//
// PAGED = 1: rows of many sequences, whose keys and values go into pages of PAGE_TOKENS tokens:
//   seen     for each row {place: page * PAGE_TOKENS + token, 1 with LongRoPE's long factors, 0,
//            position}
//   k_cache, v_cache  KvUnit [pages, KV_HEADS, PAGE_TOKENS, KV_UNITS], bf16 or codes; of codes
//   k_scales, v_scales  u8 [pages, KV_HEADS, PAGE_TOKENS, KV_SCALES]  (kv_codes.cuh)
//   inv_freq f32 [2, ROTARY_HALF], of the short and of the long factors
//
// rotation_table    table[i, :, j] = attention_factor (cos, sin)(p inv_freq[j]) for the position p
//                   of row i: past + i, or (PACKED or PAGED = 1) seen[i].position
//                   (attention_prefill.cu).
//   table    f32 [rows, 2, ROTARY_HALF]
//   grid: rows, block: ROTARY_HALF rounded up to 32. Once a pass: every layer rotates by the same
//   angles.
//
// rope_and_cache    rotates q and k, writes q_out and the new rows of both caches.
//   qkv      bf16 [rows, (HEADS + 2 KV_HEADS) HEAD_DIM]
//   q_out    bf16 [rows, HEADS HEAD_DIM]
//   k_cache, v_cache  bf16 [KV_HEADS, capacity, HEAD_DIM]
//   grid: rows, block: ROPE_THREADS. Bound by memory: a thread moves 8 elements at a time. Keys and
//   values that are to be codes are put together in shared memory, and a warp encodes a head.
//
// Where a family has them, before the rotation:
//   QKV_BIAS = 1   bias f32 [(HEADS + 2 KV_HEADS) HEAD_DIM] is added to queries, keys and values
//   QK_NORM        queries and keys are divided by sqrt(mean of squares + eps) and multiplied with
//                  q_norm and k_norm, f32: PER_HEAD: each head by itself, all with the same
//                  HEAD_DIM weights; WHOLE_WIDTH: all heads of a row together, with weights for
//                  each element
// Both in f32, on the products' bf16 results, with one rounding at the end. A warp adds up the
// squares of a head at a time, whatever other rows there are, and the row is then read again, from
// L1.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM, ROTARY_HALF (multiple of 8), PACKED, PAGED, PAGE_TOKENS (with
// PAGED), BLOCK_THREADS (of rope_and_cache); QKV_BIAS; QK_NORM, EPS_BITS and the numbers PER_HEAD,
// WHOLE_WIDTH; in pages KV_CODE and what it may be.
#include "rotate.cuh"
#if KV_CODE == KV_BF16 // or neither of them is there
typedef u16 KvUnit;
#define SCALE_ARGUMENTS
#else
#include "kv_codes.cuh"
#endif

#ifndef PACKED
#define PACKED 0
#endif
#ifndef PAGED
#define PAGED 0
#endif

constexpr int ROPE_THREADS = 256;
static_assert(ROPE_THREADS == BLOCK_THREADS, "as smq-engine launches it");
#if KV_CODE != KV_BF16
static_assert(PAGED, "codes lie in pages");
#endif

KERNEL rotation_table(const float *inv_freq, float attention_factor, int past, const int4 *seen,
                      float *table) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int row = blockIdx.x, j = threadIdx.x;
    if (j >= ROTARY_HALF) return;
    const int position = PACKED || PAGED ? seen[row].w : past + row;
    const float *frequencies = inv_freq + (PAGED ? seen[row].y * ROTARY_HALF : 0);
    float sine, cosine;
    sincosf((float)position * frequencies[j], &sine, &cosine);
    table[row * 2 * ROTARY_HALF + j] = cosine * attention_factor;
    table[(row * 2 + 1) * ROTARY_HALF + j] = sine * attention_factor;
}

KERNEL __launch_bounds__(ROPE_THREADS)
#if PAGED
    rope_and_cache(const u16 *qkv, u16 *q_out, KvUnit *k_cache, KvUnit *v_cache,
                   SCALE_ARGUMENTS const int4 *seen,
                   const float *table BIAS_ARGUMENT NORM_ARGUMENTS) {
    let_next_kernel_start();
    const int row = blockIdx.x, place = seen[row].x, page = place / PAGE_TOKENS,
              token = place % PAGE_TOKENS;
#if KV_CODE == KV_BF16
    auto cached = [&](int kv_head) {
        return (((u64)page * KV_HEADS + kv_head) * PAGE_TOKENS + token) * HEAD_DIM;
    };
#else
    __shared__ __align__(16) u16 fresh[2 * KV_HEADS * HEAD_DIM]; // of keys, then of values
#endif
#else
    rope_and_cache(const u16 *qkv, u16 *q_out, u16 *k_cache, u16 *v_cache, int capacity, int past,
                   const float *table BIAS_ARGUMENT NORM_ARGUMENTS) {
    let_next_kernel_start();
    const int row = blockIdx.x;
    auto cached = [&](int kv_head) { return ((u64)kv_head * capacity + past + row) * HEAD_DIM; };
#endif
    const u16 *from = qkv + (u64)row * QKV_WIDTH;
    // Where head `head` of the row goes: queries, then keys, then values.
    auto destination = [&](int head) {
        if (head < HEADS) return q_out + ((u64)row * HEADS + head) * HEAD_DIM;
        const int kv_head = head - HEADS;
#if KV_CODE == KV_BF16
        return kv_head < KV_HEADS ? k_cache + cached(kv_head)
                                  : v_cache + cached(kv_head - KV_HEADS);
#else
        return fresh + kv_head * HEAD_DIM;
#endif
    };

    // All loads first. 8 elements and the 8 that they rotate with; then what is only copied: the
    // rest of q and k, if rotation is partial, and the values.
    constexpr int PAIRS = (HEADS + KV_HEADS) * HEAD_PAIRS, REST = (HEADS + KV_HEADS) * HEAD_REST;
    constexpr int COPIES = REST + KV_HEADS * (HEAD_DIM / 8);
    constexpr int PAIR_ROUNDS = (PAIRS + ROPE_THREADS - 1) / ROPE_THREADS;
    constexpr int COPY_ROUNDS = (COPIES + ROPE_THREADS - 1) / ROPE_THREADS;
    auto copied = [&](int index, int &head, int &i) {
        constexpr int width = HEAD_REST > 0 ? HEAD_REST : 1;
        const bool is_rest = index < REST;
        const int value = index - REST;
        head = is_rest ? index / width : HEADS + KV_HEADS + value / (HEAD_DIM / 8);
        i = is_rest ? 2 * ROTARY_HALF + index % width * 8 : value % (HEAD_DIM / 8) * 8;
    };
#if QKV_BIAS
    auto bias_of = [&](int head, int i) { return bias + head * HEAD_DIM + i; };
#elif QK_NORM
    auto bias_of = [](int, int) { return (const float *)nullptr; };
#endif
    uint4 low[PAIR_ROUNDS], high[PAIR_ROUNDS], copies[COPY_ROUNDS];
    Angles angles[PAIR_ROUNDS];
    wait_for_previous_kernel();
#if QK_NORM
    // What a head's elements are multiplied with, beside their weights; first the sums of squares.
    __shared__ float factors[HEADS + KV_HEADS];
    for (int head = threadIdx.x / 32; head < HEADS + KV_HEADS; head += ROPE_THREADS / 32) {
        const float squares = head_squares(from + head * HEAD_DIM, bias_of(head, 0));
        if (threadIdx.x % 32 == 0)
            factors[head] = QK_NORM == PER_HEAD ? norm_factor(squares, HEAD_DIM) : squares;
    }
    __syncthreads();
#if QK_NORM == WHOLE_WIDTH
    const int first = threadIdx.x < HEADS ? 0 : HEADS,
              count = threadIdx.x < HEADS ? HEADS : KV_HEADS;
    static_assert(HEADS + KV_HEADS <= ROPE_THREADS, "a thread a head");
    float factor = 0.0f;
    if (threadIdx.x < HEADS + KV_HEADS) {
        for (int head = first; head < first + count; ++head) factor += factors[head];
        factor = norm_factor(factor, count * HEAD_DIM);
    }
    __syncthreads();
    if (threadIdx.x < HEADS + KV_HEADS) factors[threadIdx.x] = factor;
    __syncthreads();
#endif
#endif
#if QKV_BIAS || QK_NORM
    // Elements i .. i + 7 of a head of the row, before the rotation.
    auto adjust_of = [&](float v[8], int head, int i) {
#if QK_NORM
        const bool is_value = head >= HEADS + KV_HEADS;
        const int of_kind = QK_NORM == PER_HEAD ? 0 : head < HEADS ? head : head - HEADS;
        const float *norm = is_value ? nullptr : head < HEADS ? q_norm : k_norm;
        const float *weight = is_value ? nullptr : norm + of_kind * HEAD_DIM + i;
        adjust(v, bias_of(head, i), weight, is_value ? 1.0f : factors[head]);
#else
        adjust(v, bias_of(head, i), nullptr, 1.0f);
#endif
    };
#endif
#pragma unroll
    for (int round = 0; round < PAIR_ROUNDS; ++round) {
        const int index = min(round * ROPE_THREADS + (int)threadIdx.x, PAIRS - 1);
        const u16 *x = from + index / HEAD_PAIRS * HEAD_DIM + index % HEAD_PAIRS * 8;
        low[round] = load_once(x);
        high[round] = load_once(x + ROTARY_HALF);
        angles[round].load(table + row * 2 * ROTARY_HALF + index % HEAD_PAIRS * 8);
    }
#pragma unroll
    for (int round = 0; round < COPY_ROUNDS; ++round) {
        int head, i;
        copied(min(round * ROPE_THREADS + (int)threadIdx.x, COPIES - 1), head, i);
        copies[round] = load_once(from + head * HEAD_DIM + i);
    }
#pragma unroll
    for (int round = 0; round < PAIR_ROUNDS; ++round) {
        const int index = round * ROPE_THREADS + threadIdx.x;
        if (index >= PAIRS) break;
#if QKV_BIAS || QK_NORM
        float a[8], b[8];
        unpack(low[round], a);
        unpack(high[round], b);
        adjust_of(a, index / HEAD_PAIRS, index % HEAD_PAIRS * 8);
        adjust_of(b, index / HEAD_PAIRS, index % HEAD_PAIRS * 8 + ROTARY_HALF);
        angles[round].rotate(a, b);
        low[round] = pack(a), high[round] = pack(b);
#else
        angles[round].rotate(low[round], high[round]);
#endif
        u16 *to = destination(index / HEAD_PAIRS) + index % HEAD_PAIRS * 8;
        *(uint4 *)to = low[round];
        *(uint4 *)(to + ROTARY_HALF) = high[round];
    }
#pragma unroll
    for (int round = 0; round < COPY_ROUNDS; ++round) {
        const int index = round * ROPE_THREADS + threadIdx.x;
        if (index >= COPIES) break;
        int head, i;
        copied(index, head, i);
#if QKV_BIAS || QK_NORM
        float v[8];
        unpack(copies[round], v);
        adjust_of(v, head, i);
        copies[round] = pack(v);
#endif
        *(uint4 *)(destination(head) + i) = copies[round];
    }
#if KV_CODE != KV_BF16
    __syncthreads();
    const int lane = threadIdx.x % 32;
    for (int vector = threadIdx.x / 32; vector < 2 * KV_HEADS; vector += ROPE_THREADS / 32) {
        const bool is_value = vector >= KV_HEADS;
        const u64 at =
            ((u64)page * KV_HEADS + vector % KV_HEADS) * PAGE_TOKENS + token;
        u16 v[KV_GROUPS];
#pragma unroll
        for (int c = 0; c < KV_GROUPS; c++) v[c] = fresh[vector * HEAD_DIM + 32 * c + lane];
        kv_encode(v, (is_value ? v_cache : k_cache) + at * KV_ROW,
                  (is_value ? v_scales : k_scales) + at * KV_SCALES, lane);
    }
#endif
}

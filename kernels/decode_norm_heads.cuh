// Norms of queries and keys in a decode step (decode_attention.cuh): of each head (PER_HEAD), or
// over all queries and over all keys (WHOLE_WIDTH).
#pragma once

static_assert(QUERIES + 2 <= BATCH * WARPS, "staged where the outputs will be");
static_assert(HEADS * HEAD_DIM % 4 == 0 && KV_HEADS * HEAD_DIM % 4 == 0, "16 bytes a load");

#if QK_NORM == WHOLE_WIDTH
// The sum of squares of `count` values, of this thread's share.
DEVICE float own_squares(const float *x, int count, Tag tag) {
    float squares = 0.0f;
    for (int i = 4 * threadIdx.x; i < count; i += 4 * CONSUMERS) {
        uint4 v;
        do v = load_relaxed_16(x + i);
        while (!tag.on(v));
        const float a = untagged(v.x), b = untagged(v.y), c = untagged(v.z), d = untagged(v.w);
        squares += (a * a + b * b) + (c * c + d * d);
    }
    return squares;
}
#endif

// Of a token the block's queries, and in block 0 of a head, or where there are several tokens, the
// new key and value behind them, normed but for the value.
DEVICE void norm_heads(const Phase &phase, const float *qkv, Tag tag, int kv_head, int split,
                       float *staged) {
    const float *q_norm = phase.pointer<const float>(W2), *k_norm = phase.pointer<const float>(S0);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#if QK_NORM == WHOLE_WIDTH
    __shared__ float sums[2][WARPS];
    const float of_queries = warp_sum(own_squares(qkv, HEADS * HEAD_DIM, tag));
    const float of_keys =
        takes_new(split) ? warp_sum(own_squares(qkv + HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, tag))
                         : 0.0f;
    if (lane == 0) sums[0][warp] = of_queries, sums[1][warp] = of_keys;
    sync_threads(1, CONSUMERS);
#endif
    const int vectors = takes_new(split) ? QUERIES + 2 : QUERIES;
    for (int vector = warp; vector < vectors; vector += WARPS) {
        const bool is_query = vector < QUERIES, is_key = vector == QUERIES;
        const int head = is_query ? kv_head * QUERIES + vector : kv_head;
        const float *x =
            qkv + (is_query ? head : HEADS + (is_key ? 0 : KV_HEADS) + head) * HEAD_DIM;
        float v[CHUNKS], squares = 0.0f;
        u32 raw[CHUNKS];
        bool here;
        do { // all at once, and again
            here = true;
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) raw[i] = load_relaxed(x + 32 * i + lane);
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) here &= tag.on(raw[i]);
        } while (!here);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) v[i] = untagged(raw[i]), squares += v[i] * v[i];
        if (is_query || is_key) {
#if QK_NORM == WHOLE_WIDTH
            squares = 0.0f;
            for (int w = 0; w < WARPS; w++) squares += sums[is_key][w];
            const int count = (is_key ? KV_HEADS : HEADS) * HEAD_DIM;
            const float *weights = (is_key ? k_norm : q_norm) + head * HEAD_DIM;
#else
            squares = warp_sum(squares);
            const int count = HEAD_DIM;
            const float *weights = is_key ? k_norm : q_norm;
#endif
            const float factor = 1.0f / sqrtf(squares / count + __uint_as_float(EPS_BITS));
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) v[i] *= factor * weights[32 * i + lane];
        }
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) staged[vector * HEAD_DIM + 32 * i + lane] = v[i];
    }
    sync_threads(1, CONSUMERS);
}

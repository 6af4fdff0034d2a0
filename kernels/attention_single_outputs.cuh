// What attention_single.cu writes: a row's outputs of the queries that a block has.
#pragma once

// Into `row` of `out`, from the first of `queries` heads on: this warp's columns `o` of each, times
// `inverse`. The block's tiles are no longer in use.
DEVICE void put_outputs(u16 *out, int row, int first_head, int queries,
                        const float (&o)[OUT_BLOCKS][4], const float (&inverse)[HALVES],
                        [[maybe_unused]] u8 *tiles) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
#if KV_CODE != KV_BF16
    // Two columns of a lane are not neighbours: through shared memory, where the tiles were.
    u16 *staged = (u16 *)tiles;
    static_assert(QUERIES * HEAD_DIM * 2 <= DYNAMIC_SHARED, "the output");
    sync_threads(1, THREADS);
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
        if (r + 8 * h < queries)
#pragma unroll
            for (int i = 0; i < 2 * OUT_BLOCKS; ++i) {
                const int block = warp * OUT_BLOCKS + i / 2, n = 2 * t + i % 2;
                const int column = KV_PARTS * (block / KV_PARTS * 8 + n) + block % KV_PARTS;
                staged[(r + 8 * h) * HEAD_DIM + column] =
                    bf16_of(o[i / 2][2 * h + i % 2] * inverse[h]);
            }
    sync_threads(1, THREADS);
    for (int index = threadIdx.x; index < queries * (HEAD_DIM / 2); index += THREADS) {
        const int query = index / (HEAD_DIM / 2), word = index % (HEAD_DIM / 2);
        const int segment = (first_head + query) * (HEAD_DIM / 32) + word / 16;
        ((u32 *)out)[(u64)row * (OUT_STRIDE / 2) + output_word(segment, word % 16)] =
            staged_word(staged + query * HEAD_DIM, word);
    }
#else
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        const int head = first_head + r + 8 * h;
#pragma unroll
        for (int n = 0; n < OUT_BLOCKS; ++n) {
            const float low = o[n][2 * h] * inverse[h], high = o[n][2 * h + 1] * inverse[h];
            const int block = warp * OUT_BLOCKS + n, segment = head * (HEAD_DIM / 32) + block / 4,
                      first = block % 4 * 4;
            u32 *to = (u32 *)out + (u64)row * (OUT_STRIDE / 2);
#if X_INT4
            // Columns 2 t and 2 t + 1 of eight; lanes t and t + 2 exchange one, for pairs (i, i +
            // 4).
            const float other = __shfl_xor_sync(0xffffffffu, t < 2 ? high : low, 2);
            const u32 word = t < 2 ? bf16_pair(low, other) : bf16_pair(other, high);
            if (r + 8 * h < queries)
                to[output_word(segment, first + (t < 2 ? 2 * t : 2 * t - 3))] = word;
#else
            if (r + 8 * h < queries) to[output_word(segment, first + t)] = bf16_pair(low, high);
#endif
        }
    }
#endif
}

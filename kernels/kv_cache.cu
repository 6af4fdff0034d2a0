// What a prompt's pass does with a layer's cache of fewer bits than bf16 (spec/cache.md). Its other
// kernels write and read bf16, in a buffer of one layer: `keys` and `values`, bf16 [KV_HEADS,
// capacity, HEAD_DIM] each, as the cache's own codes and scales are u8 [KV_HEADS, capacity, KV_ROW]
// and [KV_HEADS, capacity, KV_SCALES].
//
// widen_rows    rows first .. first + rows - 1 of every head, from codes into the buffer:
//                 buffer[h, j, e] = value(codes[h, j, e]) scale(scales[h, j, e's])
//               A thread has eight elements.
//   grid: [rows HEAD_DIM / 8 threads, 2 KV_HEADS]
// encode_rows   the same rows, from the buffer into codes; the buffer then has what is read of
//               them, so that attention of these tokens reads what every later one does. A warp has
//               a row.
//   grid: [rows warps, 2 KV_HEADS]
//
// y counts the heads of keys and then those of values; x has as many blocks of KV_THREADS threads
// as these need. Values times scales are exact in bf16. Both are bound by what they read and write.
//
// Macros: KV_HEADS, HEAD_DIM, KV_THREADS; KV_CODE and what it may be (kv_codes.cuh).
#include "common.cuh"
#include "kv_codes.cuh"

#define LAYER_ARGUMENTS                                                                            \
    u16 *keys, u16 *values, u8 *key_codes, u8 *value_codes, u8 *key_scales, u8 *value_scales,      \
        int capacity, int first, int rows

// A row, in the buffer and in the cache.
struct Row {
    u16 *wide;
    u8 *codes, *scales;
    INSIDE Row(LAYER_ARGUMENTS, int index) {
        const bool is_value = blockIdx.y >= KV_HEADS;
        const u64 row = (u64)(blockIdx.y % KV_HEADS) * capacity + first + index;
        wide = (is_value ? values : keys) + row * HEAD_DIM;
        codes = (is_value ? value_codes : key_codes) + row * KV_ROW;
        scales = (is_value ? value_scales : key_scales) + row * KV_SCALES;
    }
    // Elements 8 i .. 8 i + 7 from codes into the buffer.
    INSIDE void widen(int i) const {
        const float scale = kv_scale(scales[KV_SCALES > 1 ? i / 4 : 0]);
        float v[8];
        kv_values(*(const KvEight *)(codes + KV_EIGHT * i), v);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] *= scale;
        store_eight(wide, 8 * i, v, false);
    }
};
#define ROW(index)                                                                                 \
    Row(keys, values, key_codes, value_codes, key_scales, value_scales, capacity, first, rows,     \
        index)

KERNEL __launch_bounds__(KV_THREADS) widen_rows(LAYER_ARGUMENTS) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    constexpr int EIGHTS = HEAD_DIM / 8;
    const int index = blockIdx.x * KV_THREADS + threadIdx.x;
    if (index < rows * EIGHTS) ROW(index / EIGHTS).widen(index % EIGHTS);
}

KERNEL __launch_bounds__(KV_THREADS) encode_rows(LAYER_ARGUMENTS) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int index = (blockIdx.x * KV_THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (index >= rows) return; // whole warps
    const Row row = ROW(index);
    kv_encode_row(row.wide, row.codes, row.scales, lane);
    __syncwarp();
    if (lane < HEAD_DIM / 8) row.widen(lane);
}
